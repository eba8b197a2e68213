"""The calls, made by the kernel on a directory of this machine."""

from __future__ import annotations

import ctypes
import mmap
import os

from tests.model.calls import Path, Stat

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
