"""Random operations on the rocksdb engine and on the memory engine, which is plain to read."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aspenkv import limits
from aspenkv.contract import (
    ABSENT,
    Add,
    Check,
    CommitResult,
    Copy,
    Delete,
    DeleteRange,
    KeyValue,
    Op,
    Patch,
    Put,
    RangeEmpty,
    RevisionIs,
    ScanPage,
)
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.engine.rocksdb import RocksdbEngine, layout
from aspenkv.errors import AspenKvError
from aspenkv.service import Service
from tests.contract.directories import new_directory
from tests.model.portal import Portal

T = TypeVar("T")


def view(value: bytes) -> memoryview:
    return memoryview(value)


FIRST, LAST = b"", b"\xff" * limits.RANGE_BOUND_BYTES_MAX

# Few keys, so that operations meet; the rows of "dir/" are enough for each way of delete_range.
keys = st.sampled_from([b"\0", b"a", b"a\0", b"a\xff", b"b", b"dir/x", b"\xff", b"\xff\xff"])
bounds = st.one_of(keys, st.sampled_from([FIRST, b"dir/", b"dir/\x00\x50", b"dir0", LAST]))
ranges = st.tuples(bounds, bounds).map(lambda pair: (min(pair), max(pair)))
# Around the size from which the rocksdb engine keeps a value apart; counters; and others.
sizes = st.one_of(st.integers(0, 20), st.sampled_from([8, 8191, 8192, 8200, 70_000, 200_000]))
values = st.builds(lambda size, byte: bytes((byte,)) * size, sizes, st.integers(0, 255))
checks = st.one_of(
    st.builds(RevisionIs, keys, st.sampled_from([ABSENT, 1, 2, 3])),
    ranges.map(lambda pair: RangeEmpty(*pair)),
)
ops = st.one_of(
    st.builds(Put, keys, values),
    st.builds(Delete, keys),
    ranges.map(lambda pair: DeleteRange(*pair)),
    st.builds(
        Patch,
        keys,
        sizes,
        st.one_of(values, values.map(view)),
        st.one_of(st.none(), sizes),
    ),
    st.builds(Copy, keys, keys),
    st.builds(Add, keys, st.sampled_from([0, 1, -1, limits.COUNTER_MAX, limits.COUNTER_MIN])),
)


async def outcome(
    call: Callable[[KeyValue], Coroutine[Any, Any, T]], kv: KeyValue
) -> T | type[Exception]:
    """Return what a call returns, or the type of the error of the contract that it raises."""
    try:
        return await call(kv)
    except AspenKvError as error:
        return type(error)


async def read_range(kv: KeyValue, start: bytes, end: bytes, **options: Any) -> list[ScanPage]:
    """Follow the continuations of a scan to the end."""
    pages = [await kv.scan(start, end, **options)]
    while pages[-1].continuation is not None:
        pages.append(await kv.scan(start, end, **options, continuation=pages[-1].continuation))
    return pages


@asynccontextmanager
async def serve_rocksdb(path: Path) -> AsyncIterator[tuple[RocksdbEngine, Service]]:
    async with RocksdbEngine.open(path) as engine, open_embedded(engine) as service:
        yield engine, service


class EnginesAgree(RuleBasedStateMachine):
    """The same calls on both; every answer, and the whole content after each step, is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = new_directory()
        self.portal = Portal()
        memory, self.memory_hosted = self.portal.enter(open_embedded(MemoryEngine()))
        self.memory = memory.connect()
        self.open_rocksdb()

    def open_rocksdb(self) -> None:
        served, self.rocksdb_hosted = self.portal.enter(serve_rocksdb(self.directory))
        self.engine, service = served
        self.rocksdb = service.connect()

    def both(self, call: Callable[[KeyValue], Coroutine[Any, Any, T]]) -> T | type[Exception]:
        """Make a call on both engines and return what both answer."""
        expected = self.portal.call(outcome, call, self.memory)
        assert self.portal.call(outcome, call, self.rocksdb) == expected
        return expected

    @initialize(rows=st.sampled_from([0, 50, 70, 1100]))
    def fill(self, rows: int) -> None:
        puts = [Put(b"dir/" + index.to_bytes(2, "big"), b"row") for index in range(rows)]
        for at in range(0, rows, limits.COMMIT_OPS_MAX):
            part = puts[at : at + limits.COMMIT_OPS_MAX]
            self.both(lambda kv, part=part: kv.commit([], part))  # type: ignore[misc]

    @rule(some_ops=st.lists(ops, min_size=1, max_size=6))
    def commit(self, some_ops: list[Op]) -> None:
        self.both(lambda kv: kv.commit([], some_ops))

    @rule(some_checks=st.lists(checks, max_size=3), some_ops=st.lists(ops, max_size=4))
    def commit_with_checks(self, some_checks: list[Check], some_ops: list[Op]) -> None:
        self.both(lambda kv: kv.commit(some_checks, some_ops))

    @rule(key=keys, some_ops=st.lists(ops, max_size=4))
    def commit_on_what_was_read(self, key: bytes, some_ops: list[Op]) -> None:
        async def read_then_commit(kv: KeyValue) -> CommitResult:
            (found,) = await kv.get([key])
            revision = ABSENT if found is None else found.revision
            return await kv.commit([RevisionIs(key, revision)], some_ops)

        self.both(read_then_commit)

    @rule(some_keys=st.lists(keys, max_size=5), bulk=st.booleans())
    def get(self, some_keys: list[bytes], bulk: bool) -> None:
        self.both(lambda kv: kv.get(some_keys, bulk=bulk))

    @rule(
        bounds=ranges,
        limit=st.sampled_from([1, 2, 7, 300]),
        keys_only=st.booleans(),
        reverse=st.booleans(),
    )
    def scan(self, bounds: tuple[bytes, bytes], limit: int, keys_only: bool, reverse: bool) -> None:
        self.both(
            lambda kv: read_range(kv, *bounds, limit=limit, keys_only=keys_only, reverse=reverse)
        )

    @rule()
    def open_again(self) -> None:
        self.portal.exit(self.rocksdb_hosted)
        self.open_rocksdb()

    @invariant()
    def holds_the_same(self) -> None:
        self.both(lambda kv: read_range(kv, FIRST, LAST, limit=1024))
        self.both(lambda kv: kv.revision())

    @invariant()
    def leaves_nothing_behind(self) -> None:
        """What lies apart belongs to records that say so and are counted: nothing leaks."""
        stored: dict[Any, Any] = dict(self.engine._db.items())
        apart = {
            key[1:]: record
            for key, record in stored.items()
            if key[:1] == layout.USER and layout.is_large(record)
        }
        users = Counter(layout.place_of(key, record) for key, record in apart.items())
        assert {key for key in stored if key[:1] in {layout.LARGE, layout.UNNAMED}} == users.keys()
        counts = {
            key[1:]: int.from_bytes(count, "big")
            for key, count in stored.items()
            if key[:1] == layout.USER_COUNT
        }
        assert counts == {place: users[place] for place in counts}
        assert {place for place, count in users.items() if count > 1} <= counts.keys()
        foreign = {key for key, record in apart.items() if layout.names_place(record)}
        assert {key[1:] for key in stored if key[:1] == layout.BORROWER} == foreign

    def teardown(self) -> None:
        try:
            self.portal.exit(self.rocksdb_hosted)
            self.portal.exit(self.memory_hosted)
        finally:
            self.portal.close()
            shutil.rmtree(self.directory)


TestEnginesAgree = EnginesAgree.TestCase
