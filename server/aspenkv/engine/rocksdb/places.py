"""Where large values lie that several keys have: a copy of one is a record that tells where.

A large value lies at the place of its key, ``b`` + key. A copy does not move it: the record of the
other key names that place, and the place has a count of all records that use it. From then on it is
taken until the count is 0, also if its own key is deleted or gets another value, which then goes to
a place that is no key's.
"""

from __future__ import annotations

from rocksdict import Rdict, WriteBatch

from aspenkv.engine.rocksdb.layout import (
    BORROWER,
    LARGE,
    LAYOUT,
    LAYOUT_VERSION_SHARING,
    USER_COUNT,
    USER_COUNT_BYTES,
    unnamed_place,
)
from aspenkv.engine.rocksdb.options import range_read_options


class Places:
    """The places of large values as one commit sees and changes them.

    ``has_shared``: whether any value of the database ever had several keys. While none had, every
    value lies at the place of its own key, and nothing is counted.
    """

    __slots__ = ("_batch", "_counts", "_db", "_revision", "_unnamed", "has_shared")

    def __init__(self, db: Rdict, batch: WriteBatch, revision: int, *, has_shared: bool) -> None:
        """Begin a commit that will be ``revision``, whose writes go to ``batch``."""
        self._db = db
        self._batch = batch
        self._revision = revision
        self._counts: dict[bytes, int] = {}
        self._unnamed = 0
        self.has_shared = has_shared

    def share(self, place: bytes) -> None:
        """Count one record more that uses a place."""
        if not self.has_shared:
            self.has_shared = True
            self._batch.put(LAYOUT, LAYOUT_VERSION_SHARING)
        self._set_count(place, (self._count(place) or 1) + 1)

    def leave(self, place: bytes) -> bool:
        """Count one record less, and remove the value with the last; return whether it is."""
        count = self._count(place)
        if count > 1:
            self._set_count(place, count - 1)
            return False
        if count:
            self._set_count(place, 0)
        self._batch.delete(place)
        return True

    def is_shared(self, place: bytes) -> bool:
        """Return whether others than the key that a place is of may use it."""
        return bool(self._count(place))

    def room_for(self, key: bytes) -> bytes:
        """Return a place for a new value of a key, which uses none now."""
        own = LARGE + key
        if not self.is_shared(own):
            return own
        self._unnamed += 1
        return unnamed_place(self._revision, self._unnamed)

    def are_shared(self, start: bytes, end: bytes) -> bool:
        """Return whether keys of ``[start, end)`` have values of others, or others have theirs."""
        if not self.has_shared:
            return False
        return bool(self._counts) or any(
            self._has_key(prefix + start, prefix + end) for prefix in (BORROWER, USER_COUNT + LARGE)
        )

    def _count(self, place: bytes) -> int:
        """Return how many records use a place; 0, it was never shared."""
        if not self.has_shared:
            return 0
        count = self._counts.get(place)
        if count is None:
            stored = self._db.get(USER_COUNT + place)
            count = 0 if stored is None else int.from_bytes(stored, "big")
        return count

    def _set_count(self, place: bytes, count: int) -> None:
        self._counts[place] = count
        if count:
            self._batch.put(USER_COUNT + place, count.to_bytes(USER_COUNT_BYTES, "big"))
        else:
            self._batch.delete(USER_COUNT + place)

    def _has_key(self, start: bytes, end: bytes) -> bool:
        options = range_read_options(end)
        rows = self._db.iter(options)
        rows.seek(start)
        found = rows.valid()
        if not found:
            rows.status()  # tells the end of the range from an error
        return bool(found)
