"""Typed errors for what rocksdict raises: bare exceptions that only their text tells apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
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

_RESTORE: Final = "restore the data directory from a backup, or move it away"
_LOCKS: Final = Path("/proc/locks")


class TakesLongError(Exception):
    """An inline call met work for a thread: do it again there. Never leaves the engine."""


class TypedErrors:
    """A context that turns what rocksdict and the system raise into errors of the contract.

    A class, for it costs a fifth of what a generator would; one object serves every call. A bug of
    ours passes as it is.
    """

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        """Name ``path`` in the messages."""
        self._path = path

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raise the typed error.

        The old traceback goes: its frames hold iterators, which would keep a closed database
        locked.
        """
        if error is None:
            return
        if isinstance(error, AspenKvError):
            error.with_traceback(None)
        elif type(error) is Exception or isinstance(error, DbClosedError | OSError):
            error.with_traceback(None)
            raise _typed(" ".join(str(error).split()), self._path) from None


def _typed(text: str, path: Path) -> Exception:
    for sign, make in _SIGNS.items():
        if sign in text:
            return make(text, path)
    return EngineError(f"rocksdb in {path} failed ({text}): see the newest LOG file there")


def _takes_long(_text: str, _path: Path) -> Exception:
    return TakesLongError()


def _closed(_text: str, _path: Path) -> Exception:
    return ClosedError("the engine was closed: open it again")


def _full(_text: str, path: Path) -> Exception:
    return StorageFullError(f"no space is left for {path}: free some, then try again")


def _failed_before(_text: str, path: Path) -> Exception:
    return EngineError(
        f"an earlier write to {path} failed: make sure of its disk, then open it anew"
    )


def _damaged(text: str, path: Path) -> Exception:
    return DataCorruptError(f"the data in {path} is damaged ({text}): {_RESTORE}")


def _locked_here(_text: str, path: Path) -> Exception:
    return _locked(path, "this process")


def _locked_elsewhere(_text: str, path: Path) -> Exception:
    return _locked(path, _lock_holder(path / "LOCK"))


_SIGNS: Final[dict[str, Callable[[str, Path], Exception]]] = {
    "Result incomplete": _takes_long,
    "DB instance already closed": _closed,
    "No space left on device": _full,
    "lock hold by current process": _locked_here,
    "While lock file": _locked_elsewhere,
    "Writer has previous error": _failed_before,
    "Corruption": _damaged,
    "No such file or directory": _damaged,
}
"""What tells rocksdict's errors apart: their text, the first sign that it holds."""


def _locked(path: Path, holder: str) -> DataDirectoryLockedError:
    return DataDirectoryLockedError(
        f"data directory {path} is in use by {holder}: stop it, or name another directory"
    )


def damaged_value_error(path: Path | str, key: bytes) -> DataCorruptError:
    """Return the error to raise when a value that lies apart is not the one that was written."""
    return DataCorruptError(f"in {path} the value of {key!r} is missing or damaged: {_RESTORE}")


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
