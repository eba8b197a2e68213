"""The calls, made on a filesystem that speaks of inodes: the core, or the model."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aspenfs import limits
from aspenfs.errors import FilesystemError
from aspenfs.types import ROOT_INO, AttributeChanges, Attributes, Context, FileHandle, Ino
from tests.model.calls import Path, Stat

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_MKDIR_NEVER = stat.S_ISUID | stat.S_ISGID  # mkdir(2) takes permissions and the sticky bit only


async def open_as_linux(
    open_it: Callable[..., Awaitable[FileHandle]], *arguments: Any
) -> FileHandle:
    """Open what a path was just walked to, once more after ESTALE, as do_filp_open() of Linux."""
    try:
        return await open_it(*arguments)
    except FilesystemError as error:
        if error.errno != errno.ESTALE:
            raise
    return await open_it(*arguments, is_retry=True)


class InodeCalls:
    """Calls on a filesystem that speaks of inodes, with what the kernel does before it asks one.

    Args:
        filesystem: the core or the model.
        page: how many entries to ask readdir for at once.
    """

    def __init__(self, filesystem: Any, *, page: int = 3) -> None:
        self.filesystem = filesystem
        self.ctx = Context(0, 0)
        self._page = page
        self._flags: dict[int, int] = {}
        self._inos: dict[int, Ino] = {}

    async def lstat(self, path: Path) -> Stat:
        with _os_errors():
            return _stat(await self._walk(path))

    async def mkdir(self, path: Path, mode: int) -> None:
        with _os_errors():
            parent, name = await self._parent(path)
            await self.filesystem.mkdir(parent, name, mode & ~_MKDIR_NEVER, self.ctx)

    async def mknod(self, path: Path, mode: int, rdev: int) -> None:
        with _os_errors():
            parent, name = await self._parent(path)
            await self.filesystem.mknod(parent, name, mode, rdev, self.ctx)

    async def symlink(self, path: Path, target: bytes) -> None:
        with _os_errors():
            parent, name = await self._parent(path)
            await self.filesystem.symlink(parent, name, target, self.ctx)

    async def readlink(self, path: Path) -> bytes:
        with _os_errors():
            target: bytes = await self.filesystem.readlink((await self._walk(path)).ino)
            return target

    async def link(self, path: Path, new_path: Path) -> None:
        with _os_errors():
            ino = (await self._walk(path)).ino
            await self.filesystem.link(ino, *(await self._parent(new_path)))

    async def unlink(self, path: Path) -> None:
        with _os_errors():
            await self.filesystem.unlink(*(await self._parent(path)))

    async def rmdir(self, path: Path) -> None:
        with _os_errors():
            await self.filesystem.rmdir(*(await self._parent(path)))

    async def rename(self, path: Path, new_path: Path, flags: int) -> None:
        if flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise OSError(errno.EINVAL, "the flags exclude each other")
        with _os_errors():
            old, new = await self._parent(path), await self._parent(new_path)
            await self.filesystem.lookup(*old)
            await self._lookup_if_there(*new)
            if path[: len(new_path)] == new_path != path and flags != RENAME_NOREPLACE:
                is_exchange = flags == RENAME_EXCHANGE
                raise FilesystemError(errno.EINVAL if is_exchange else errno.ENOTEMPTY)
            await self.filesystem.rename(*old, *new, flags)

    async def listdir(self, path: Path) -> list[bytes]:
        with _os_errors():
            fh = await open_as_linux(self.filesystem.opendir, (await self._walk(path)).ino)
            names: list[bytes] = []
            offset = 0
            while entries := await self.filesystem.readdir(fh, offset, self._page):
                assert len(entries) <= self._page
                for entry in entries:
                    assert entry.attributes == await self.filesystem.getattr(entry.attributes.ino)
                    names.append(entry.name)
                offset = entries[-1].next_offset
            await self.filesystem.releasedir(fh)
            return names

    async def chmod(self, path: Path, mode: int) -> None:
        await self._change(path, AttributeChanges(mode=mode))

    async def chown(self, path: Path, uid: int, gid: int) -> None:
        changes = AttributeChanges(uid=None if uid < 0 else uid, gid=None if gid < 0 else gid)
        if changes == AttributeChanges():
            # Linux clears the set-ID bits even if neither owner is to change.
            mode = (await self.lstat(path)).mode
            if not stat.S_ISDIR(mode):
                mode &= ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
            changes = AttributeChanges(mode=mode)
        await self._change(path, changes)

    async def utime(self, path: Path, atime_ns: int, mtime_ns: int) -> None:
        await self._change(path, AttributeChanges(atime_ns=atime_ns, mtime_ns=mtime_ns))

    async def truncate(self, path: Path, size: int) -> None:
        await self._change(path, AttributeChanges(size=size))

    async def setxattr(self, path: Path, name: bytes, value: bytes, flags: int) -> None:
        with _os_errors():
            await self.filesystem.setxattr(await self._xattr_owner(path, name), name, value, flags)

    async def removexattr(self, path: Path, name: bytes) -> None:
        with _os_errors():
            await self.filesystem.removexattr(await self._xattr_owner(path, name), name)

    async def getxattr(self, path: Path, name: bytes) -> bytes:
        with _os_errors():
            try:
                ino = await self._xattr_owner(path, name)
            except FilesystemError as error:
                # Who may not have such an attribute has none.
                number = errno.ENODATA if error.errno == errno.EPERM else error.errno
                raise FilesystemError(number) from error
            value: bytes = await self.filesystem.getxattr(ino, name)
            return value

    async def xattrs(self, path: Path) -> dict[bytes, bytes]:
        with _os_errors():
            ino = (await self._walk(path)).ino
            return {
                name: await self.filesystem.getxattr(ino, name)
                for name in await self.filesystem.listxattr(ino)
            }

    async def content(self, path: Path) -> bytes:
        """Read a file; through a handle if it is open, so that what is dirty stays so."""
        with _os_errors():
            attributes = await self._walk(path)
            for handle, ino in self._inos.items():
                if ino == attributes.ino and self._flags[handle] & os.O_ACCMODE != os.O_WRONLY:
                    return await self.pread(handle, attributes.size + 1, 0)
            fh = await open_as_linux(self.filesystem.open, attributes.ino, os.O_RDONLY)
            data: bytes = await self.filesystem.read(fh, 0, attributes.size + 1)
            await self.filesystem.release(fh)
            return data

    async def open(self, path: Path, flags: int, mode: int) -> int:
        with _os_errors():
            parent, name = await self._parent(path)
            try:
                attributes = await self.filesystem.lookup(parent, name)
            except FilesystemError as error:
                if error.errno != errno.ENOENT or not flags & os.O_CREAT:
                    raise
                fh, attributes = await self.filesystem.create(parent, name, mode, flags, self.ctx)
            else:
                self._check_open(attributes, flags)
                fh = await open_as_linux(self.filesystem.open, attributes.ino, flags)
            self._flags[fh] = flags
            self._inos[fh] = attributes.ino
            handle: int = fh
            return handle

    async def pread(self, handle: int, size: int, offset: int) -> bytes:
        if self._flags[handle] & os.O_ACCMODE == os.O_WRONLY:
            raise OSError(errno.EBADF, "not open for reading")
        with _os_errors():
            data: bytes = await self.filesystem.read(handle, offset, size)
            return data

    async def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        if self._flags[handle] & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        with _os_errors():
            written: int = await self.filesystem.write(handle, offset, data)
            return written

    async def ftruncate(self, handle: int, size: int) -> None:
        if self._flags[handle] & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EINVAL, "not open for writing")
        with _os_errors():
            changes = AttributeChanges(size=size)
            await self.filesystem.setattr(self._inos[handle], changes, FileHandle(handle))

    async def fstat(self, handle: int) -> Stat:
        with _os_errors():
            return _stat(await self.filesystem.getattr(self._inos[handle]))

    async def fsync(self, handle: int) -> None:
        with _os_errors():
            await self.filesystem.fsync(handle)

    async def close(self, handle: int) -> None:
        await self.flush(handle)
        await self.release(handle)

    async def flush(self, handle: int) -> None:
        with _os_errors():
            await self.filesystem.flush(handle)

    async def release(self, handle: int) -> None:
        del self._flags[handle], self._inos[handle]
        with _os_errors():
            await self.filesystem.release(handle)

    async def _walk(self, path: Path) -> Attributes:
        attributes: Attributes = await self.filesystem.getattr(ROOT_INO)
        for name in path:
            if stat.S_ISLNK(attributes.mode):
                raise FilesystemError(errno.ENOENT, "every symlink of these tests dangles")
            if not stat.S_ISDIR(attributes.mode):
                raise FilesystemError(errno.ENOTDIR)
            attributes = await self.filesystem.lookup(attributes.ino, name)
        return attributes

    async def _parent(self, path: Path) -> tuple[Ino, bytes]:
        parent = await self._walk(path[:-1])
        if stat.S_ISLNK(parent.mode):
            raise FilesystemError(errno.ENOENT, "every symlink of these tests dangles")
        if not stat.S_ISDIR(parent.mode):
            raise FilesystemError(errno.ENOTDIR)
        return parent.ino, path[-1]

    async def _lookup_if_there(self, parent: Ino, name: bytes) -> None:
        try:
            await self.filesystem.lookup(parent, name)
        except FilesystemError as error:
            if error.errno != errno.ENOENT:
                raise

    async def _change(self, path: Path, changes: AttributeChanges) -> None:
        with _os_errors():
            await self.filesystem.setattr((await self._walk(path)).ino, changes)

    async def _xattr_owner(self, path: Path, name: bytes) -> Ino:
        if len(name) > limits.XATTR_NAME_BYTES_MAX:
            raise FilesystemError(errno.ERANGE)
        attributes = await self._walk(path)
        is_file = stat.S_ISREG(attributes.mode) or stat.S_ISDIR(attributes.mode)
        if name.startswith(b"user.") and not is_file:
            raise FilesystemError(errno.EPERM)
        return attributes.ino

    @staticmethod
    def _check_open(attributes: Attributes, flags: int) -> None:
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise FilesystemError(errno.EEXIST)
        if stat.S_ISLNK(attributes.mode):
            raise FilesystemError(errno.ELOOP)
        if stat.S_ISDIR(attributes.mode):
            raise FilesystemError(errno.EISDIR)


@contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except FilesystemError as error:
        raise OSError(error.errno, str(error)) from error


def _stat(attributes: Attributes) -> Stat:
    return Stat(
        attributes.ino,
        attributes.mode,
        attributes.nlink,
        attributes.uid,
        attributes.gid,
        attributes.rdev,
        attributes.size,
        attributes.atime_ns,
        attributes.mtime_ns,
        attributes.ctime_ns,
    )
