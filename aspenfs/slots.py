"""The slots in which this client sends its commits, so that each is carried out at most once.

As in NFSv4.1 (RFC 8881 §2.10.6): a commit holds a slot from its first try to its last and carries
the slot's next sequence number in all of them. The server remembers the last answer of each slot,
so a commit that is sent again gets the first answer. The next commit in the slot has a higher
number; once the server has seen that, it refuses what may still be on its way of the older one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from aspenfs.limits import KV_SLOTS_MAX, POOL_WAITING_MAX
from aspenkv.contract import SlotUse
from aspenkv.errors import BusyError, UnavailableError


class _Waiter:
    """A commit that waits for a slot."""

    __slots__ = ("given", "slot")

    def __init__(self) -> None:
        self.given = trio.Event()
        self.slot: int | None = None


class Slots:
    """The slots that are free, the commits that wait for one, and the sequence number of each."""

    def __init__(self) -> None:
        """Begin with one slot, which every server has; :meth:`resize` says how many there are."""
        self._count = 1
        self._free = [0]  # a heap: low slots first, so that the server keeps few
        self._held: set[int] = set()
        self._sequences = [0]
        self._waiting: deque[_Waiter] = deque()

    @property
    def in_use(self) -> int:
        """How many commits hold a slot."""
        return len(self._held)

    def resize(self, slots_max: int) -> None:
        """Follow the number of slots that a server keeps for this client.

        Sequence numbers never start again: a server that knows nothing of a slot takes any.
        """
        self._count = max(1, min(slots_max, KV_SLOTS_MAX))
        self._sequences += [0] * (self._count - len(self._sequences))
        self._free = [slot for slot in range(self._count) if slot not in self._held]
        self._hand_out()

    @asynccontextmanager
    async def take(self, deadline_s: float) -> AsyncIterator[SlotUse]:
        """Hold a slot for one commit, in the order of asking, with its next sequence number.

        Args:
            deadline_s: until when to wait for one, on trio's clock.

        Raises:
            UnavailableError: other commits held all slots until then.
            BusyError: too many commits wait already.
        """
        slot = await self._acquire(deadline_s)
        try:
            self._sequences[slot] += 1
            yield SlotUse(slot, self._sequences[slot])
        finally:
            self._release(slot)

    async def _acquire(self, deadline_s: float) -> int:
        if self._free and not self._waiting:
            return self._hold()
        if len(self._waiting) >= POOL_WAITING_MAX:
            raise BusyError(f"{POOL_WAITING_MAX} commits wait for others to end")
        waiter = _Waiter()
        self._waiting.append(waiter)
        try:
            with trio.move_on_at(deadline_s):
                await waiter.given.wait()
        except BaseException:
            if waiter.slot is not None:  # given, and cancelled before it could run
                self._release(waiter.slot)
            raise
        finally:
            if waiter.slot is None:
                self._waiting.remove(waiter)
        if waiter.slot is None:
            raise UnavailableError("other commits wait for the server in all slots")
        return waiter.slot

    def _hold(self) -> int:
        slot = heapq.heappop(self._free)
        self._held.add(slot)
        return slot

    def _release(self, slot: int) -> None:
        self._held.remove(slot)
        if slot < self._count:
            heapq.heappush(self._free, slot)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            waiter = self._waiting.popleft()
            waiter.slot = self._hold()
            waiter.given.set()
