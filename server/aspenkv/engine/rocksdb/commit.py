"""One commit of the rocksdb engine: checks its conditions and gathers its writes into one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rocksdict import Rdict, ReadOptions, WriteBatch

from aspenkv.contract import (
    ABSENT,
    Add,
    Check,
    Delete,
    Op,
    Patch,
    Put,
    RevisionIs,
)
from aspenkv.engine.mutations import added, patched
from aspenkv.engine.rocksdb.errors import missing_value_error
from aspenkv.engine.rocksdb.layout import (
    LARGE,
    LARGE_VALUE_BYTES_MIN,
    REVISION,
    REVISION_BYTES,
    SERVER,
    USER,
    is_large,
    large_record,
    record_revision,
    small_header,
    value_length,
)
from aspenkv.limits import RANGE_DELETE_KEYS_MAX


class CommitBuilder:
    """Reads the state before the commit, and over it the writes that the commit has made so far.

    It only reads the database; the caller writes :attr:`batch`.
    """

    __slots__ = (
        "_cleared",
        "_db",
        "_header",
        "_new_large",
        "_read_options",
        "_records",
        "_revision",
        "batch",
    )

    def __init__(
        self, db: Rdict, revision: int, read_options: Callable[[bytes], ReadOptions]
    ) -> None:
        """Begin a commit that will be ``revision``.

        Args:
            db: the database, which no one else writes meanwhile.
            revision: the revision of the records it writes.
            read_options: makes the options to iterate up to a key.
        """
        self.batch = WriteBatch(raw_mode=True)
        self._db = db
        self._revision = revision
        self._header = small_header(revision)
        self._read_options = read_options
        self._records: dict[bytes, bytes | None] = {}
        self._new_large: dict[bytes, bytes] = {}
        self._cleared: list[tuple[bytes, bytes]] = []

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
            DataCorruptError: a value that must be there is not.
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
        if not any(start <= key < end for start, end in self._cleared):
            record = self._db.get(USER + key)
        self._records[key] = record
        return record

    def _value(self, key: bytes) -> bytes | None:
        record = self._record(key)
        if record is None:
            return None
        if not is_large(record):
            return record[REVISION_BYTES:]
        value: bytes | None = self._new_large.get(key) or self._db.get(LARGE + key)
        if value is None:
            raise missing_value_error(key)
        return value

    def _patch(self, op: Patch) -> None:
        record = self._record(op.key)
        if record is None or (not op.offset and len(op.data) >= value_length(record)):
            old = b""  # all of it is overwritten: do not read it
        else:
            old = self._value(op.key) or b""
        self._write(op.key, patched(old, op))

    def _write(self, key: bytes, value: bytes | memoryview) -> None:
        if len(value) >= LARGE_VALUE_BYTES_MIN:
            value = bytes(value)
            record = large_record(self._revision, len(value))
            self._new_large[key] = value
            self.batch.put(LARGE + key, value)
        else:
            old = self._record(key)
            if old is not None and is_large(old):
                self.batch.delete(LARGE + key)
            record = self._header + value
        self._records[key] = record
        self.batch.put(USER + key, record)

    def _remove(self, key: bytes, record: bytes | None) -> None:
        if record is None:
            return
        self.batch.delete(USER + key)
        if is_large(record):
            self.batch.delete(LARGE + key)
        self._records[key] = None

    def _remove_range(self, start: bytes, end: bytes) -> None:
        if start == end:
            return
        written = [key for key in self._records if start <= key < end]
        stored = self._keys(start, end, RANGE_DELETE_KEYS_MAX + 1)
        if len(stored) <= RANGE_DELETE_KEYS_MAX:
            for key in {*written, *stored}:
                self._remove(key, self._record(key))
            return
        self.batch.delete_range(USER + start, USER + end)
        self.batch.delete_range(LARGE + start, LARGE + end)
        self._cleared.append((start, end))
        self._records.update(dict.fromkeys(written))

    def _keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """Return the first keys of a range as the database holds them."""
        options = self._read_options(USER + end)
        rows = self._db.iter(options)
        rows.seek(USER + start)
        keys: list[bytes] = []
        while rows.valid() and len(keys) < limit:
            keys.append(rows.key()[len(USER) :])
            rows.next()
        if not rows.valid():
            rows.status()  # tells the end of the range from an error
        return keys
