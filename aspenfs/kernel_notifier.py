"""Tells the kernel what others changed, so that it drops its own copies.

A call to the kernel can block: dropping pages waits for reads of them that we may still have to
answer, dropping an entry for the lock of its directory. So they run in threads, entries apart from
inodes, and nobody waits for them without a bound.
"""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import trio

from aspenfs import limits
from aspenfs.keys import ParsedKey
from aspenfs.known_inodes import Name
from aspenfs.types import Ino

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

_ATTRIBUTES_ONLY = frozenset({"I.meta", "X"})
_PAGES_TOO = frozenset({"I", "C"})


class _Lane(Generic[K]):
    """What waits to be told of one kind, in the order of the changes, and what is being told.

    The flag of a key says more of what to drop; of several, the one that drops most counts.
    """

    def __init__(self, tell: Callable[[K, bool], None]) -> None:
        self._tell = tell
        self._waiting: dict[K, bool] = {}
        self._being_told: list[dict[K, bool]] = []
        self._came = trio.Event()
        self._went = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: K, *, flag: bool) -> None:
        self._waiting[key] = flag or self._waiting.get(key, False)
        self._came.set()

    def replace(self, keys: Iterable[K]) -> None:
        self._waiting = dict.fromkeys(keys, True)
        self._came.set()

    def holds(self, key: K) -> bool:
        return key in self._waiting or any(key in batch for batch in self._being_told)

    async def settle(self, key: K) -> None:
        """Return when nothing that was added of a key before is left, and tell that first."""
        while self.holds(key):
            if key in self._waiting:
                self._waiting = {key: self._waiting.pop(key)} | self._waiting
            await self._went.park()

    async def run(self) -> None:
        while True:
            if not self._waiting:
                self._came = trio.Event()
                await self._came.wait()
                continue
            batch: dict[K, bool] = {}
            for key in self._waiting:
                batch[key] = self._waiting[key]
                if len(batch) == limits.KERNEL_BATCH_MAX:
                    break
            for key in batch:
                del self._waiting[key]
            self._being_told.append(batch)
            try:
                await trio.to_thread.run_sync(self._tell_all, batch)
            finally:
                self._being_told.remove(batch)
                self._went.unpark_all()

    def _tell_all(self, batch: dict[K, bool]) -> None:
        for key, flag in batch.items():
            try:
                self._tell(key, flag)
            except OSError as error:
                # ENOENT: the kernel knew nothing of it; ENOTCONN: it is being unmounted.
                if error.errno not in {errno.ENOENT, errno.ENOTCONN}:
                    log.warning("the kernel could not be told of a change: %s", error)


class KernelNotifier:
    """Passes changes by others on to the kernel of one mount.

    Args:
        drop_inode: let the kernel drop an inode's attributes, and its pages if the flag says so.
        drop_entry: let the kernel drop a directory entry.
        known: all inodes and all names that the kernel may have kept. What waits is bounded by
            these and KERNEL_INVALIDATIONS_MAX.
    """

    def __init__(
        self,
        drop_inode: Callable[[Ino, bool], None],
        drop_entry: Callable[[Name], None],
        known: Callable[[], tuple[Iterable[Ino], Iterable[Name]]],
    ) -> None:
        """Have nothing to tell yet."""
        self._inodes = _Lane[Ino](drop_inode)
        self._entries = _Lane[Name](lambda name, _flag: drop_entry(name))
        self._known = known
        self._changed_at_s: OrderedDict[Ino, float] = OrderedDict()
        self._added = 0  # since everything was taken for changed, or nothing was left

    def changed(self, key: ParsedKey | None) -> None:
        """Take what another client changed; None: anything may have changed. Never blocks.

        When too much waits, everything that the kernel knows is taken for changed instead.
        """
        if not self._inodes and not self._entries:
            self._added = 0
        self._added += 1
        if key is None or self._added > limits.KERNEL_INVALIDATIONS_MAX:
            self._added = 0
            inodes, names = self._known()
            self._inodes.replace(inodes)
            self._entries.replace(names)
        elif key.kind == "D":
            self._entries.add(Name(key.ino, key.name), flag=True)
        elif key.kind in _ATTRIBUTES_ONLY | _PAGES_TOO:
            self._inodes.add(key.ino, flag=key.kind in _PAGES_TOO)
            self._changed_at_s.pop(key.ino, None)
            self._changed_at_s[key.ino] = trio.current_time()
            if len(self._changed_at_s) > limits.KERNEL_CHANGING_MAX:
                self._changed_at_s.popitem(last=False)

    def is_changing(self, ino: Ino) -> bool:
        """Return whether others have changed an inode a moment ago, and so may go on."""
        changed_at_s = self._changed_at_s.get(ino, float("-inf"))
        return trio.current_time() - changed_at_s < limits.KERNEL_CHANGING_S

    async def settle(self, ino: Ino) -> bool:
        """Return once the kernel knows what was changed of an inode.

        Returns:
            False: it still did not after KERNEL_SETTLE_S.
        """
        if not self._inodes.holds(ino):
            return True
        with trio.move_on_after(limits.KERNEL_SETTLE_S):
            await self._inodes.settle(ino)
            return True
        return False

    async def run(self) -> None:
        """Tell the kernel, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(limits.KERNEL_THREADS):
                nursery.start_soon(self._inodes.run)
                nursery.start_soon(self._entries.run)
