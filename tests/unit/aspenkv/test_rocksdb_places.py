"""Large values that several keys have: stored once, and as long as any of them has it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aspenkv.contract import Copy, Delete, DeleteRange, KeyValue, Op, Patch, Put
from aspenkv.embedded import open_embedded
from aspenkv.engine.rocksdb import RocksdbEngine, layout
from aspenkv.errors import DataCorruptError
from aspenkv.limits import COMMIT_OPS_MAX, RANGE_DELETE_KEYS_MAX

A, B, NEW = (random.Random(seed).randbytes(20_000) for seed in range(3))


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[RocksdbEngine]:
    async with RocksdbEngine.open(tmp_path / "data") as engine:
        yield engine


@pytest.fixture
async def kv(engine: RocksdbEngine) -> AsyncIterator[KeyValue]:
    async with open_embedded(engine) as service:
        kv = service.connect()
        await kv.commit([], [Put(b"a", A)])
        await kv.commit([], [Copy(b"b", b"a")])
        yield kv


def places(engine: RocksdbEngine) -> list[bytes]:
    """Return where large values lie."""
    stored: dict[Any, Any] = dict(engine._db.items())
    return sorted(key for key in stored if key[:1] in {layout.LARGE, layout.UNNAMED})


async def values(kv: KeyValue, *keys: bytes) -> list[bytes | None]:
    return [None if each is None else each.value for each in await kv.get(keys, bulk=True)]


async def test_a_copy_is_stored_once(engine: RocksdbEngine, kv: KeyValue) -> None:
    assert places(engine) == [b"ba"]
    assert await values(kv, b"a", b"b") == [A, A]
    assert [record.value for record in (await kv.scan(b"a", b"c", limit=9)).records] == [A, A]


@pytest.mark.parametrize(
    "op",
    [Put(b"a", NEW), Put(b"a", b"small"), Patch(b"a", 0, b"P"), Delete(b"a"), Copy(b"a", b"no")],
    ids=lambda op: type(op).__name__,
)
async def test_what_becomes_of_the_source_is_nothing_to_the_copy(
    engine: RocksdbEngine, kv: KeyValue, op: Op
) -> None:
    await kv.commit([], [op])
    assert await values(kv, b"b") == [A]
    await kv.commit([], [Put(b"a", NEW)])
    assert await values(kv, b"a", b"b") == [NEW, A]
    assert len(places(engine)) == 2
    await kv.commit([], [Delete(b"b")])
    assert await values(kv, b"a", b"b") == [NEW, None]
    assert len(places(engine)) == 1
    await kv.commit([], [Delete(b"a")])
    assert places(engine) == []


async def test_a_copy_that_changes_leaves_its_source_alone(
    engine: RocksdbEngine, kv: KeyValue
) -> None:
    await kv.commit([], [Patch(b"b", 0, b"P")])
    assert await values(kv, b"a", b"b") == [A, b"P" + A[1:]]
    assert places(engine) == [b"ba", b"bb"]
    await kv.commit([], [Put(b"a", NEW)])  # nobody else has it any more: it stays in its place
    assert places(engine) == [b"ba", b"bb"]


async def test_a_copy_of_a_copy(engine: RocksdbEngine, kv: KeyValue) -> None:
    await kv.commit([], [Copy(b"c", b"b"), Delete(b"b")])
    await kv.commit([], [Delete(b"a"), Copy(b"d", b"c")])
    assert await values(kv, b"a", b"b", b"c", b"d") == [None, None, A, A]
    await kv.commit([], [Copy(b"a", b"d"), Delete(b"c"), Delete(b"d")])
    assert await values(kv, b"a") == [A]
    assert places(engine) == [b"ba"]


async def test_a_value_without_a_place_of_its_own_is_copied_too(
    engine: RocksdbEngine, kv: KeyValue
) -> None:
    await kv.commit([], [Put(b"a", NEW)])
    await kv.commit([], [Copy(b"c", b"a")])
    assert await values(kv, b"a", b"b", b"c") == [NEW, A, NEW]
    await kv.commit([], [Delete(b"a"), Delete(b"b")])
    assert await values(kv, b"c") == [NEW]
    assert len(places(engine)) == 1


async def test_values_that_one_commit_writes_copies_and_writes_over(
    engine: RocksdbEngine, kv: KeyValue
) -> None:
    writes: list[Op] = [Put(b"x", B), Copy(b"y", b"x"), Put(b"x", NEW), Copy(b"z", b"x")]
    await kv.commit([], [*writes, Put(b"x", A)])
    assert await values(kv, b"x", b"y", b"z") == [A, B, NEW]
    assert len(places(engine)) == 4
    await kv.commit([], [DeleteRange(b"x", b"z0"), DeleteRange(b"a", b"c")])
    assert places(engine) == []


@pytest.mark.parametrize("start", [b"a", b"b"], ids=["source", "copy"])
async def test_a_large_range_is_deleted_but_for_what_others_have(
    engine: RocksdbEngine, kv: KeyValue, start: bytes
) -> None:
    """The range holds one of the two keys, among more than are deleted one by one."""
    rows = [Put(start + b"%05d" % number, b"") for number in range(RANGE_DELETE_KEYS_MAX + 5)]
    for at in range(0, len(rows), COMMIT_OPS_MAX):
        await kv.commit([], rows[at : at + COMMIT_OPS_MAX])
    await kv.commit([], [DeleteRange(start, start + b"\xff")])
    other = b"b" if start == b"a" else b"a"
    assert [record.key for record in (await kv.scan(b"a", b"c", limit=9)).records] == [other]
    assert await values(kv, other) == [A]
    await kv.commit([], [Delete(other)])
    assert places(engine) == []


async def test_a_large_range_without_copies_is_deleted_at_once(
    engine: RocksdbEngine, kv: KeyValue
) -> None:
    rows = [Put(b"c%05d" % number, b"") for number in range(RANGE_DELETE_KEYS_MAX + 5)]
    for at in range(0, len(rows), COMMIT_OPS_MAX):
        await kv.commit([], rows[at : at + COMMIT_OPS_MAX])
    await kv.commit([], [Put(b"c", NEW)])
    await kv.commit([], [DeleteRange(b"c", b"d")])
    assert places(engine) == [b"ba"]
    assert await values(kv, b"a", b"b", b"c") == [A, A, None]


async def test_copies_outlive_the_process(tmp_path: Path) -> None:
    async with RocksdbEngine.open(tmp_path) as engine, open_embedded(engine) as service:
        kv = service.connect()
        await kv.commit([], [Put(b"a", A)])
        assert engine._db.get(layout.LAYOUT) == layout.LAYOUT_VERSION
        await kv.commit([], [Copy(b"b", b"a")])
        assert engine._db.get(layout.LAYOUT) == layout.LAYOUT_VERSION_SHARING
    async with RocksdbEngine.open(tmp_path) as engine, open_embedded(engine) as service:
        kv = service.connect()
        await kv.commit([], [Put(b"a", NEW)])
        assert await values(kv, b"a", b"b") == [NEW, A]


async def test_a_damaged_value_is_damaged_for_all_who_have_it(
    engine: RocksdbEngine, kv: KeyValue
) -> None:
    engine._db.put(b"ba", A[1:])
    for key in (b"a", b"b"):
        with pytest.raises(DataCorruptError):
            await kv.get([key], bulk=True)
