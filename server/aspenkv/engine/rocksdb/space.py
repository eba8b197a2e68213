"""Keeps rocksdb from running into a full disk.

A write-ahead log that could not be written stays closed until the database is opened again, and
then not even a deletion could make room. So commits that only add are refused while some is left.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from aspenkv.contract import Delete, DeleteRange, Op
from aspenkv.errors import StorageFullError
from aspenkv.limits import RESERVED_BYTES, SPACE_CHECK_BYTES


class SpaceGuard:
    """Looks at the free space every SPACE_CHECK_BYTES written, and each time while it is low."""

    def __init__(self, path: Path) -> None:
        """Watch the file system of a data directory."""
        self._path = path
        self._unchecked_bytes = 0
        self._low = available_bytes(path) == 0

    def admit(self, ops: Sequence[Op], size_bytes: int) -> None:
        """Let a commit of ``size_bytes`` pass.

        Raises:
            StorageFullError: space is low, and the commit deletes nothing.
        """
        self._unchecked_bytes += size_bytes
        if self._low or self._unchecked_bytes >= SPACE_CHECK_BYTES:
            self._unchecked_bytes = 0
            self._low = available_bytes(self._path) == 0
            if self._low and not any(isinstance(op, Delete | DeleteRange) for op in ops):
                raise StorageFullError(
                    f"the disk of {self._path} is full but for {RESERVED_BYTES >> 20} MiB that "
                    f"deletions need: delete something, or make room on it"
                )


def available_bytes(path: Path) -> int:
    """Return the free space of a path's file system above RESERVED_BYTES, in bytes."""
    medium = os.statvfs(path)
    return max(0, medium.f_bavail * medium.f_frsize - RESERVED_BYTES)


def capacity_bytes(path: Path) -> int:
    """Return the size of a path's file system, in bytes."""
    medium = os.statvfs(path)
    return medium.f_blocks * medium.f_frsize
