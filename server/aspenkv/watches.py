"""Fan-out of commits to watches, and the history from which a watch resumes.

Publishing never waits for a watcher: each has a bounded backlog, and one that falls behind is told
that its events are lost. Everything here runs on the event loop's thread, so it needs no lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import trio

from aspenkv.contract import Change, DeleteRange, Newest, Op, Put, WatchEvent
from aspenkv.delegations import NOBODY, SERVER, Delegations, Origin, span_below, span_of
from aspenkv.errors import AspenKvError, ClosedError, TooManyError, WatchGapError
from aspenkv.limits import (
    DELEGATION_QUIET_S,
    HISTORY_BYTES_MAX,
    HISTORY_CHANGES_MAX,
    HISTORY_EVENTS_MAX,
    WATCH_BACKLOG_BYTES_MAX,
    WATCH_BACKLOG_EVENTS_MAX,
    WATCHES_MAX,
)
from aspenkv.ranges import prefix_end

_Part = bytes | tuple[bytes, bytes]
"""What history keeps of an operation: its key, or the bounds of its range. Never a value."""


class _Commit(NamedTuple):
    """What history keeps of a commit. ``size_bytes`` is that of all keys in ``parts``."""

    revision: int
    parts: Sequence[_Part]
    size_bytes: int
    origin: Origin
    at_s: float


class Watcher(NamedTuple):
    """Who opens a watch, and what he wants to see.

    Attributes:
        origin: the client.
        values: whether events hold what was put.
        skip_own: whether the client's own commits are left out.
        may_be_alone: whether a delegation may be granted. A client that a server which is started
            again does not know of must not have one: its promise would not be kept.
    """

    origin: Origin
    values: bool
    skip_own: bool
    may_be_alone: bool = True


class PrefixWatch:
    """One open watch; see :class:`aspenkv.contract.Watch`."""

    def __init__(
        self, hub: WatchHub, prefix: bytes, from_revision: int, watcher: Watcher, quiet_s: float
    ) -> None:
        """Make a watch with an empty backlog; the hub fills it.

        ``quiet_s``, on trio's clock, is since when no other client has committed below ``prefix``.
        """
        self.prefix = prefix
        self.watcher = watcher
        self.values = watcher.values
        self.skipped = watcher.origin if watcher.skip_own else NOBODY
        self.quiet_s = quiet_s
        self._hub = hub
        self._backlog: deque[WatchEvent] = deque()
        self._backlog_bytes = 0
        self._newest_revision = from_revision
        self._failure: AspenKvError | None = None
        self._failed_revision = 0
        self._idle = trio.lowlevel.ParkingLot()

    @property
    def revision(self) -> int:
        """Every commit up to this revision was handed out, or did not concern this watch."""
        if self._failure is not None:
            return self._failed_revision
        if self._backlog:
            return self._backlog[0].revision - 1
        return self._hub.revision

    async def newest(self) -> Newest:
        """See :meth:`aspenkv.contract.Watch.newest`."""
        if self._failure is not None:
            raise self._failure
        return Newest(self._newest_revision, self._hub.delegate(self))

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        """Iterate over the events."""
        return self

    async def __anext__(self) -> WatchEvent:
        """Return the next event, waiting for it.

        Raises:
            WatchGapError: events were lost because the watcher fell behind.
            ClosedError: the service was closed.
        """
        while not self._backlog:
            if self._failure is not None:
                raise self._failure
            await self._idle.park()
        event = self._backlog.popleft()
        if self.values:
            self._backlog_bytes -= _value_bytes(event)
        return event

    def push(self, event: WatchEvent) -> None:
        """Add an event, or fail if the backlog is full: the writer never waits."""
        if self._failure is not None:
            return
        if self.values:
            self._backlog_bytes += _value_bytes(event)
        if (
            len(self._backlog) >= WATCH_BACKLOG_EVENTS_MAX
            or self._backlog_bytes > WATCH_BACKLOG_BYTES_MAX
        ):
            self.fail(WatchGapError("the watcher fell behind and lost events: open a new watch"))
            return
        self._backlog.append(event)
        self._newest_revision = event.revision
        self._idle.unpark_all()

    def fail(self, failure: AspenKvError) -> None:
        """Drop the backlog; the iterator raises ``failure`` from now on."""
        if self._failure is None:
            self._failed_revision = self.revision
            self._failure = failure
        self._backlog.clear()
        self._idle.unpark_all()


class WatchHub:
    """All watches of a service, and the newest commits. Bounded by the limits it imports."""

    def __init__(self, revision: int, delegations: Delegations) -> None:
        """Start with no history: commits up to ``revision`` are not known.

        ``delegations`` is where promises are kept; the hub decides who is alone.
        """
        self.revision = revision
        self._delegations = delegations
        self._history: deque[_Commit] = deque()
        self._history_parts = 0
        self._history_bytes = 0
        self._history_floor = revision
        self._forgotten_s = float("-inf")  # when the newest commit was made that history dropped
        self._watches: dict[bytes, list[PrefixWatch]] = {}
        self._count = 0

    def count(self, prefix: bytes) -> int:
        """Return how many watches are open below ``prefix``."""
        return sum(
            len(watches) for watched, watches in self._watches.items() if watched.startswith(prefix)
        )

    def publish(self, revision: int, ops: Sequence[Op], origin: Origin) -> None:
        """Record a commit and hand it to the watches it concerns. Called in order of revision."""
        keys = [op[0] for op in ops]
        parts: Sequence[_Part] = keys
        size_bytes = sum(map(len, keys))
        if DeleteRange in map(type, ops):
            parts = [(op.start, op.end) if isinstance(op, DeleteRange) else op.key for op in ops]
            size_bytes += sum(len(op.end) for op in ops if isinstance(op, DeleteRange))
        self.revision = revision
        now_s = trio.current_time()
        self._remember(_Commit(revision, parts, size_bytes, origin, now_s))
        for prefix, watches in self._watches.items():
            for watch in watches:
                if watch.skipped is not origin:
                    changes = _changes(parts, prefix, ops if watch.values else None)
                    if changes:
                        watch.push(WatchEvent(revision, changes))
                        if origin is not watch.watcher.origin and origin is not SERVER:
                            watch.quiet_s = now_s

    def delegate(self, watch: PrefixWatch) -> float:
        """Return for how long the client of a watch is promised to be alone, in seconds.

        It is if nobody else watches what it watches, and nobody else has committed there for
        DELEGATION_QUIET_S: who has is active, and would be held up again and again.
        """
        watcher, now_s = watch.watcher, trio.current_time()
        if (
            not watcher.may_be_alone
            or now_s < watch.quiet_s + DELEGATION_QUIET_S
            or self._is_watched_by_others(watch)
        ):
            return 0.0
        return self._delegations.grant(watcher.origin, watch.prefix, now_s)

    def disturb(self, origin: Origin, ops: Sequence[Op]) -> None:
        """Note that a client is about to commit, whether or not that comes about."""
        span = span_of(ops)
        for prefix, watches in self._watches.items():
            if span.meets(span_below(prefix)):
                for watch in watches:
                    if watch.watcher.origin is not origin:
                        watch.quiet_s = trio.current_time()

    @contextmanager
    def open(
        self, prefix: bytes, from_revision: int | None, watcher: Watcher
    ) -> Iterator[PrefixWatch]:
        """Open a watch, filled with the history above ``from_revision``, and close it at the end.

        Raises:
            TooManyError: WATCHES_MAX watches are open.
            WatchGapError: history does not reach back to ``from_revision``, or is not yet there.
        """
        if self._count >= WATCHES_MAX:
            raise TooManyError(f"{WATCHES_MAX} watches are open: close some")
        start = self.revision if from_revision is None else from_revision
        quiet_s = self._quiet_s(prefix, watcher.origin)
        watch = PrefixWatch(self, prefix, start, watcher, quiet_s)
        if from_revision is not None:
            self._replay(watch, from_revision)
        self._count += 1
        self._watches.setdefault(prefix, []).append(watch)
        try:
            yield watch
        finally:
            self._count -= 1
            self._watches[prefix].remove(watch)
            if not self._watches[prefix]:
                del self._watches[prefix]
            watch.fail(ClosedError("the watch was closed"))

    def close(self) -> None:
        """End every watch: its iterator raises ClosedError."""
        for watches in self._watches.values():
            for watch in watches:
                watch.fail(ClosedError("the service was closed: connect again"))

    def _remember(self, commit: _Commit) -> None:
        history = self._history
        history.append(commit)
        self._history_parts += len(commit.parts)
        self._history_bytes += commit.size_bytes
        while (
            len(history) > HISTORY_EVENTS_MAX
            or self._history_parts > HISTORY_CHANGES_MAX
            or self._history_bytes > HISTORY_BYTES_MAX
        ):
            dropped = history.popleft()
            self._history_floor, self._forgotten_s = dropped.revision, dropped.at_s
            self._history_parts -= len(dropped.parts)
            self._history_bytes -= dropped.size_bytes

    def _replay(self, watch: PrefixWatch, from_revision: int) -> None:
        if not self._history_floor <= from_revision <= self.revision:
            raise WatchGapError(
                f"revision {from_revision} is not among the known {self._history_floor} to "
                f"{self.revision}: read anew, then watch from the revision of that read"
            )
        for commit in self._history:
            if commit.revision > from_revision and commit.origin is not watch.skipped:
                changes = _changes(commit.parts, watch.prefix, None)
                if changes:
                    watch.push(WatchEvent(commit.revision, changes))

    def _quiet_s(self, prefix: bytes, origin: Origin) -> float:
        """Return since when, at the latest, nobody else has committed below a prefix."""
        long_ago_s = trio.current_time() - DELEGATION_QUIET_S
        for commit in reversed(self._history):
            if commit.at_s <= long_ago_s:
                return commit.at_s
            is_foreign = commit.origin is not origin and commit.origin is not SERVER
            if is_foreign and _changes(commit.parts, prefix, None):
                return commit.at_s
        return self._forgotten_s

    def _is_watched_by_others(self, watch: PrefixWatch) -> bool:
        return any(
            other.watcher.origin is not watch.watcher.origin
            for prefix, watches in self._watches.items()
            if prefix.startswith(watch.prefix) or watch.prefix.startswith(prefix)
            for other in watches
        )


def _changes(parts: Sequence[_Part], prefix: bytes, ops: Sequence[Op] | None) -> tuple[Change, ...]:
    """Return the changes below ``prefix``, ranges cut to it; with the values that ``ops`` put."""
    changes: list[Change] = []
    for index, part in enumerate(parts):
        if isinstance(part, tuple):
            start, end = max(part[0], prefix), _cut(part[1], prefix)
            if start < end:
                changes.append(Change(start, end, None))
        elif part.startswith(prefix):
            op = None if ops is None else ops[index]
            value = bytes(op.value) if isinstance(op, Put) else None
            changes.append(Change(part, None, value))
    return tuple(changes)


def _cut(end: bytes, prefix: bytes) -> bytes:
    """Return the smaller of ``end`` and the end of the keys that start with ``prefix``."""
    last = prefix_end(prefix)
    return end if last is None else min(end, last)


def _value_bytes(event: WatchEvent) -> int:
    return sum(len(change.value) for change in event.changes if change.value is not None)
