"""What the tests of coherence write, replace and look for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CHUNK_BYTES: Final = 65536


def content_of(number: int, size: int) -> bytes:
    """Return bytes of which each part tells the number."""
    line = b"%015d\n" % number
    return (line * (size // len(line) + 1))[:size]


def small(number: int) -> bytes:
    """Return so few bytes that they lie in the inode's record."""
    return content_of(number, 16 + number % 100)


def replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of one, as editors and package managers do."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.rename(path)


def opens(path: Path) -> bool:
    """Tell whether there is something to open."""
    try:
        os.close(os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        return False
    return True
