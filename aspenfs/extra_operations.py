"""Answers what pyfuse3 has no handlers for: locks, and calls on ranges of files. No policy."""

from __future__ import annotations

import fcntl
import logging

import trio

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.fuse_extension import Handlers
from aspenfs.kernel_notifier import KernelNotifier
from aspenfs.keys import ParsedKey
from aspenfs.types import FileHandle, Ino

log = logging.getLogger(__name__)


class ExtraOperations(Handlers):
    """Serves the requests of :class:`aspenfs.fuse_extension.FuseExtension` from a filesystem.

    Who has taken a lock must see what was written under it before, on whatever mount. So the kernel
    has dropped its own older copies of the file before it is told that the lock is taken.

    Args:
        filesystem: what is served.
        notifier: makes the kernel drop its copies.
    """

    def __init__(self, filesystem: Filesystem, notifier: KernelNotifier) -> None:
        """Serve from the filesystem."""
        self._fs = filesystem
        self._notifier = notifier

    async def getlk(
        self, ino: int, fh: int, owner: int, kind: int, start: int, end: int, pid: int
    ) -> tuple[int, int, int, int] | None:
        """See Filesystem.getlk."""
        return await self._fs.getlk(Ino(ino), FileHandle(fh), owner, kind, start, end, pid)

    async def setlk(
        self,
        ino: int,
        fh: int,
        owner: int,
        kind: int,
        start: int,
        end: int,
        pid: int,
        wait: bool,
    ) -> None:
        """See Filesystem.setlk."""
        is_fresh = await self._fs.setlk(
            Ino(ino), FileHandle(fh), owner, kind, start, end, pid, wait
        )
        if kind != fcntl.F_UNLCK:
            await self._let_kernel_see(Ino(ino), is_fresh=is_fresh)

    async def flock(self, ino: int, fh: int, owner: int, operation: int) -> None:
        """See Filesystem.flock."""
        is_fresh = await self._fs.flock(Ino(ino), FileHandle(fh), owner, operation)
        if not operation & fcntl.LOCK_UN:
            await self._let_kernel_see(Ino(ino), is_fresh=is_fresh)

    async def fallocate(self, ino: int, fh: int, mode: int, offset: int, length: int) -> None:
        """See Filesystem.fallocate."""
        await self._fs.fallocate(Ino(ino), FileHandle(fh), mode, offset, length)

    async def lseek(self, ino: int, fh: int, offset: int, whence: int) -> int:
        """See Filesystem.lseek."""
        return await self._fs.lseek(Ino(ino), FileHandle(fh), offset, whence)

    async def copy_file_range(
        self,
        from_ino: int,
        from_fh: int,
        from_offset: int,
        to_ino: int,
        to_fh: int,
        to_offset: int,
        length: int,
        flags: int,
    ) -> int:
        """See Filesystem.copy_file_range."""
        return await self._fs.copy_file_range(
            Ino(from_ino),
            FileHandle(from_fh),
            from_offset,
            Ino(to_ino),
            FileHandle(to_fh),
            to_offset,
            length,
            flags,
        )

    async def _let_kernel_see(self, ino: Ino, *, is_fresh: bool) -> None:
        """Return when the kernel has dropped what is older than a lock that was just taken.

        Shielded: the lock is held, so its caller must not be told otherwise. The kernel takes its
        time only while it reads pages of the file that have to be dropped.
        """
        if not is_fresh:
            self._notifier.changed(ParsedKey("C", ino))
        with trio.CancelScope(shield=True):
            for _ in range(limits.LOCK_SETTLES_MAX):
                if await self._notifier.settle(ino):
                    return
        log.warning("the kernel keeps older pages of inode %d, which was locked", ino)
