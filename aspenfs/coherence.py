"""When this mount may believe its caches: what each level of consistency asks of each call.

docs/consistency.md states the promise. By default, whatever leads to an open passes a barrier: open
and opendir, and a lookup that a cache would answer; and an operation that fails for what the caches
say. Attributes may be as old as the feed is late.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeVar

from aspenfs import limits
from aspenfs.errors import FilesystemError
from aspenfs.inodes import Inodes
from aspenfs.known_inodes import KnownInodes
from aspenfs.types import CoherenceLevel, Ino
from aspenfs.watch import Watcher

T = TypeVar("T")

_TOLD_BY_CACHES: Final = frozenset(
    {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.ESTALE}
)
"""The errors that say what there is, and that a cache may cause which lags behind."""


class Lifetimes(NamedTuple):
    """For how many seconds a kernel may answer by itself: what it was told, it need not ask for.

    ``exact_s`` is for the entries over which it gets to no open: names that are missing, symlinks.
    """

    entry_s: float
    attributes_s: float
    exact_s: float


_NONE: Final = Lifetimes(0.0, 0.0, 0.0)
_TTL: Final = Lifetimes(limits.KERNEL_TTL_S, limits.KERNEL_TTL_S, limits.KERNEL_TTL_S)


class Coherence:
    """Passes barriers, at the calls where the level of this mount wants them.

    Args:
        level: what was promised.
        watcher: who follows the changes by others.
        inodes: reads.
        known: what the kernel was told.
        monotonic: the time in seconds.
    """

    def __init__(
        self,
        level: CoherenceLevel,
        watcher: Watcher,
        inodes: Inodes,
        known: KnownInodes,
        monotonic: Callable[[], float],
    ) -> None:
        """Take the parts that the mount composed."""
        self._level: Final = level
        self._watcher = watcher
        self._inodes = inodes
        self._known = known
        self._monotonic = monotonic

    def kernel_lifetimes(self) -> Lifetimes:
        """Return for how long a kernel may keep what it is told now."""
        if self._level is CoherenceLevel.TTL:
            return _TTL
        if self._level is CoherenceLevel.STRICT or not self._watcher.is_live:
            return _NONE
        return Lifetimes(
            limits.KERNEL_ENTRY_TIMEOUT_S,
            limits.KERNEL_ATTR_TIMEOUT_S,
            max(0.0, self._watcher.alone_for_s - limits.KERNEL_DELAY_S),
        )

    async def before_open(self, ino: Ino) -> None:
        """Let an open see all that was closed before, wherever; by whatever path it came.

        Raises:
            FilesystemError: ESTALE, a name that led to the inode means another now, of which the
                kernel may not have heard yet. Linux then walks the path again, asking at each step
                (LOOKUP_REVAL in fs/namei.c).
        """
        if await self._watcher.barrier() and self._watcher.heard_of_names:
            await self._require_names(ino)

    async def _require_names(self, ino: Ino) -> None:
        ways = self._known.ways_up(ino)
        entries = await self._inodes.entries([name for _, name in ways])
        now_s = self._monotonic()
        outdated = [
            name
            for (meant, name), entry in zip(ways, entries, strict=True)
            if (entry.dentry is None or entry.dentry.ino != meant)
            and self._known.is_used_still(meant, name, now_s)
        ]
        if outdated:
            raise FilesystemError(errno.ESTALE, f"a name of inode {ino} means another now")

    async def before_lookup(self, parent: Ino, name: bytes) -> None:
        """Let a lookup see what there is.

        A missing name may just have been made. And of one that exists nobody knows what Linux wants
        with it: it may be about to refuse to make it (LOOKUP_EXCL), to replace it, or to open it by
        a path that it walks anew. What no cache knows is read from the store, and is exact.
        """
        if self._level is CoherenceLevel.STRICT or self._inodes.cached_entry(parent, name):
            await self._watcher.barrier()

    async def before_getattr(self) -> None:
        """Let stat(2) see what there is, if that was promised."""
        if self._level is CoherenceLevel.STRICT:
            await self._watcher.barrier()

    async def before_locked_io(self) -> bool:
        """Let who has just locked a file see all that was committed before.

        Returns:
            False: what the caches have of it may be older, for changes cannot be followed now.
        """
        return await self._watcher.barrier()

    async def exactly(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Return what an operation returns; one that fails for what the caches say is tried again.

        Unless nothing was committed by others that the caches did not know of.

        Raises:
            FilesystemError: what the operation raised.
        """
        heard = self._watcher.heard_count
        try:
            return await operation()
        except FilesystemError as error:
            if error.errno not in _TOLD_BY_CACHES or not await self._watcher.barrier():
                raise
            if self._watcher.heard_count == heard:
                raise
        return await operation()
