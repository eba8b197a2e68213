"""fcntl(2) and flock(2) in the terms of :mod:`aspenfs.locks`."""

from __future__ import annotations

import errno
import fcntl
from typing import NamedTuple

from aspenfs.errors import FilesystemError
from aspenfs.lock_records import OFFSET_MAX, FileLock
from aspenfs.locks import Locks
from aspenfs.types import FileHandle, Ino


class FoundLock(NamedTuple):
    """A lock as F_GETLK shows it. ``pid`` is 0 for one of another mount, where it means nothing."""

    kind: int
    start: int
    end: int
    pid: int


class LockCalls:
    """The calls of one mount's processes. An owner is the kernel's number for who holds a lock.

    A ``kind`` is F_RDLCK, F_WRLCK or F_UNLCK; a range is from byte ``start`` to byte ``end``, both
    included, and OFFSET_MAX is the end of the file, wherever that is.
    """

    def __init__(self, locks: Locks) -> None:
        """Take the mount's locks."""
        self._locks = locks

    async def getlk(
        self, ino: Ino, owner: int, kind: int, start: int, end: int, pid: int
    ) -> FoundLock | None:
        """Return a lock that is in the way of another, or None.

        Raises:
            FilesystemError: EINVAL.
        """
        wanted = self._wanted(owner, kind, start, end, pid)
        found = await self._locks.conflicting(ino, wanted)
        if found is None:
            return None
        is_own = found.owner.session == wanted.owner.session
        kind = fcntl.F_WRLCK if found.is_write else fcntl.F_RDLCK
        return FoundLock(kind, found.start, found.end, found.pid if is_own else 0)

    async def setlk(
        self,
        ino: Ino,
        fh: FileHandle,
        owner: int,
        kind: int,
        start: int,
        end: int,
        pid: int,
        *,
        wait: bool,
    ) -> bool:
        """Take, change or give back a range; see :meth:`Locks.lock` and :meth:`Locks.unlock`.

        Raises:
            FilesystemError: EAGAIN, EDEADLK, ENOLCK, EINVAL.
        """
        wanted = self._wanted(owner, kind, start, end, pid)
        if kind != fcntl.F_UNLCK:
            return await self._locks.lock(ino, fh, wanted, wait=wait)
        await self._locks.unlock(ino, wanted.owner, start, end)
        return True

    async def flock(self, ino: Ino, fh: FileHandle, owner: int, operation: int) -> bool:
        """Take, change or give back a BSD lock.

        Raises:
            FilesystemError: EAGAIN, ENOLCK, EINVAL.
        """
        who = self._locks.owner(owner, is_flock=True)
        if operation & fcntl.LOCK_UN:
            await self._locks.unlock(ino, who, 0, OFFSET_MAX)
            return True
        is_write = bool(operation & fcntl.LOCK_EX)
        if is_write == bool(operation & fcntl.LOCK_SH):
            raise FilesystemError(errno.EINVAL)
        wanted = FileLock(who, is_write, 0, OFFSET_MAX, 0)
        return await self._locks.lock(ino, fh, wanted, wait=not operation & fcntl.LOCK_NB)

    def _wanted(self, owner: int, kind: int, start: int, end: int, pid: int) -> FileLock:
        if kind not in {fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK}:
            raise FilesystemError(errno.EINVAL, f"lock of kind {kind}")
        if not 0 <= start <= end <= OFFSET_MAX:
            raise FilesystemError(errno.EINVAL, f"lock from {start} to {end}")
        who = self._locks.owner(owner, is_flock=False)
        return FileLock(who, kind == fcntl.F_WRLCK, start, end, pid)
