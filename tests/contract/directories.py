"""Where tests keep data whose disk does not matter."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")


def new_directory() -> Path:
    """Make a directory, in memory where that can be: a hundred times as fast to sync."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    return Path(tempfile.mkdtemp(dir=parent, prefix="aspenkv-test-"))
