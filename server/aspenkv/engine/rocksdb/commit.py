"""One commit of the rocksdb engine: checks its conditions and gathers its writes into one batch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rocksdict import Rdict, WriteBatch

from aspenkv.contract import (
    ABSENT,
    Add,
    Check,
    Copy,
    Delete,
    Op,
    Patch,
    Put,
    RevisionIs,
)
from aspenkv.engine.mutations import added, check_copied, patched
from aspenkv.engine.rocksdb.errors import TakesLongError, damaged_value_error
from aspenkv.engine.rocksdb.layout import (
    BORROWER,
    LARGE,
    LARGE_VALUE_BYTES_MIN,
    REVISION,
    REVISION_BYTES,
    SERVER,
    USER,
    copied_record,
    is_large,
    is_value_of,
    large_record,
    names_place,
    place_of,
    record_revision,
    small_header,
    value_length,
)
from aspenkv.engine.rocksdb.options import range_read_options
from aspenkv.engine.rocksdb.places import Places
from aspenkv.engine.rocksdb.reading import read_large
from aspenkv.limits import (
    INLINE_COMMIT_BYTES_MAX,
    INLINE_RANGE_DELETE_KEYS_MAX,
    INLINE_SKIPS_MAX,
    RANGE_DELETE_KEYS_MAX,
    RECLAIM_BYTES_MIN,
)


class CommitBuilder:
    """Reads the state before the commit, and over it the writes that the commit has made so far.

    It only reads the database; the caller writes :attr:`batch`. :attr:`removed_bytes` counts the
    large values that it deletes.
    """

    __slots__ = (
        "_cleared",
        "_copied_bytes",
        "_db",
        "_header",
        "_inline",
        "_new_large",
        "_places",
        "_read_bytes",
        "_records",
        "_revision",
        "batch",
        "removed_bytes",
    )

    def __init__(self, db: Rdict, revision: int, *, inline: bool, has_shared: bool) -> None:
        """Begin a commit that will be ``revision``.

        Args:
            db: the database, which no one else writes meanwhile.
            revision: the revision of the records it writes.
            inline: raise TakesLongError rather than read much.
            has_shared: whether any large value was ever copied.
        """
        self.batch = WriteBatch(raw_mode=True)
        self._db = db
        self._revision = revision
        self._header = small_header(revision)
        self._inline = inline
        self._records: dict[bytes, bytes | None] = {}
        self._new_large: dict[bytes, bytes] = {}  # by place
        self._places = Places(db, self.batch, revision, has_shared=has_shared)
        self._read_bytes = 0
        self._copied_bytes = 0
        self._cleared: list[tuple[bytes, bytes]] = []
        self.removed_bytes = 0

    @property
    def has_shared(self) -> bool:
        """Whether any large value was ever copied, this commit included."""
        return self._places.has_shared

    def failed_check(self, checks: Sequence[Check]) -> int | None:
        """Return the index of the first check that does not hold, None if all do."""
        for index, check in enumerate(checks):
            if isinstance(check, RevisionIs):
                record = self._record(check.key)
                if check.revision != (ABSENT if record is None else record_revision(record)):
                    return index
            elif self._keys(check.start, check.end, 1):
                return index
        return None

    def apply(self, ops: Sequence[Op]) -> None:
        """Do the operations, each on the result of those before it.

        Raises:
            InvalidRequestError: an ``add`` meets a value that is no counter, or overflows.
            CommitTooLargeError: copies have more than COMMIT_COPIED_BYTES_MAX bytes.
            DataCorruptError: a value that must be there is not.
            TakesLongError: inline, and it would read or delete much.
        """
        for op in ops:
            if isinstance(op, Put):
                self._write(op.key, op.value)
            elif isinstance(op, Patch):
                self._patch(op)
            elif isinstance(op, Add):
                self._write(op.key, added(op.key, self._value(op.key), op.delta))
            elif isinstance(op, Delete):
                self._remove(op.key, self._record(op.key))
            elif isinstance(op, Copy):
                self._copy(op)
            else:
                self._remove_range(op.start, op.end)
        if ops:
            self.batch.put(REVISION, self._header)

    def add_server_records(self, records: Mapping[bytes, bytes | None]) -> None:
        """Write and remove server records."""
        for name, content in records.items():
            if content is None:
                self.batch.delete(SERVER + name)
            else:
                self.batch.put(SERVER + name, content)

    def _record(self, key: bytes) -> bytes | None:
        """Return the record of a key as this commit sees it."""
        if key in self._records:
            return self._records[key]
        record: bytes | None = None
        if not (self._cleared and self._is_cleared(key)):
            record = self._db.get(USER + key)
        self._records[key] = record
        return record

    def _is_cleared(self, key: bytes) -> bool:
        return any(start <= key < end for start, end in self._cleared)

    def _value(self, key: bytes) -> bytes | None:
        record = self._record(key)
        if record is None:
            return None
        if not is_large(record):
            return record[REVISION_BYTES:]
        self._note_read(value_length(record))
        place = place_of(key, record)
        value = self._new_large.get(place) or read_large(self._db, place)
        if value is None or not is_value_of(record, value):
            raise damaged_value_error(self._db.path(), key)
        return value

    def _note_read(self, size_bytes: int) -> None:
        self._read_bytes += size_bytes
        if self._inline and self._read_bytes > INLINE_COMMIT_BYTES_MAX:
            raise TakesLongError

    def _patch(self, op: Patch) -> None:
        record = self._record(op.key)
        if record is None or (not op.offset and len(op.data) >= value_length(record)):
            old = b""  # all of it is overwritten: do not read it
        else:
            old = self._value(op.key) or b""
        self._write(op.key, patched(old, op))

    def _copy(self, op: Copy) -> None:
        record = self._record(op.source)
        if record is None:
            self._remove(op.key, self._record(op.key))
            return
        self._copied_bytes += value_length(record)
        check_copied(self._copied_bytes)
        if not is_large(record):
            self._note_read(value_length(record))
            self._write(op.key, record[REVISION_BYTES:])
            return
        place = place_of(op.source, record)
        self._places.share(place)
        self._release(op.key)  # afterwards: it may have that very value
        self._tell(op.key, copied_record(self._revision, record), place)

    def _write(self, key: bytes, value: bytes | memoryview) -> None:
        if len(value) >= LARGE_VALUE_BYTES_MIN:
            value = bytes(value)
            place = self._room_for(key)
            self._new_large[place] = value
            self.batch.put(place, value)
            self._tell(key, large_record(self._revision, value), place)
            return
        self._release(key)
        record = self._header + value
        self._records[key] = record
        self.batch.put(USER + key, record)

    def _room_for(self, key: bytes) -> bytes:
        """Return where the next large value of a key is to lie, over the one it has or not."""
        own = LARGE + key
        if not self._places.has_shared:
            return own
        old = self._record(key)
        is_over = old is not None and is_large(old) and place_of(key, old) == own
        if not is_over or self._places.is_shared(own):
            self._release(key)
        return self._places.room_for(key)

    def _tell(self, key: bytes, record: bytes, place: bytes) -> None:
        """Write the record of a large value, which lies at ``place``."""
        if place != LARGE + key:
            record += place
            self.batch.put(BORROWER + key, b"")
        self._records[key] = record
        self.batch.put(USER + key, record)

    def _release(self, key: bytes) -> int:
        """Let go of the large value of a key, if it has one; return how many bytes that frees."""
        record = self._record(key)
        if record is None or not is_large(record):
            return 0
        if names_place(record):
            self.batch.delete(BORROWER + key)
        return value_length(record) if self._places.leave(place_of(key, record)) else 0

    def _remove(self, key: bytes, record: bytes | None) -> None:
        if record is None:
            return
        self.removed_bytes += self._release(key)
        self.batch.delete(USER + key)
        self._records[key] = None

    def _remove_range(self, start: bytes, end: bytes) -> None:
        if start == end:
            return
        written = [key for key in self._records if start <= key < end]
        one_by_one_max = INLINE_RANGE_DELETE_KEYS_MAX if self._inline else RANGE_DELETE_KEYS_MAX
        stored = self._keys(start, end, one_by_one_max + 1)
        if (
            len(stored) > one_by_one_max
            and not self._inline
            and self._places.are_shared(start, end)
        ):
            stored = self._keys(start, end, sys.maxsize)
            one_by_one_max = len(stored)
        if len(stored) <= one_by_one_max:
            for key in {*written, *stored}:
                self._remove(key, self._record(key))
            return
        if self._inline:
            raise TakesLongError
        self.removed_bytes += RECLAIM_BYTES_MIN  # how many is not known: enough to look for them
        self.batch.delete_range(USER + start, USER + end)
        self.batch.delete_range(LARGE + start, LARGE + end)
        self._cleared.append((start, end))
        self._records.update(dict.fromkeys(written))

    def _keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """Return the first keys of a range as the database holds them."""
        options = range_read_options(USER + end, INLINE_SKIPS_MAX if self._inline else 0)
        rows = self._db.iter(options)
        rows.seek(USER + start)
        keys: list[bytes] = []
        while rows.valid() and len(keys) < limit:
            keys.append(rows.key()[len(USER) :])
            rows.next()
        if not rows.valid():
            rows.status()  # tells the end of the range from an error
        return keys
