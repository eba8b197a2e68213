"""Which calls of the rocksdb engine run in threads, and what they do when they fail."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aspenkv import limits
from aspenkv.contract import Add, CommitResult, Delete, DeleteRange, Op, Patch, Put, RangeEmpty
from aspenkv.engine import NO_SERVER_RECORDS
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.engine.rocksdb.layout import LARGE
from aspenkv.errors import ClosedError, DataCorruptError, EngineError, StorageFullError

BIG = bytes(80_000)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[RocksdbEngine]:
    async with RocksdbEngine.open(tmp_path) as engine:
        yield engine


class Watched:
    """A database that does something else in the stead of, or before, some of its calls."""

    def __init__(self, db: Any, **calls: Callable[..., Any]) -> None:
        self.db = db
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        return self.calls.get(name) or getattr(self.db, name)


def watch(engine: RocksdbEngine, **calls: Callable[..., Any]) -> Any:
    """Replace calls of an engine's database; return the database."""
    db = engine._db
    engine._db = Watched(db, **calls)  # type: ignore[assignment]
    return db


def failing(text: str) -> Callable[..., Any]:
    def fail(*_args: object) -> None:
        raise Exception(text)  # noqa: TRY002 - as rocksdict does

    return fail


async def put(engine: RocksdbEngine, *ops: Op) -> CommitResult:
    return await engine.commit((), ops, NO_SERVER_RECORDS)


def put_nowait(engine: RocksdbEngine, *ops: Op) -> CommitResult | None:
    return engine.commit_nowait((), ops, NO_SERVER_RECORDS)


async def test_small_commits_run_inline(engine: RocksdbEngine) -> None:
    ops = (
        Put(b"a", b"1"),
        Patch(b"b", 2, b"x"),
        Add(b"c", 1),
        Delete(b"a"),
        DeleteRange(b"x", b"z"),
    )
    assert put_nowait(engine, *ops) == (1, None)


async def test_a_commit_that_meets_a_write_stall_is_done_in_a_thread(
    engine: RocksdbEngine,
) -> None:
    def stalled(batch: Any, options: Any) -> None:
        if options.no_slowdown:
            raise Exception("Result incomplete: Write stall")  # noqa: TRY002 - as rocksdict does
        assert threading.current_thread() is not threading.main_thread()
        db.write(batch, options)

    db = watch(engine, write=stalled)
    assert put_nowait(engine, Put(b"key", b"value")) is None
    assert engine.revision() == 0
    assert await put(engine, Put(b"key", b"value")) == (1, None)


async def test_patches_that_read_much_are_not_inline(engine: RocksdbEngine) -> None:
    for name in (b"a", b"b"):
        await put(engine, Put(name, BIG))
    assert put_nowait(engine, Patch(b"a", 1, b"x")) is not None
    assert put_nowait(engine, Patch(b"a", 1, b"x"), Patch(b"b", 1, b"x")) is None
    assert put_nowait(engine, Patch(b"a", 0, BIG), Patch(b"b", 0, BIG)) is not None


async def test_deletions_of_long_ranges_are_not_inline(engine: RocksdbEngine) -> None:
    count = limits.INLINE_RANGE_DELETE_KEYS_MAX
    await put(engine, *(Put(b"%03d" % index, b"") for index in range(count + 1)))
    assert put_nowait(engine, DeleteRange(b"000", b"999")) is None
    assert put_nowait(engine, DeleteRange(b"001", b"999")) is not None


async def test_checks_and_scans_over_many_deleted_keys_are_not_inline(
    engine: RocksdbEngine,
) -> None:
    names = [b"%05d" % index for index in range(limits.INLINE_SKIPS_MAX + 10)]
    await put(engine, *(Put(name, b"") for name in names))
    await put(engine, *(Delete(name) for name in names))
    check = RangeEmpty(b"0", b"9")
    assert engine.commit_nowait((check,), (Put(b"x", b""),), NO_SERVER_RECORDS) is None
    assert await engine.commit((check,), (Put(b"x", b""),), NO_SERVER_RECORDS) == (3, None)
    page = await engine.scan(b"0", b"z", limit=1, keys_only=False, reverse=False)
    assert [record.key for record in page.records] == [b"x"]


