"""The memory engine: for tests, and the yardstick for the others, so written to be plainly right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final

from sortedcontainers import SortedDict

from aspenkv.contract import (
    ABSENT,
    Add,
    Check,
    CommitResult,
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
from aspenkv.limits import MEMORY_CAPACITY_BYTES, SCAN_BYTES_MAX
from aspenkv.engine.mutations import added, patched


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

    async def get(self, keys: Sequence[bytes], *, bulk: bool) -> list[Versioned | None]:  # noqa: ARG002
        """Read values; large ones cost nothing here."""
        return [self._map.get(key) for key in keys]

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
        try:
            for op in ops:
                _APPLY[type(op)](self, op, revision, undo)
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
        if type(check) is RevisionIs:
            found = self._map.get(check.key)
            return check.revision == (ABSENT if found is None else found.revision)
        return not any(True for _ in islice(self._range(check.start, check.end), 1))

    def _range(self, start: bytes, end: bytes) -> Iterable[bytes]:
        keys: Iterable[bytes] = self._map.irange(start, end, (True, False))
        return keys

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

    def _put(self, op: Put, revision: int, undo: _Undo) -> None:
        undo.append((op.key, self._store(op.key, Versioned(bytes(op.value), revision))))

    def _delete(self, op: Delete, _revision: int, undo: _Undo) -> None:
        undo.append((op.key, self._store(op.key, None)))

    def _delete_range(self, op: DeleteRange, _revision: int, undo: _Undo) -> None:
        undo.extend((key, self._store(key, None)) for key in list(self._range(op.start, op.end)))

    def _patch(self, op: Patch, revision: int, undo: _Undo) -> None:
        value = patched(self._value(op.key) or b"", op)
        undo.append((op.key, self._store(op.key, Versioned(value, revision))))

    def _add(self, op: Add, revision: int, undo: _Undo) -> None:
        value = added(op.key, self._value(op.key), op.delta)
        undo.append((op.key, self._store(op.key, Versioned(value, revision))))


_Undo = list[tuple[bytes, Versioned | None]]

_APPLY: Final[dict[type, Callable[[MemoryEngine, Any, int, _Undo], None]]] = {
    Put: MemoryEngine._put,
    Delete: MemoryEngine._delete,
    DeleteRange: MemoryEngine._delete_range,
    Patch: MemoryEngine._patch,
    Add: MemoryEngine._add,
}
