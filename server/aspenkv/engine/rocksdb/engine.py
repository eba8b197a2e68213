"""The engine itself: which call runs where, and what it reads.

Small calls run inline on the event loop's thread, which costs less than a change of threads; calls
that may take long run in a worker thread.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import trio
from rocksdict import Rdict, Snapshot

from aspenkv.contract import Check, CommitResult, Op, Record, ScanPage, Versioned
from aspenkv.engine import ServerRecords, Usage
from aspenkv.engine.rocksdb.blob_garbage import BlobGarbage
from aspenkv.engine.rocksdb.commit import CommitBuilder
from aspenkv.engine.rocksdb.directory import close_database, open_database, open_read_only
from aspenkv.engine.rocksdb.errors import TakesLongError, TypedErrors, damaged_value_error
from aspenkv.engine.rocksdb.layout import (
    LAYOUT,
    LAYOUT_VERSION_SHARING,
    REVISION,
    REVISION_BYTES,
    SERVER,
    USER,
    is_large,
    is_value_of,
    place_of,
    prefix_end,
    record_revision,
)
from aspenkv.engine.rocksdb.options import range_read_options, write_options
from aspenkv.engine.rocksdb.reading import read_large_of, read_records, read_values
from aspenkv.engine.rocksdb.space import SpaceGuard, available_bytes, capacity_bytes
from aspenkv.limits import (
    ENGINE_THREADS_MAX,
    INLINE_GET_KEYS_MAX,
    INLINE_SCAN_ENTRIES_MAX,
    INLINE_SKIPS_MAX,
    RECLAIM_BYTES_MIN,
    SCAN_BYTES_MAX,
)

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_INLINE_WRITE: Final = write_options(wait=False)
_PATIENT_WRITE: Final = write_options(wait=True)


class RocksdbEngine:
    """A rocksdb database. Make one with :meth:`open`."""

    name: Final = "rocksdb"

    def __init__(self, db: Rdict, path: Path) -> None:
        """Wrap an open database."""
        self._db = db
        self._path = path
        self._typed_errors = TypedErrors(path)
        self._revision = self.revision()
        self._threads = trio.CapacityLimiter(ENGINE_THREADS_MAX)
        self._writes = 0
        self._synced_writes = 0
        self._syncing = trio.Lock()
        self._has_shared = db.get(LAYOUT) == LAYOUT_VERSION_SHARING
        self._removed_bytes = 0
        self._garbage = BlobGarbage(db)
        self._space = SpaceGuard(path)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, read_only: bool = False) -> AsyncIterator[RocksdbEngine]:
        """Open the database in ``path``, made if absent, and close it at the end.

        ``read_only`` takes no lock, so that it works beside the process that writes, and makes
        nothing; it shows the state at the time of opening.

        Raises:
            DataDirectoryLockedError: another process has it open.
            DataCorruptError: it is damaged.
            EngineError: it cannot be made or opened, or holds something else; or, at the end, what
                was written could not be flushed.
        """
        opening = open_read_only if read_only else open_database
        db = await trio.to_thread.run_sync(opening, path)
        try:
            yield cls(db, path)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(close_database, db, path)

    def revision(self) -> int:
        """Return the revision of the newest commit, as stored: a commit may be running."""
        with self._typed_errors:
            stored = self._db.get(REVISION)
        return 0 if stored is None else int.from_bytes(stored, "big")

    async def get(
        self, keys: Sequence[bytes], *, bulk: bool, bytes_max: int | None = None
    ) -> list[Versioned | None]:
        """Read values: inline if they are few and turn out small, and so less than any bound."""
        if not bulk and len(keys) <= INLINE_GET_KEYS_MAX:
            try:
                with self._typed_errors:
                    return self._get_small(keys)
            except TakesLongError:
                pass
        return await self._in_thread(read_values, self._db, keys, bytes_max)

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, keys_only: bool, reverse: bool
    ) -> ScanPage:
        """Read a page: inline if it is short, and stays so."""
        if start == end:
            return ScanPage([], None)
        scan = partial(self._scan, USER + start, USER + end, limit, keys_only, reverse)
        if limit <= INLINE_SCAN_ENTRIES_MAX:
            try:
                with self._typed_errors:
                    return scan(inline=True)
            except TakesLongError:
                pass
        return await self._in_thread(scan, inline=False)

    def commit_nowait(
        self, checks: Sequence[Check], ops: Sequence[Op], server_records: ServerRecords
    ) -> CommitResult | None:
        """Commit unless rocksdb must catch up, or the commit would read or delete much."""
        if self._removed_bytes >= RECLAIM_BYTES_MIN or self._garbage.is_due:
            return None
        try:
            with self._typed_errors:
                return self._commit(checks, ops, server_records, inline=True)
        except TakesLongError:
            return None

    async def commit(
        self, checks: Sequence[Check], ops: Sequence[Op], server_records: ServerRecords
    ) -> CommitResult:
        """Commit in a thread, which a cancelled call waits for."""
        return await self._in_thread(self._commit, checks, ops, server_records, inline=False)

    async def server_records(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Return the server records whose names start with ``prefix``, in order."""
        return await self._in_thread(self._server_records, prefix)

    async def sync(self) -> None:
        """Sync the write-ahead log, once for all who wait, and not if nothing was written."""
        wanted = self._writes
        async with self._syncing:
            if self._synced_writes < wanted:
                reached = self._writes
                await self._in_thread(self._db.flush_wal, True)
                self._synced_writes = reached

    def usage(self) -> Usage:
        """Return the live bytes as rocksdb estimates them, and the space of their file system."""
        with self._typed_errors:
            used_bytes = sum(self._db.property_int_value(name) or 0 for name in _USED_BYTES)
            return Usage(used_bytes, capacity_bytes(self._path), available_bytes(self._path))

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._typed_errors:
            return await trio.to_thread.run_sync(
                partial(function, *args, **kwargs), limiter=self._threads
            )

    def _get_small(self, keys: Sequence[bytes]) -> list[Versioned | None]:
        records: list[bytes | None] = (
            [self._db.get(USER + keys[0])] if len(keys) == 1 else read_records(self._db, keys)
        )
        found: list[Versioned | None] = []
        for record in records:
            if record is None:
                found.append(None)
            elif is_large(record):
                raise TakesLongError
            else:
                found.append(Versioned(record[REVISION_BYTES:], record_revision(record)))
        return found

    def _scan(
        self, start: bytes, end: bytes, limit: int, keys_only: bool, reverse: bool, *, inline: bool
    ) -> ScanPage:
        snapshot = self._db.snapshot()
        options = range_read_options(end, INLINE_SKIPS_MAX if inline else 0)
        rows = snapshot.iter(options)
        if reverse:
            rows.seek_to_last()
        else:
            rows.seek(start)
        step = rows.prev if reverse else rows.next
        page: list[Record] = []
        size_bytes = 0
        while rows.valid():
            stored_key = rows.key()
            if stored_key < start:
                return ScanPage(page, None)
            if len(page) == limit or size_bytes >= SCAN_BYTES_MAX:
                last = page[-1].key
                return ScanPage(page, last if reverse else last + b"\0")
            key, record = stored_key[len(USER) :], rows.value()
            if keys_only:
                value = b""
            elif not is_large(record):
                value = record[REVISION_BYTES:]
            elif inline:
                raise TakesLongError
            else:
                value = self._large_value(snapshot, key, record)
            size_bytes += len(key) + len(value)
            page.append(Record(key, value, record_revision(record)))
            step()
        rows.status()  # tells the end of the range from an error
        return ScanPage(page, None)

    def _large_value(self, snapshot: Snapshot, key: bytes, record: bytes) -> bytes:
        value = read_large_of(snapshot, place_of(key, record))
        if value is None or not is_value_of(record, value):
            raise damaged_value_error(self._path, key)
        return value

    def _commit(
        self,
        checks: Sequence[Check],
        ops: Sequence[Op],
        server_records: ServerRecords,
        *,
        inline: bool,
    ) -> CommitResult:
        revision = self._revision + 1
        commit = CommitBuilder(self._db, revision, inline=inline, has_shared=self._has_shared)
        failed_check = commit.failed_check(checks)
        if failed_check is not None:
            return CommitResult(self._revision, failed_check)
        if not ops and not server_records:
            return CommitResult(self._revision, None)
        if ops:
            commit.apply(ops)
            self._space.admit(ops, commit.batch.size_in_bytes())
        if server_records:
            commit.add_server_records(server_records)
        batch_bytes = commit.batch.size_in_bytes()
        self._db.write(commit.batch, _INLINE_WRITE if inline else _PATIENT_WRITE)
        if ops:
            self._revision = revision
        self._has_shared = commit.has_shared
        self._writes += 1
        self._removed_bytes += commit.removed_bytes
        self._garbage.note(batch_bytes)
        if not inline:
            self._reclaim_space()
        return CommitResult(self._revision, None)

    def _reclaim_space(self) -> None:
        """Make rocksdb give back what was deleted or overwritten, once it is much.

        The commit before it is done, so that a failure here is not the commit's.
        """
        try:
            if self._garbage.is_due:
                self._garbage.look()
            if self._removed_bytes >= RECLAIM_BYTES_MIN:
                # Flushed deletions make rocksdb compact what they delete (see its options), so that
                # the space comes back now and not when it next happens to.
                self._removed_bytes = 0
                self._db.flush(False)
        except Exception as error:  # noqa: BLE001  # rocksdict raises nothing narrower
            log.warning("space in %s could not be reclaimed: %s", self._path, error)

    def _server_records(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        first = SERVER + prefix
        options = range_read_options(prefix_end(first))
        rows = self._db.iter(options)
        rows.seek(first)
        records: list[tuple[bytes, bytes]] = []
        while rows.valid():
            records.append((rows.key()[len(SERVER) :], rows.value()))
            rows.next()
        rows.status()
        return records


_USED_BYTES: Final = ("rocksdb.estimate-live-data-size", "rocksdb.cur-size-all-mem-tables")
