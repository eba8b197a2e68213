"""One set of path-based calls on three kinds of filesystem: the model, the core, and the kernel.

So that the same random operations can run on any two of them and their outcomes be compared, every
implementation behaves like the system calls on Linux made by root: final symlinks are not followed,
and errors are OSError.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from aspenfs import limits
from aspenfs.errors import FilesystemError
from aspenfs.types import ROOT_INO, AttributeChanges, Attributes, Context, FileHandle, Ino

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

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


# --- the kernel ----------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100


class KernelCalls:
    """Calls on a directory of this machine. Needs root, as the tests change owners."""

    def __init__(self, root: bytes) -> None:
        self._root = root

    def _path(self, path: Path) -> bytes:
        return b"/".join((self._root, *path))

    async def lstat(self, path: Path) -> Stat:
        return _kernel_stat(os.lstat(self._path(path)))

    async def mkdir(self, path: Path, mode: int) -> None:
        os.mkdir(self._path(path), mode)

    async def mknod(self, path: Path, mode: int, rdev: int) -> None:
        os.mknod(self._path(path), mode, rdev)

    async def symlink(self, path: Path, target: bytes) -> None:
        os.symlink(target, self._path(path))

    async def readlink(self, path: Path) -> bytes:
        return os.readlink(self._path(path))

    async def link(self, path: Path, new_path: Path) -> None:
        os.link(self._path(path), self._path(new_path), follow_symlinks=False)

    async def unlink(self, path: Path) -> None:
        os.unlink(self._path(path))

    async def rmdir(self, path: Path) -> None:
        os.rmdir(self._path(path))

    async def rename(self, path: Path, new_path: Path, flags: int) -> None:
        old, new = self._path(path), self._path(new_path)
        if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    async def listdir(self, path: Path) -> list[bytes]:
        return os.listdir(self._path(path))

    async def chmod(self, path: Path, mode: int) -> None:
        os.chmod(self._path(path), mode)

    async def chown(self, path: Path, uid: int, gid: int) -> None:
        os.chown(self._path(path), uid, gid, follow_symlinks=False)

    async def utime(self, path: Path, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._path(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    async def truncate(self, path: Path, size: int) -> None:
        os.truncate(self._path(path), size)

    async def setxattr(self, path: Path, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._path(path), name, value, flags, follow_symlinks=False)

    async def removexattr(self, path: Path, name: bytes) -> None:
        os.removexattr(self._path(path), name, follow_symlinks=False)

    async def getxattr(self, path: Path, name: bytes) -> bytes:
        return os.getxattr(self._path(path), name, follow_symlinks=False)

    async def xattrs(self, path: Path) -> dict[bytes, bytes]:
        full = self._path(path)
        return {
            os.fsencode(name): os.getxattr(full, name, follow_symlinks=False)
            for name in os.listxattr(full, follow_symlinks=False)
        }

    async def content(self, path: Path) -> bytes:
        """Read a file as the page cache has it, and again past the page cache."""
        handle = await self.open(path, os.O_RDONLY, 0)
        try:
            size = os.fstat(handle).st_size + 1
            cached = os.pread(handle, size, 0)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(handle, size, 0) == cached, f"{path!r}: the page cache is not true"
            return cached
        finally:
            os.close(handle)

    async def open(self, path: Path, flags: int, mode: int) -> int:
        return os.open(self._path(path), flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)

    async def pread(self, handle: int, size: int, offset: int) -> bytes:
        return os.pread(handle, size, offset)

    async def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        return os.pwrite(handle, data, offset)

    async def map_and_write(self, handle: int, data: bytes, offset: int) -> None:
        """Write through a shared mapping, as far as the file goes."""
        with mmap.mmap(handle, 0) as mapping:
            data = data[: max(0, len(mapping) - offset)]
            mapping[offset : offset + len(data)] = data
            mapping.flush()

    async def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    async def fstat(self, handle: int) -> Stat:
        return _kernel_stat(os.fstat(handle))

    async def fsync(self, handle: int) -> None:
        os.fsync(handle)

    async def close(self, handle: int) -> None:
        os.close(handle)


def _kernel_stat(result: os.stat_result) -> Stat:
    return Stat(
        result.st_ino,
        result.st_mode,
        result.st_nlink,
        result.st_uid,
        result.st_gid,
        result.st_rdev,
        result.st_size,
        result.st_atime_ns,
        result.st_mtime_ns,
        result.st_ctime_ns,
    )


# --- the core and the model ----------------------------------------------------------------------

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_MKDIR_NEVER = stat.S_ISUID | stat.S_ISGID  # mkdir(2) takes permissions and the sticky bit only


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
            fh = await self.filesystem.opendir((await self._walk(path)).ino)
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
            fh = await self.filesystem.open(attributes.ino, os.O_RDONLY)
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
                fh = await self.filesystem.open(attributes.ino, flags)
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
