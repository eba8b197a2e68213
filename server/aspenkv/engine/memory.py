"""The memory engine: for tests, and the yardstick for the others, so it is plain before fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sortedcontainers import SortedDict

from aspenkv.contract import (
    ABSENT,
    Add,
    Check,
    CommitResult,
    Copy,
    Delete,
    DeleteRange,
    Op,
    Patch,
    Put,
    Record,
    RevisionIs,
    ScanPage,
    Versioned,
)
from aspenkv.engine import ServerRecords, Usage
from aspenkv.engine.mutations import added, check_copied, check_size, patched
from aspenkv.limits import MEMORY_CAPACITY_BYTES, SCAN_BYTES_MAX


class MemoryEngine:
    """A sorted map in this process. Nothing is on stable storage, so ``sync`` has nothing to do."""

    name: Final = "memory"

    def __init__(self) -> None:
        """Start empty, at revision 0."""
        self._map: SortedDict[bytes, Versioned] = SortedDict()
        self._server_records: SortedDict[bytes, bytes] = SortedDict()
        self._revision = 0
        self._used_bytes = 0

    def revision(self) -> int:
        """Return the revision of the newest commit."""
        return self._revision

    async def get(
        self,
        keys: Sequence[bytes],
        *,
        bulk: bool,  # noqa: ARG002
        bytes_max: int | None = None,
    ) -> list[Versioned | None]:
        """Read values; large ones cost nothing here."""
        found = [self._map.get(key) for key in keys]
        check_size(sum(len(each.value) for each in found if each is not None), bytes_max)
        return found

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, keys_only: bool, reverse: bool
    ) -> ScanPage:
        """Read a page of ``[start, end)``."""
        records: list[Record] = []
        size_bytes = 0
        for key in self._map.irange(start, end, (True, False), reverse=reverse):
            if len(records) == limit or size_bytes >= SCAN_BYTES_MAX:
                last = records[-1].key
                return ScanPage(records, last if reverse else last + b"\0")
            value, revision = self._map[key]
            if keys_only:
                value = b""
            size_bytes += len(key) + len(value)
            records.append(Record(key, value, revision))
        return ScanPage(records, None)

    def commit_nowait(
        self, checks: Sequence[Check], ops: Sequence[Op], server_records: ServerRecords
    ) -> CommitResult:
        """Commit at once: nothing here can block."""
        for index, check in enumerate(checks):
            if not self._holds(check):
                return CommitResult(self._revision, index)
        revision = self._revision + bool(ops)
        undo: list[tuple[bytes, Versioned | None]] = []
        copied_bytes = 0
        try:
            for op in ops:
                if isinstance(op, Copy):
                    copied_bytes += len(self._value(op.source) or b"")
                    check_copied(copied_bytes)
                for key, value in self._effects(op):
                    new = None if value is None else Versioned(value, revision)
                    undo.append((key, self._store(key, new)))
        except BaseException:
            for key, old in reversed(undo):
                self._store(key, old)
            raise
        self._revision = revision
        for name, content in server_records.items():
            if content is None:
                self._server_records.pop(name, None)
            else:
                self._server_records[name] = content
        return CommitResult(revision, None)

    async def commit(
        self, checks: Sequence[Check], ops: Sequence[Op], server_records: ServerRecords
    ) -> CommitResult:
        """Commit at once."""
        return self.commit_nowait(checks, ops, server_records)

    async def server_records(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Return the server records whose names start with ``prefix``, in order."""
        return [item for item in self._server_records.items() if item[0].startswith(prefix)]

    async def sync(self) -> None:
        """Return: there is no stable storage."""

    def usage(self) -> Usage:
        """Return the bytes of all keys and values, of a capacity that is only a figure."""
        return Usage(
            self._used_bytes,
            MEMORY_CAPACITY_BYTES,
            max(0, MEMORY_CAPACITY_BYTES - self._used_bytes),
        )

    def _holds(self, check: Check) -> bool:
        if isinstance(check, RevisionIs):
            found = self._map.get(check.key)
            return check.revision == (ABSENT if found is None else found.revision)
        return next(self._range(check.start, check.end), None) is None

    def _range(self, start: bytes, end: bytes) -> Iterator[bytes]:
        return self._map.irange(start, end, (True, False))

    def _store(self, key: bytes, new: Versioned | None) -> Versioned | None:
        """Replace the record of ``key``, None for no record; return the old one."""
        old = self._map.get(key)
        if old is not None:
            self._used_bytes -= len(key) + len(old.value)
        if new is None:
            self._map.pop(key, None)
        else:
            self._used_bytes += len(key) + len(new.value)
            self._map[key] = new
        return old

    def _value(self, key: bytes) -> bytes | None:
        found = self._map.get(key)
        return None if found is None else found.value

    def _effects(self, op: Op) -> list[tuple[bytes, bytes | None]]:
        """Return the new value of each key that an operation writes, None if it removes it."""
        match op:
            case Put(key, value):
                return [(key, bytes(value))]
            case Delete(key):
                return [(key, None)]
            case DeleteRange(start, end):
                return [(key, None) for key in self._range(start, end)]
            case Patch(key):
                return [(key, patched(self._value(key) or b"", op))]
            case Add(key, delta):
                return [(key, added(key, self._value(key), delta))]
            case Copy(key, source):
                return [(key, self._value(source))]
