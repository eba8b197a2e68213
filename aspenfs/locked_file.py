"""One inode with locks, as one mount knows it: what it holds, what others hold, and who waits.

What this mount holds is decided here; the store's record of it follows. Who waits does so in a
queue of all mounts: one that others must know of takes a ticket with the number after the last that
it sees, as in the bakery of Lamport ("A New Solution of Dijkstra's Concurrent Programming Problem",
1974). Those who take the same number at the same moment come in the order of sessions. So each
knows its place, and can be overtaken by those only that came within a round trip.

No method awaits; the time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Final, NamedTuple

import trio

from aspenfs import limits
from aspenfs.keys import Keys, range_end
from aspenfs.lock_ranges import conflict, in_the_way
from aspenfs.lock_records import FileLock, LockOwner, LockRecord, LockWaiter, encode_locks
from aspenfs.types import FileHandle, Ino, SessionId
from aspenkv.contract import Check, RangeEmpty, RevisionIs

ABSENT: Final = b""
"""Stands for a record that does not exist; none that does is empty."""

_NOTHING: Final = encode_locks(())


class Waiter:
    """A request of this mount that cannot be granted yet. ``ticket`` 0: others know nothing of it.

    ``yields_until_s``: until when it leaves what is free to those who came before it.
    """

    __slots__ = ("ticket", "wanted", "yields_until_s")

    def __init__(self, wanted: FileLock) -> None:
        """Come without a ticket."""
        self.wanted: Final = wanted
        self.ticket = 0
        self.yields_until_s = float("inf")


class Obstacles(NamedTuple):
    """Why a request must wait: locks, and waiters that came first.

    ``are_of_others``: some are of other mounts, which must know of the request to keep its place.
    """

    holders: list[FileLock]
    waiters: list[FileLock]
    are_of_others: bool

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self.holders or self.waiters)


class OtherRecord(NamedTuple):
    """What another session holds and waits for, and the commit that wrote it."""

    revision: int
    record: LockRecord


class LockedFile:
    """What one mount knows of the locks on one inode.

    ``lock`` is held by the one task that commits this mount's record.
    """

    __slots__ = (
        "changes",
        "handles",
        "held",
        "ino",
        "is_outdated",
        "kept_until_s",
        "key",
        "lock",
        "moved",
        "others",
        "prefix",
        "revision",
        "session",
        "stored",
        "users",
        "waiters",
    )

    def __init__(self, keys: Keys, ino: Ino, session: SessionId) -> None:
        """Assume that nobody has a lock; a commit will tell if that is wrong."""
        self.ino: Final = ino
        self.session: Final = session
        self.key: Final = keys.locks(ino, session)
        self.prefix: Final = keys.locks_of_all(ino)
        self.lock = trio.Lock()
        self.held: tuple[FileLock, ...] = ()
        self.waiters: list[Waiter] = []  # in the order of their coming
        self.handles: dict[FileHandle, set[LockOwner]] = {}  # who locked through which
        self.stored: bytes | None = ABSENT  # this mount's record; None: a commit of it is in doubt
        self.revision = 0  # that wrote it
        self.kept_until_s = float("-inf")  # the record is not removed, lest a late commit passes
        self.others: dict[bytes, OtherRecord] = {}  # as last read
        self.is_outdated = False  # they have changed since
        self.moved = trio.lowlevel.ParkingLot()  # waiters, until something changes
        self.changes = 0
        self.users = 0  # tasks at work on it

    def wake(self) -> None:
        """Let all waiters look again."""
        self.changes += 1
        self.moved.unpark_all()

    # --- this mount's record --------------------------------------------------------------------

    def tickets(self, *, without: Waiter | None = None) -> list[LockWaiter]:
        """Return this mount's waiters that others know of."""
        return [
            LockWaiter(each.wanted, each.ticket)
            for each in self.waiters
            if each.ticket and each is not without
        ]

    def due(self, now_s: float) -> bytes:
        """Return what this mount's record should be; or ABSENT."""
        tickets = self.tickets()
        if self.held or tickets:
            return encode_locks(self.held, tickets)
        return _NOTHING if now_s < self.kept_until_s else ABSENT

    def is_settled(self, now_s: float) -> bool:
        """Return whether the store's record says what this mount has."""
        return self.stored == self.due(now_s)

    def note_read(self, revision: int, value: bytes) -> None:
        """Take note of what the store has as this mount's record."""
        self.stored = value
        self.revision = revision

    def note_stored(self, value: bytes, revision: int) -> None:
        """Take note of a commit of this mount's record."""
        self.stored = value
        self.revision = revision if value else 0

    def note_doubt(self, now_s: float) -> None:
        """Take note of a commit of which nobody knows whether it is done, or will be.

        It checks the revision that its record had. So the next commit of that makes it fail for
        good, unless both begin and end with no record: that one has to stay for a while.
        """
        if self.stored == ABSENT:
            self.kept_until_s = now_s + limits.LATE_COMMIT_S
        self.stored = None

    # --- all records ----------------------------------------------------------------------------

    def checks(self) -> list[Check]:
        """Return what must hold for the records of all others to be those last read."""
        checks: list[Check] = []
        start = self.prefix
        for key in sorted((self.key, *self.others)):
            checks.append(RangeEmpty(start, key))
            if key != self.key:
                checks.append(RevisionIs(key, self.others[key].revision))
            start = key + b"\0"
        checks.append(RangeEmpty(start, range_end(self.prefix)))
        return checks

    def holders_in_the_way(self, wanted: FileLock) -> list[FileLock]:
        """Return all locks that cannot be held together with a wanted one."""
        holders = in_the_way(self.held, wanted)
        for other in self.others.values():
            holders += in_the_way(other.record.held, wanted)
        return holders

    def next_ticket(self) -> int:
        """Return the ticket after the last that any session has taken."""
        return 1 + max((each.ticket for each in self.queue()), default=0)

    def queue(self) -> Iterator[LockWaiter]:
        """Iterate over the waiters of all sessions that have a ticket, in no order."""
        for other in self.others.values():
            yield from other.record.waiters
        yield from self.tickets()

    def obstacles(self, waiter: Waiter, *, in_turn: bool, now_s: float) -> Obstacles:
        """Return why a request must wait.

        Args:
            waiter: the request, which may be in the queue already.
            in_turn: leave what is free to those who came before it, for LOCK_YIELD_S at most: one
                of them may itself wait for this request's owner elsewhere, or its mount stand
                still. Else a request takes what is free, as one that does not wait may.
            now_s: the time.
        """
        wanted = waiter.wanted
        holders = self.holders_in_the_way(wanted)
        first = self._first(waiter) if in_turn else []
        if holders or not first:
            waiter.yields_until_s = float("inf")
        elif waiter.yields_until_s == float("inf"):
            waiter.yields_until_s = now_s + limits.LOCK_YIELD_S
        elif now_s >= waiter.yields_until_s:
            first = []
        others = any(lock.owner.session != self.session for lock in (*holders, *first))
        return Obstacles(holders, first, others)

    def before(self, waiter: Waiter) -> list[FileLock]:
        """Return the requests of all sessions in the queue before a waiter's."""
        if not waiter.ticket:
            return [each.wanted for each in self.queue()]
        place = waiter.ticket, self.session
        return [
            each.wanted for each in self.queue() if (each.ticket, each.wanted.owner.session) < place
        ]

    def _first(self, waiter: Waiter) -> list[FileLock]:
        """Return the requests whose turn is before a waiter's, and which it must not overtake.

        Those with a ticket come before those without. Who already has a lock that a request waits
        for may overtake it, for it would wait for itself.
        """
        wanted, before = waiter.wanted, self.before(waiter)
        if not waiter.ticket:
            came_before = takewhile(lambda own: own is not waiter, self.waiters)
            before += [own.wanted for own in came_before if not own.ticket]
        mine = [lock for lock in self.held if lock.owner == wanted.owner]
        return [each for each in in_the_way(before, wanted) if not _stops(mine, each)]


def _stops(locks: list[FileLock], request: FileLock) -> bool:
    return any(conflict(lock, request) for lock in locks)
