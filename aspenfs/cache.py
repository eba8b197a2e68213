"""The caches: bounded, with a time to live, and never older than an event seen.

A cache answers with what a read of the store could have answered: the value as of some moment not
longer ago than its time to live or, while a watch is live, as of the last event handed to it. What
makes that hold is the order of things, so every store into a cache says where its value comes from:

* :meth:`TtlCache.put` after an own commit, with the revision of that commit;
* :meth:`TtlCache.fill` after a read, with a token taken before that read began. A read that was
  under way when its key changed is dropped, because it may have seen the state before the change.

Pure and synchronous: no method awaits, so no other task sees a cache half changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from cachetools import LRUCache

from aspenfs import limits
from aspenfs.keys import range_end

V = TypeVar("V")

MetaValue = object
"""An inode, times or dentry record, or the fact that there is none. The readers define it."""

ScanValue = object
"""A page of a directory. The readers define it."""

_UNKNOWN_REVISION: Final = 0


class CacheStatistics(NamedTuple):
    """A snapshot of one cache. ``entries`` and ``bytes`` include entries past their TTL."""

    hits: int
    misses: int
    entries: int
    bytes: int


class _Entry(NamedTuple, Generic[V]):
    """A cached value, and what decides whether another may replace it."""

    value: V
    revision: int
    stored_at_s: float
    sequence: int
    size_bytes: int


class _RangeEvent(NamedTuple):
    """Everything in ``[start, end)`` changed in ``revision``, or in an unknown one."""

    sequence: int
    revision: int
    start: bytes
    end: bytes


class _EventRecord:
    """The recent changes, so that a value read or committed before one is known to be too old.

    Bounded: what is forgotten raises two floors, and a value from below a floor is refused, since
    nobody can tell any more whether it is too old. That costs a miss, never a wrong answer.
    """

    def __init__(self) -> None:
        """Start with no changes."""
        self._keys: dict[bytes, tuple[int, int]] = {}  # key -> sequence, revision; oldest first
        self._ranges: deque[_RangeEvent] = deque()
        self._ranges_revision_max = _UNKNOWN_REVISION
        self._sequence_floor = 0
        self._revision_floor = _UNKNOWN_REVISION

    def add_key(self, key: bytes, sequence: int, revision: int) -> None:
        """Record that ``key`` changed."""
        earlier = self._keys.pop(key, None)
        if earlier is not None:
            revision = max(revision, earlier[1])
        self._keys[key] = (sequence, revision)
        if len(self._keys) > limits.CACHE_EVENT_KEYS_MAX:
            oldest = next(iter(self._keys))
            self.forget_before(*self._keys.pop(oldest))

    def add_range(self, start: bytes, end: bytes, sequence: int, revision: int) -> None:
        """Record that everything in ``[start, end)`` changed."""
        self._ranges.append(_RangeEvent(sequence, revision, start, end))
        self._ranges_revision_max = max(self._ranges_revision_max, revision)
        if len(self._ranges) > limits.CACHE_EVENT_RANGES_MAX:
            oldest = self._ranges.popleft()
            self.forget_before(oldest.sequence, oldest.revision)

    def forget_before(self, sequence: int, revision: int) -> None:
        """Refuse from now on what is not newer than this: the record no longer knows about it."""
        self._sequence_floor = max(self._sequence_floor, sequence)
        self._revision_floor = max(self._revision_floor, revision)

    def changed_since(self, key: bytes, token: int) -> bool:
        """Return whether ``key`` changed, or may have, after ``token`` was handed out."""
        if token < self._sequence_floor or self._keys.get(key, (0, 0))[0] > token:
            return True
        for event in reversed(self._ranges):
            if event.sequence <= token:
                return False
            if event.start <= key < event.end:
                return True
        return False

    def changed_above(self, key: bytes, revision: int) -> bool:
        """Return whether ``key`` changed, or may have, in a commit above ``revision``."""
        if revision < self._revision_floor or self._keys.get(key, (0, 0))[1] > revision:
            return True
        return revision < self._ranges_revision_max and any(
            event.revision > revision and event.start <= key < event.end for event in self._ranges
        )


class TtlCache(Generic[V]):
    """Least recently used values by key, each for at most ``ttl_s`` unless the cache is live.

    Args:
        ttl_s: how many seconds an entry answers after it was stored.
        entries_max: how many entries are kept.
        bytes_max: how many bytes of values are kept, by ``size_of``; None for no such bound.
        clock: monotonic seconds.
        size_of: the bytes that a value counts for; needed with ``bytes_max``. None: 0 each.
    """

    def __init__(
        self,
        *,
        ttl_s: float,
        entries_max: int,
        bytes_max: int | None = None,
        clock: Callable[[], float],
        size_of: Callable[[V], int] | None = None,
    ) -> None:
        """Make an empty cache that is not live."""
        if bytes_max is not None and size_of is None:
            raise ValueError("bytes_max needs size_of")
        self._ttl_s = ttl_s
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._clock = clock
        self._size_of = size_of
        self._live = False
        self._live_until_s = float("-inf")
        self._entries: LRUCache[bytes, _Entry[V]] = LRUCache(entries_max)
        self._bytes = 0
        self._sequence = 0  # counts events and stores; an order, not a time
        self._events = _EventRecord()
        self._hits = 0
        self._misses = 0

    def get(self, key: bytes) -> V | None:
        """Return the cached value; None if there is none or it is past its TTL."""
        try:
            entry = self._entries[key]
        except KeyError:
            self._misses += 1
            return None
        if not self._live:
            right_at_s = max(entry.stored_at_s, self._live_until_s)
            if self._clock() - right_at_s >= self._ttl_s:
                self._remove(key)
                self._misses += 1
                return None
        self._hits += 1
        return entry.value

    def put(self, key: bytes, value: V, revision: int) -> None:
        """Store what ``key`` holds since the commit ``revision``: an own commit or a watch event.

        Nothing is stored if a newer revision is cached or was reported; a fill under way is dropped
        in either case.
        """
        refused = self._events.changed_above(key, revision)
        self._sequence += 1
        self._events.add_key(key, self._sequence, revision)
        cached = self._entries.get(key)
        if cached is not None and cached.revision > revision:
            return
        if refused:
            self._remove(key)
        else:
            self._store(key, value, revision, cached)

    def begin_fill(self) -> int:
        """Return the token for a :meth:`fill`. Take it before the read from the store begins."""
        return self._sequence

    def fill(self, key: bytes, value: V, revision: int, token: int) -> bool:
        """Store what a read returned, unless it may be older than what this cache was told.

        Returns False if it may be: the key changed while it was being read.

        Args:
            key: the key that was read.
            value: what the read returned.
            revision: the revision that last wrote the value; 0 if the key is absent.
            token: what :meth:`begin_fill` returned before the read began. It serves any number of
                fills.
        """
        if self._events.changed_since(key, token):
            return False
        cached = self._entries.get(key)
        if cached is not None and cached.sequence > token and cached.revision > revision:
            return True  # two reads overlapped and the other one saw the newer state
        self._sequence += 1
        self._store(key, value, revision, cached)
        return True

    def invalidate(self, key: bytes, revision: int = _UNKNOWN_REVISION) -> None:
        """Drop ``key``, which changed in the commit ``revision``.

        An event must name its revision: a :meth:`put` of an own, older commit whose answer arrives
        after the event is then refused.
        """
        self._sequence += 1
        self._events.add_key(key, self._sequence, revision)
        self._remove(key)

    def invalidate_prefix(self, prefix: bytes, revision: int = _UNKNOWN_REVISION) -> None:
        """Drop every key that starts with ``prefix``, which has a byte other than 0xFF."""
        self.invalidate_range(prefix, range_end(prefix), revision)

    def invalidate_range(self, start: bytes, end: bytes, revision: int = _UNKNOWN_REVISION) -> None:
        """Drop every key in ``[start, end)``, all of which changed in the commit ``revision``."""
        self._sequence += 1
        self._events.add_range(start, end, self._sequence, revision)
        if not self._entries:
            return
        # Ranges change seldom and entries all the time: a walk here is cheaper than an order there.
        for key in [key for key in self._entries if start <= key < end]:
            self._bytes -= self._entries.pop(key).size_bytes

    def clear(self, revision: int = _UNKNOWN_REVISION) -> None:
        """Drop everything, fills under way included.

        Args:
            revision: commits up to it may have gone unseen (a watch had a gap), so that a later
                :meth:`put` from below it is refused too.
        """
        self._sequence += 1
        self._events.forget_before(self._sequence, revision)
        self._entries.clear()
        self._bytes = 0

    def set_live(self, live: bool) -> None:
        """Say whether every change by others is being reported to this cache.

        While it is, entries outlive their TTL. When it ends, the age of each entry counts from
        then: it was right until then. Before saying True, report what was missed, or :meth:`clear`.
        """
        if self._live and not live:
            self._live_until_s = self._clock()
        self._live = live

    def statistics(self) -> CacheStatistics:
        """Return the counts so far and what is held now."""
        return CacheStatistics(self._hits, self._misses, len(self._entries), self._bytes)

    def _store(self, key: bytes, value: V, revision: int, cached: _Entry[V] | None) -> None:
        size_bytes = 0 if self._size_of is None else self._size_of(value)
        if self._bytes_max is not None and size_bytes > self._bytes_max:
            self._remove(key)
            return
        if cached is not None:
            self._bytes -= cached.size_bytes
        elif len(self._entries) >= self._entries_max:
            self._remove_oldest()
        self._entries[key] = _Entry(value, revision, self._clock(), self._sequence, size_bytes)
        self._bytes += size_bytes
        while self._bytes_max is not None and self._bytes > self._bytes_max:
            self._remove_oldest()  # never the new entry: it is the newest, and fits alone

    def _remove(self, key: bytes) -> None:
        if key in self._entries:
            self._bytes -= self._entries.pop(key).size_bytes

    def _remove_oldest(self) -> None:
        _, entry = self._entries.popitem()
        self._bytes -= entry.size_bytes


def _names_bytes(names: set[bytes]) -> int:
    return limits.KNOWN_NAME_BYTES * (1 + len(names))


@dataclass(frozen=True, slots=True)
class Caches:
    """The caches of one mount, over one key space."""

    read: TtlCache[bytes]
    """File data: chunks by chunk key."""
    meta: TtlCache[MetaValue]
    """Inode, times and dentry records by their keys."""
    scan: TtlCache[ScanValue]
    """Directory pages by the key at which they start."""
    names: TtlCache[set[bytes]]
    """All names of a directory by the prefix of their keys: what is not among them is absent.

    The sets are changed in place, by who then stores them again.
    """

    @classmethod
    def create(cls, clock: Callable[[], float]) -> Caches:
        """Make the empty caches with the bounds of :mod:`aspenfs.limits`.

        Args:
            clock: monotonic seconds.
        """
        return cls(
            read=TtlCache(
                ttl_s=limits.READ_CACHE_TTL_S,
                entries_max=limits.READ_CACHE_ENTRIES_MAX,
                bytes_max=limits.READ_CACHE_BYTES_MAX,
                clock=clock,
                size_of=len,
            ),
            meta=TtlCache(
                ttl_s=limits.META_CACHE_TTL_S,
                entries_max=limits.META_CACHE_ENTRIES_MAX,
                clock=clock,
            ),
            scan=TtlCache(
                ttl_s=limits.SCAN_CACHE_TTL_S,
                entries_max=limits.SCAN_CACHE_ENTRIES_MAX,
                clock=clock,
            ),
            names=TtlCache(
                ttl_s=limits.META_CACHE_TTL_S,
                entries_max=limits.NAMES_CACHE_ENTRIES_MAX,
                bytes_max=limits.NAMES_CACHE_BYTES_MAX,
                clock=clock,
                size_of=_names_bytes,
            ),
        )

    def invalidate_key(self, key: bytes, revision: int = _UNKNOWN_REVISION) -> None:
        """Drop ``key`` from every cache; see :meth:`TtlCache.invalidate`."""
        self.read.invalidate(key, revision)
        self.meta.invalidate(key, revision)
        self.scan.invalidate(key, revision)
        self.names.invalidate(key, revision)

    def invalidate_range(self, start: bytes, end: bytes, revision: int = _UNKNOWN_REVISION) -> None:
        """Drop ``[start, end)`` from every cache; see :meth:`TtlCache.invalidate_range`."""
        self.read.invalidate_range(start, end, revision)
        self.meta.invalidate_range(start, end, revision)
        self.scan.invalidate_range(start, end, revision)
        self.names.invalidate_range(start, end, revision)

    def clear(self, revision: int = _UNKNOWN_REVISION) -> None:
        """Empty every cache; see :meth:`TtlCache.clear`."""
        self.read.clear(revision)
        self.meta.clear(revision)
        self.scan.clear(revision)
        self.names.clear(revision)

    def set_live(self, live: bool) -> None:
        """Tell every cache whether changes by others reach it; see :meth:`TtlCache.set_live`."""
        self.read.set_live(live)
        self.meta.set_live(live)
        self.scan.set_live(live)
        self.names.set_live(live)

    def statistics(self) -> dict[str, CacheStatistics]:
        """Return the statistics of each cache by its name."""
        return {
            "read": self.read.statistics(),
            "meta": self.meta.statistics(),
            "scan": self.scan.statistics(),
            "names": self.names.statistics(),
        }
