# ruff: noqa: ARG002  # the handlers have pyfuse3's signatures
"""A filesystem of one file in memory, served with the extension by a process of its own.

Run it with a mountpoint and, as JSON, the settings. It prints a line when it is mounted, and one
for each request that the extension handed over or noted: a JSON array of a name and values. When
its standard input ends, so does the session.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import sys
from typing import Any, Final

from aspenfs.errors import FilesystemError
from aspenfs.fuse_extension import FuseExtension, Settings

# isort: split
# Its symbols are bound when it is loaded: after the extension.
import pyfuse3
import trio

ROOT: Final = pyfuse3.ROOT_INODE
FILE: Final = 2
NAME: Final = b"file"


def tell(what: str, *values: object) -> None:
    """Print one line for the test."""
    sys.stdout.write(json.dumps([what, *values]) + "\n")
    sys.stdout.flush()


class Handlers:
    """Answers what the extension hands over. Locks are of the whole file and exclusive."""

    def __init__(self, content: bytearray) -> None:
        self.content = content
        self.holder: tuple[int, int] | None = None  # owner, pid
        self.freed = trio.Event()

    async def getlk(self, *arguments: int) -> tuple[int, int, int, int] | None:
        tell("getlk", *arguments)
        if self.holder is None or self.holder[0] == arguments[2]:
            return None
        return (fcntl.F_WRLCK, 3, 9, self.holder[1])

    async def setlk(self, *arguments: int) -> None:
        tell("setlk", *arguments)
        _ino, _fh, owner, kind, _start, _end, pid, wait = arguments
        await self._lock(owner, pid, unlock=kind == fcntl.F_UNLCK, wait=bool(wait))

    async def flock(self, *arguments: int) -> None:
        tell("flock", *arguments)
        _ino, _fh, owner, operation = arguments
        unlock = bool(operation & fcntl.LOCK_UN)
        await self._lock(owner, 0, unlock=unlock, wait=not operation & fcntl.LOCK_NB)

    async def _lock(self, owner: int, pid: int, *, unlock: bool, wait: bool) -> None:
        if unlock:
            self.release(owner)
            return
        while self.holder is not None and self.holder[0] != owner:
            if not wait:
                raise FilesystemError(errno.EAGAIN)
            tell("waits")
            await self.freed.wait()
        self.holder = (owner, pid)

    def release(self, owner: int) -> None:
        if self.holder is not None and self.holder[0] == owner:
            self.holder = None
            self.freed.set()
            self.freed = trio.Event()

    async def fallocate(self, *arguments: int) -> None:
        tell("fallocate", *arguments)
        _ino, _fh, mode, offset, length = arguments
        if mode:
            raise FilesystemError(errno.EOPNOTSUPP)
        self.content.extend(bytes(max(0, offset + length - len(self.content))))

    async def lseek(self, *arguments: int) -> int:
        tell("lseek", *arguments)
        offset, whence = arguments[-2:]
        if offset >= len(self.content):
            raise FilesystemError(errno.ENXIO)
        if offset == 13:
            raise KeyError("a bug of the handler")
        return offset if whence == os.SEEK_DATA else len(self.content)

    async def copy_file_range(self, *arguments: int) -> int:
        tell("copy_file_range", *arguments)
        _, _, from_offset, _, _, to_offset, length, _ = arguments
        piece = self.content[from_offset : from_offset + length]
        self.content[to_offset : to_offset + len(piece)] = piece
        return len(piece)


class Operations(pyfuse3.Operations):
    """The least that opens, reads and writes one file."""

    enable_acl = True

    def __init__(self, content: bytearray) -> None:
        super().__init__()
        self.content = content
        self.mode = stat.S_IFREG | 0o666
        self.extension: FuseExtension | None = None
        self.handlers: Handlers | None = None
        self.contacted = trio.Event()

    def init(self) -> None:
        self.contacted.set()

    def note(self, what: str) -> Any:
        assert self.extension is not None
        seen = self.extension.last_request()
        if seen is not None:
            tell(what, seen.flags, seen.lock_owner)
        return seen

    def _entry(self, ino: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = stat.S_IFDIR | 0o777 if ino == ROOT else self.mode
        entry.st_nlink = 1
        entry.st_size = 0 if ino == ROOT else len(self.content)
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(FILE)

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._entry(inode)

    async def setattr(
        self, inode: int, attr: Any, fields: Any, fh: Any, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        self.note("setattr")
        if fields.update_mode:
            self.mode = attr.st_mode
        if fields.update_size:
            del self.content[attr.st_size :]
            self.content.extend(bytes(attr.st_size - len(self.content)))
        return self._entry(inode)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=7)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        tell("create", mode, ctx.umask)
        raise pyfuse3.FUSEError(errno.ENOSPC)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(self.content[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self.note("write")
        if buf == b"hang":
            tell("hangs")
            await self._hang()
        self.content[off : off + len(buf)] = buf
        return len(buf)

    async def _hang(self) -> None:
        """Wait until the caller is signalled, as the handlers of a real mount do."""
        assert self.extension is not None
        seen = self.extension.last_request()
        assert seen is not None
        with trio.CancelScope() as scope:
            self.extension.begin(seen.unique, scope)
            try:
                await trio.sleep_forever()
            finally:
                self.extension.end(seen.unique)
        raise pyfuse3.FUSEError(errno.EINTR)

    async def flush(self, fh: int) -> None:
        seen = self.note("flush")
        if seen is not None and self.handlers is not None:
            self.handlers.release(seen.lock_owner)

    async def release(self, fh: int) -> None:
        seen = self.note("release")
        if seen is not None and self.handlers is not None:
            self.handlers.release(seen.lock_owner)

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        tell("getxattr", name.decode())
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)


async def end_with_input(scope: trio.CancelScope) -> None:
    """Cancel the session when nobody can write to standard input any more."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        while await stream.receive_some():
            pass
    scope.cancel()


async def serve(mountpoint: str, settings: Settings) -> None:
    """Mount, and serve until it is unmounted."""

    def explain(handler: str, error: Exception) -> int:
        tell("bug", handler, repr(error))
        return errno.EIO

    content = bytearray(b"0123456789" * 10)
    operations = Operations(content)
    operations.handlers = Handlers(content)
    operations.extension = extension = FuseExtension(operations.handlers, explain, settings)

    async def announce() -> None:
        await operations.contacted.wait()
        tell("mounted", extension.is_active)

    with extension.armed():
        options = {"fsname=memory", "default_permissions", "allow_other"}
        pyfuse3.init(operations, mountpoint, options)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(extension.run)
                nursery.start_soon(announce)
                nursery.start_soon(end_with_input, nursery.cancel_scope)
                await pyfuse3.main(2, 8)
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=False)
    tell("ended", extension.is_active)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], Settings(**json.loads(sys.argv[2])))
