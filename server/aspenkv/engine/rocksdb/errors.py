"""Typed errors for what rocksdict raises: bare exceptions that only their text tells apart."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rocksdict import DbClosedError

from aspenkv.errors import (
    AspenKvError,
    ClosedError,
    DataCorruptError,
    DataDirectoryLockedError,
    EngineError,
    StorageFullError,
)

_INCOMPLETE: Final = "Result incomplete"
_CORRUPTION: Final = "Corruption"
_NO_SPACE: Final = "No space left on device"
_LOCKED: Final = ("lock hold by current process", "While lock file")
_RESTORE: Final = "restore the data directory from a backup, or move it away"
_LOCKS: Final = Path("/proc/locks")


class TakesLongError(Exception):
    """An inline call met work for a thread: do it again there. Never leaves the engine."""


def must_wait(error: Exception) -> bool:
    """Tell whether a call gave up because it was told not to take long."""
    return isinstance(error, TakesLongError) or str(error).startswith(_INCOMPLETE)


def typed_error(error: Exception, path: Path) -> AspenKvError:
    """Return the error to raise for what rocksdict raised while the database was open."""
    text = str(error)
    if isinstance(error, AspenKvError):
        return error
    if isinstance(error, DbClosedError):
        return ClosedError("the engine was closed during the call")
    if _NO_SPACE in text:
        return StorageFullError(f"no space left under {path}: free some, then mount again")
    if text.startswith(_CORRUPTION):
        return DataCorruptError(f"the data in {path} is damaged ({text}): {_RESTORE}")
    return EngineError(f"rocksdb in {path} failed ({text}): see the newest LOG file there")


def open_error(error: Exception, path: Path) -> AspenKvError:
    """Return the error to raise for what rocksdict raised while the database was opened."""
    text = str(error)
    if any(sign in text for sign in _LOCKED):
        holder = _lock_holder(path / "LOCK")
        return DataDirectoryLockedError(
            f"data directory {path} is in use by {holder}: stop it, or name another directory"
        )
    return typed_error(error, path)


def missing_value_error(key: bytes) -> DataCorruptError:
    """Return the error to raise when a record says that a value lies apart, and none does."""
    return DataCorruptError(f"the value of {key!r} is missing: {_RESTORE}")


def _lock_holder(lock: Path) -> str:
    """Return who holds a POSIX lock on a file, as far as the kernel tells.

    The file must not be opened to ask: closing it would drop a lock that this process holds.
    """
    try:
        inode = str(lock.stat().st_ino)
        for line in _LOCKS.read_text(encoding="ascii").splitlines():
            # as in "1: POSIX  ADVISORY  WRITE 4711 fd:01:131075 0 EOF"
            fields = line.split()
            if fields[5].rpartition(":")[2] == inode and int(fields[4]) > 0:
                return f"process {fields[4]}"
    except (OSError, IndexError, ValueError):
        pass
    return "another process"