async def test_large_values_and_long_pages_are_read_in_threads(engine: RocksdbEngine) -> None:
    threads: list[bool] = []

    def note(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            threads.append(threading.current_thread() is threading.main_thread())
            return call(*args)

        return noted

    await put(engine, Put(b"large", BIG), Put(b"small", b""))
    db = engine._db
    watch(engine, get=note(db.get), snapshot=note(db.snapshot))

    async def inline(call: Any) -> list[bool]:
        threads.clear()
        await call
        return threads

    def scan(limit: int, *, keys_only: bool) -> Any:
        return engine.scan(b"a", b"z", limit=limit, keys_only=keys_only, reverse=False)

    assert await inline(engine.get([b"small"], bulk=False)) == [True]
    assert await inline(engine.get([b"small"], bulk=True)) == [False]
    assert await inline(engine.get([b"large"], bulk=False)) == [True, False, False]
    assert await inline(engine.get([b"x"] * limits.INLINE_GET_KEYS_MAX, bulk=False)) == [True]
    assert await inline(engine.get([b"x"] * (limits.INLINE_GET_KEYS_MAX + 1), bulk=False)) == [
        False
    ]
    assert await inline(scan(limits.INLINE_SCAN_ENTRIES_MAX, keys_only=True)) == [True]
    assert await inline(scan(limits.INLINE_SCAN_ENTRIES_MAX + 1, keys_only=True)) == [False]
    assert await inline(scan(1, keys_only=False)) == [True, False]


@pytest.mark.parametrize("stored", [None, b"\x01" + BIG[1:], BIG[:-1]])
async def test_large_values_that_are_gone_or_changed_are_an_error(
    engine: RocksdbEngine, stored: bytes | None
) -> None:
    await put(engine, Put(b"key", BIG))
    if stored is None:
        engine._db.delete(LARGE + b"key")
    else:
        engine._db.put(LARGE + b"key", stored)
    for call in (
        lambda: engine.get([b"key"], bulk=True),
        lambda: engine.scan(b"a", b"z", limit=10, keys_only=False, reverse=False),
        lambda: put(engine, Patch(b"key", 1, b"x")),
    ):
        with pytest.raises(DataCorruptError, match="key"):
            await call()


@pytest.mark.parametrize(
    "ops",
    [
        [Put(b"a", b"small")],
        [Patch(b"a", 0, b"", 1)],
        [Delete(b"a")],
        [DeleteRange(b"a", b"b")],
        [DeleteRange(b"0", b"z")],
        [Put(b"a", BIG), Put(b"a", b"small")],
        [Put(b"a", b"small"), Put(b"a", BIG), Delete(b"a")],
        [DeleteRange(b"0", b"z"), Put(b"a", BIG), Delete(b"a")],
    ],
)
async def test_a_large_value_that_is_gone_leaves_nothing_behind(
    engine: RocksdbEngine, ops: list[Op]
) -> None:
    await put(engine, *(Put(b"0%05d" % index, b"") for index in range(1100)))
    await put(engine, Put(b"a", BIG))
    await put(engine, *ops)
    assert engine._db.get(LARGE + b"a") is None


@pytest.mark.parametrize("times", [1, limits.READ_ATTEMPTS_MAX - 1])
async def test_a_large_value_overwritten_while_it_is_read_is_read_again(
    engine: RocksdbEngine, times: int
) -> None:
    """Between the record and the value, another commits; what comes back is all of one moment."""
    newest = 0

    def overwrite_then_get(key: Any, *rest: Any) -> Any:
        nonlocal newest
        if isinstance(key, bytes) and key.startswith(LARGE) and newest < times:
            newest += 1
            value = newest.to_bytes(8, "big") * 10_000
            engine._db = db
            engine._commit((), [Put(b"a", value), Put(b"b", value)], {}, inline=False)
            engine._db = watched
        return db.get(key, *rest)

    await put(engine, Put(b"a", BIG), Put(b"b", BIG))
    db = watch(engine, get=overwrite_then_get)
    watched = engine._db
    expected = (times.to_bytes(8, "big") * 10_000, times + 1)
    assert await engine.get([b"a", b"b"], bulk=True) == [expected, expected]


async def test_much_deleted_data_is_flushed_so_that_its_space_comes_back(
    engine: RocksdbEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("engine", "commit"):
        monkeypatch.setattr(f"aspenkv.engine.rocksdb.{module}.RECLAIM_BYTES_MIN", 2 * len(BIG))
    flushes: list[bool] = []
    watch(engine, flush=flushes.append)
    await put(engine, *(Put(b"%d" % index, BIG) for index in range(3)))
    assert put_nowait(engine, Delete(b"0")) is not None
    assert put_nowait(engine, Delete(b"1")) is not None
    assert flushes == []
    assert put_nowait(engine, Delete(b"2")) is None
    await put(engine, Delete(b"2"))
    assert flushes == [False]
    assert put_nowait(engine, Put(b"0", b"")) is not None


async def test_one_sync_serves_all_who_wait(engine: RocksdbEngine) -> None:
    syncs = 0
    going_on = threading.Event()

    def slow(sync: bool) -> None:
        nonlocal syncs
        syncs += 1
        going_on.wait(10)
        db.flush_wal(sync)

    db = watch(engine, flush_wal=slow)
    await engine.sync()
    assert syncs == 0, "nothing was written"
    await put(engine, Put(b"a", b""))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.sync)
        await wait_all_tasks_blocked()
        put_nowait(engine, Put(b"b", b""))
        for _ in range(5):  # wrote after the first sync began: they need one more, and only one
            nursery.start_soon(engine.sync)
        await wait_all_tasks_blocked()
        going_on.set()
    assert syncs == 2
    await engine.sync()
    assert syncs == 2


async def test_a_sync_that_failed_is_done_again(engine: RocksdbEngine) -> None:
    put_nowait(engine, Put(b"a", b""))
    db = watch(engine, flush_wal=failing("IO error: Input/output error"))
    with pytest.raises(EngineError, match="Input/output error"):
        await engine.sync()
    syncs: list[bool] = []
    engine._db = Watched(db, flush_wal=syncs.append)  # type: ignore[assignment]
    await engine.sync()
    assert syncs == [True]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("IO error: No space left on device: While appending to file", StorageFullError),
        ("Corruption: block checksum mismatch", DataCorruptError),
        ("IO error: No such file or directory: while stat a file", DataCorruptError),
        ("IO error: Writer has previous error.", EngineError),
        ("IO error: Input/output error", EngineError),
        ("DB instance already closed", ClosedError),
    ],
)
async def test_errors_are_typed_and_name_the_directory(
    engine: RocksdbEngine, tmp_path: Path, text: str, error: type[Exception]
) -> None:
    watch(engine, write=failing(text + "\nmore"), get=failing(text + "\nmore"))
    for call in (
        lambda: put(engine, Put(b"key", b"")),
        lambda: engine.get([b"key"], bulk=False),
        lambda: engine.get([b"key"], bulk=True),
    ):
        with pytest.raises(error) as caught:
            await call()
        assert type(caught.value) is error
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value) or error is ClosedError


