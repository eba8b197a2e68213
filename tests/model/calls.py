"""One set of path-based calls for all kinds of filesystem: the core, the model, and the kernel.

So that the same random operations can run on any two of them and their outcomes be compared, every
implementation behaves like the system calls on Linux made by root: final symlinks are not followed,
and errors are OSError.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

Path = tuple[bytes, ...]
"""The names from the root; empty for the root itself."""


class Stat(NamedTuple):
    """What the tests compare of stat(2); ``ino`` only tells equal from different."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Calls(Protocol):
    """The calls; asynchronous, because the core is. A handle is whatever ``open`` returns."""

    async def lstat(self, path: Path) -> Stat: ...
    async def mkdir(self, path: Path, mode: int) -> None: ...
    async def mknod(self, path: Path, mode: int, rdev: int) -> None: ...
    async def symlink(self, path: Path, target: bytes) -> None: ...
    async def readlink(self, path: Path) -> bytes: ...
    async def link(self, path: Path, new_path: Path) -> None: ...
    async def unlink(self, path: Path) -> None: ...
    async def rmdir(self, path: Path) -> None: ...
    async def rename(self, path: Path, new_path: Path, flags: int) -> None: ...
    async def listdir(self, path: Path) -> list[bytes]: ...
    async def chmod(self, path: Path, mode: int) -> None: ...
    async def chown(self, path: Path, uid: int, gid: int) -> None: ...
    async def utime(self, path: Path, atime_ns: int, mtime_ns: int) -> None: ...
    async def truncate(self, path: Path, size: int) -> None: ...
    async def setxattr(self, path: Path, name: bytes, value: bytes, flags: int) -> None: ...
    async def removexattr(self, path: Path, name: bytes) -> None: ...
    async def getxattr(self, path: Path, name: bytes) -> bytes: ...
    async def xattrs(self, path: Path) -> dict[bytes, bytes]: ...
    async def content(self, path: Path) -> bytes: ...
    async def open(self, path: Path, flags: int, mode: int) -> int: ...
    async def pread(self, handle: int, size: int, offset: int) -> bytes: ...
    async def pwrite(self, handle: int, data: bytes, offset: int) -> int: ...
    async def ftruncate(self, handle: int, size: int) -> None: ...
    async def fstat(self, handle: int) -> Stat: ...
    async def fsync(self, handle: int) -> None: ...
    async def close(self, handle: int) -> None: ...


class Side(NamedTuple):
    """Calls, and how synchronous code makes them."""

    calls: Calls
    run: Callable[[Coroutine[Any, Any, Any]], Any]


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waited")
