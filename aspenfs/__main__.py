"""``python -m aspenfs`` is the command ``aspenfs``."""

from aspenfs.cli import main

if __name__ == "__main__":
    main()