async def test_a_bug_is_not_taken_for_an_error_of_the_disk(engine: RocksdbEngine) -> None:
    def bug(*_args: object) -> None:
        raise LookupError("a bug")

    watch(engine, get=bug)
    with pytest.raises(LookupError, match="a bug"):
        await engine.get([b"key"], bulk=False)


async def test_is_refused_after_it_was_closed(tmp_path: Path) -> None:
    async with RocksdbEngine.open(tmp_path) as engine:
        pass
    for call in (
        lambda: engine.get([b"key"], bulk=False),
        lambda: put(engine, Put(b"key", b"")),
        lambda: engine.scan(b"a", b"z", limit=1, keys_only=False, reverse=False),
    ):
        with pytest.raises(ClosedError):
            await call()


# --- a full disk -----------------------------------------------------------------------------


async def test_a_nearly_full_disk_takes_deletions_only(
    engine: RocksdbEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes = limits.RESERVED_BYTES + 1
    monkeypatch.setattr(
        "os.statvfs",
        lambda _path: SimpleNamespace(f_bavail=free_bytes, f_frsize=1, f_blocks=2**40),
    )
    megabyte = bytes(1024 * 1024)
    await put(engine, Put(b"key", megabyte))
    assert engine.usage().available_bytes == 1
    free_bytes -= 1
    assert engine.usage().available_bytes == 0
    for _ in range(limits.SPACE_CHECK_BYTES // len(megabyte) - 2):
        await put(engine, Put(b"key", megabyte))
    for _ in range(2):
        with pytest.raises(StorageFullError, match="128 MiB"):
            await put(engine, Put(b"key", megabyte))
    with pytest.raises(StorageFullError):
        put_nowait(engine, Put(b"small", b""))
    assert put_nowait(engine, Put(b"times", b""), Delete(b"key")) is not None
    assert put_nowait(engine, DeleteRange(b"a", b"b")) is not None
    assert await engine.get([b"key", b"small"], bulk=False) == [None, None]
    free_bytes += 1
    assert put_nowait(engine, Put(b"small", b"")) is not None
