"""``python -m aspenkv``."""

from aspenkv.cli import main

main()
