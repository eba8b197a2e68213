"""The rules of ``watch``: what is seen, in which order, from where, and what happens when not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import assert_no_checkpoints

from aspenkv import limits
from aspenkv.contract import (
    ABSENT,
    Add,
    Change,
    Copy,
    Delete,
    DeleteRange,
    KeyValue,
    Op,
    Patch,
    Put,
    RevisionIs,
    Watch,
    WatchEvent,
)
from aspenkv.errors import ClosedError, KeyTooLargeError, TooManyError, WatchGapError
from aspenkv.service import Service
from tests.contract.carriers import settle


async def events(watch: Watch, count: int) -> list[WatchEvent]:
    iterator = aiter(watch)
    with trio.fail_after(5):
        return [await anext(iterator) for _ in range(count)]


async def silence(watch: Watch) -> None:
    """Fail if the watch has an event, or one is on its way."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail_on_event, watch)
        await settle()
        nursery.cancel_scope.cancel()


async def fail_on_event(watch: Watch) -> None:
    event = await anext(aiter(watch))
    pytest.fail(f"unexpected {event}")


def written(revision: int, *keys: bytes) -> WatchEvent:
    return WatchEvent(revision, tuple(Change(key, None, None) for key in keys))


async def put(kv: KeyValue, *keys: bytes) -> int:
    return (await kv.commit([], [Put(key, b"value") for key in keys])).revision


async def test_sees_each_commit_in_order_with_its_changes_in_order(
    kv: KeyValue, other: KeyValue
) -> None:
    async with kv.watch(b"p/") as watch:
        await put(kv, b"p/b", b"p/a")
        await put(other, b"p/a")
        await kv.commit([], [Delete(b"p/b"), Patch(b"p/c", 0, b"x"), Add(b"p/d", 1)])
        assert await events(watch, 3) == [
            written(1, b"p/b", b"p/a"),
            written(2, b"p/a"),
            written(3, b"p/b", b"p/c", b"p/d"),
        ]
        await silence(watch)


async def test_sees_only_what_is_below_the_prefix(kv: KeyValue) -> None:
    async with kv.watch(b"p/") as watch:
        await put(kv, b"p", b"p0", b"o/")
        await put(kv, b"a", b"p/", b"q", b"p/\xff")
        assert await events(watch, 1) == [written(2, b"p/", b"p/\xff")]
        await silence(watch)


@pytest.mark.parametrize("prefix", [b"", b"\xff", b"\xff\xff"])
async def test_takes_any_prefix(kv: KeyValue, prefix: bytes) -> None:
    async with kv.watch(prefix) as watch:
        await put(kv, prefix + b"\0", prefix + b"\xff\xff")
        await kv.commit([], [DeleteRange(b"\0", b"\xff\xff\xff\xff")])
        first, second = await events(watch, 2)
    assert first == written(1, prefix + b"\0", prefix + b"\xff\xff")
    assert second == (2, (Change(max(prefix, b"\0"), b"\xff\xff\xff\xff", None),))


@pytest.mark.parametrize(
    ("bounds", "seen"),
    [
        ((b"a", b"z"), (b"p/", b"p0")),
        ((b"p/k", b"z"), (b"p/k", b"p0")),
        ((b"a", b"p/k"), (b"p/", b"p/k")),
        ((b"p/a", b"p/b"), (b"p/a", b"p/b")),
        ((b"a", b"p/"), None),
        ((b"p0", b"z"), None),
        ((b"p/x", b"p/x"), None),
    ],
)
async def test_sees_a_deleted_range_cut_to_the_prefix(
    kv: KeyValue, bounds: tuple[bytes, bytes], seen: tuple[bytes, bytes] | None
) -> None:
    async with kv.watch(b"p/") as watch:
        await kv.commit([], [DeleteRange(*bounds)])
        if seen is None:
            await silence(watch)
        else:
            assert await events(watch, 1) == [WatchEvent(1, (Change(*seen, None),))]


async def test_does_not_see_a_commit_whose_check_failed(kv: KeyValue) -> None:
    await put(kv, b"key")
    async with kv.watch(b"") as watch:
        await kv.commit([RevisionIs(b"key", ABSENT)], [Put(b"key", b"")])
        await kv.commit([RevisionIs(b"key", 1)], [])
        await silence(watch)


async def test_starts_at_the_newest_commit(kv: KeyValue) -> None:
    await put(kv, b"before")
    async with kv.watch(b"") as watch:
        assert watch.revision == 1
        await silence(watch)


@pytest.mark.parametrize("from_revision", range(5))
async def test_resumes_above_any_known_revision(kv: KeyValue, from_revision: int) -> None:
    for index in range(3):
        await put(kv, b"p%d" % index, b"elsewhere")
    await put(kv, b"elsewhere")
    async with kv.watch(b"p", from_revision) as watch:
        expected = [written(at + 1, b"p%d" % at) for at in range(from_revision, 3)]
        assert await events(watch, len(expected)) == expected
        assert await put(kv, b"px") == 5
        assert await events(watch, 1) == [written(5, b"px")]


async def test_resumes_over_a_deleted_range(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"p/a", b""), DeleteRange(b"a", b"z"), Put(b"p/b", b"")])
    async with kv.watch(b"p/", 0) as watch:
        (event,) = await events(watch, 1)
    assert event.changes == (
        Change(b"p/a", None, None),
        Change(b"p/", b"p0", None),
        Change(b"p/b", None, None),
    )


@pytest.mark.parametrize("from_revision", [2, 10**15])
async def test_refuses_a_revision_that_is_not_yet_there(kv: KeyValue, from_revision: int) -> None:
    """So a client learns that a power cut took back what it had seen."""
    await put(kv, b"key")
    with pytest.raises(WatchGapError):
        async with kv.watch(b"", from_revision):
            pass


async def test_refuses_a_revision_that_history_no_longer_reaches(
    kv: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenkv.watches.HISTORY_EVENTS_MAX", 10)
    for _ in range(11):
        await put(kv, b"key")
    with pytest.raises(WatchGapError):
        async with kv.watch(b"", 0):
            pass
    async with kv.watch(b"", 1) as watch:
        assert (await events(watch, 1))[0].revision == 2


@pytest.mark.parametrize(
    ("limit", "value", "keys"),
    [
        ("HISTORY_CHANGES_MAX", 300, [b"%03d" % index for index in range(100)]),
        ("HISTORY_BYTES_MAX", 300 * 1024, [b"%01024d" % index for index in range(100)]),
    ],
)
async def test_history_is_bounded(
    kv: KeyValue, limit: str, value: int, keys: Sequence[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"aspenkv.watches.{limit}", value)
    for _ in range(4):
        await put(kv, *keys)
    with pytest.raises(WatchGapError):
        async with kv.watch(b"", 0):
            pass
    async with kv.watch(b"", 1):
        pass


# How far a watcher may fall behind is exact for a direct client only: over a network, connections
# hold events, too.
async def test_a_watcher_that_falls_behind_is_told_and_writers_never_wait(
    service: Service,
) -> None:
    kv = service.connect()
    async with kv.watch(b"slow") as slow, kv.watch(b"") as another:
        for _ in range(limits.WATCH_BACKLOG_EVENTS_MAX):
            await put(kv, b"slow")
        assert slow.revision == 0
        await events(another, 2)
        assert another.revision == 2
        await put(kv, b"slow")
        with pytest.raises(WatchGapError):
            await anext(aiter(slow))
        await put(kv, b"slow")
        with pytest.raises(WatchGapError):
            await anext(aiter(slow))
        assert slow.revision == 0
        assert len(await events(another, 10)) == 10


async def test_a_watcher_waits_for_the_next_event(kv: KeyValue, nursery: trio.Nursery) -> None:
    seen: list[WatchEvent] = []

    async def follow(watch: Watch) -> None:
        async for event in watch:
            seen.append(event)  # noqa: PERF401 - the test looks at it between two events

    async with kv.watch(b"p") as watch:
        nursery.start_soon(follow, watch)
        await settle()
        await put(kv, b"other")
        await settle()
        assert seen == []
        await put(kv, b"p1")
        await put(kv, b"p2")
        await settle()
        assert seen == [written(2, b"p1"), written(3, b"p2")]
        nursery.cancel_scope.cancel()


async def test_revision_tells_how_far_the_watch_has_come(kv: KeyValue) -> None:
    async with kv.watch(b"p") as watch:
        assert watch.revision == 0
        await put(kv, b"elsewhere")
        await silence(watch)
        assert watch.revision == 1
        await put(kv, b"p1")
        await put(kv, b"p2")
        await put(kv, b"elsewhere")
        await settle()
        assert watch.revision == 1
        await events(watch, 1)
        assert watch.revision == 2
        await events(watch, 1)
        await silence(watch)
        assert watch.revision == 4


async def test_skip_own_leaves_out_the_commits_of_the_same_client(
    kv: KeyValue, other: KeyValue
) -> None:
    async with kv.watch(b"p", skip_own=True) as watch, kv.watch(b"p") as all_of_it:
        await put(kv, b"p1")
        await silence(watch)
        assert watch.revision == 1
        await put(other, b"p2")
        await put(kv, b"p3")
        assert watch.revision == 1
        assert await events(watch, 1) == [written(2, b"p2")]
        await silence(watch)
        assert watch.revision == 3
        assert len(await events(all_of_it, 3)) == 3


async def test_skip_own_holds_for_history_too(kv: KeyValue, other: KeyValue) -> None:
    await put(kv, b"p1")
    await put(other, b"p2")
    async with kv.watch(b"p", 0, skip_own=True) as watch:
        assert await events(watch, 1) == [written(2, b"p2")]
        await silence(watch)


async def reach(watch: Watch, revision: int) -> list[WatchEvent]:
    """Read events until the watch has come to a revision."""
    iterator = aiter(watch)
    seen: list[WatchEvent] = []
    while watch.revision < revision:
        with trio.fail_after(5):
            seen.append(await anext(iterator))
    return seen


async def test_newest_is_the_last_commit_that_concerns_the_watch(
    kv: KeyValue, other: KeyValue
) -> None:
    async with kv.watch(b"p", skip_own=True) as others, kv.watch(b"p") as everyones:
        for watch in (others, everyones):
            assert (await watch.newest()).revision <= watch.revision == 0
        revision = await put(kv, b"p1")
        assert (await others.newest()).revision == 0
        assert (await everyones.newest()).revision == revision
        revision = await put(other, b"p2")
        await put(other, b"elsewhere")
        assert (await others.newest()).revision == revision
        assert (await everyones.newest()).revision == revision
        assert await reach(others, revision) == [written(2, b"p2")]
        assert (await others.newest()).revision == revision


async def test_newest_needs_no_event_to_have_been_read(kv: KeyValue, other: KeyValue) -> None:
    async with kv.watch(b"p") as watch:
        for _ in range(50):
            await put(other, b"p")
        assert (await watch.newest()).revision == 50
        assert len(await reach(watch, 50)) == 50


async def test_newest_counts_what_is_told_of_the_past(kv: KeyValue, other: KeyValue) -> None:
    await put(kv, b"p1")
    await put(other, b"p2")
    await put(kv, b"p3")
    await put(kv, b"elsewhere")
    async with kv.watch(b"p", 0, skip_own=True) as others, kv.watch(b"p", 0) as everyones:
        assert (await others.newest()).revision == 2
        assert (await everyones.newest()).revision == 3
    async with kv.watch(b"p", 3) as watch:
        assert (await watch.newest()).revision <= watch.revision


async def test_what_is_answered_before_newest_is_asked_is_told_by_its_revision(
    kv: KeyValue, other: KeyValue
) -> None:
    """Two clients write while a third asks and reads, each as fast as it can."""
    answered: set[int] = set()
    told: set[int] = set()

    async def write(writer: KeyValue) -> None:
        for _ in range(40):
            answered.add(await put(writer, b"p"))
            await put(writer, b"elsewhere")

    async with kv.watch(b"p") as watch, trio.open_nursery() as nursery:
        for writer in (kv, other):
            nursery.start_soon(write, writer)
        while len(told) < 80:
            before = frozenset(answered)
            newest = await watch.newest()
            told.update(event.revision for event in await reach(watch, newest.revision))
            assert before <= told
            await trio.lowlevel.checkpoint()


async def test_newest_of_a_direct_client_does_not_let_others_run(service: Service) -> None:
    async with service.connect().watch(b"p") as watch:
        with assert_no_checkpoints():
            await watch.newest()


async def test_newest_fails_as_the_watch_did(service: Service) -> None:
    kv = service.connect()
    async with kv.watch(b"p") as watch:
        for _ in range(limits.WATCH_BACKLOG_EVENTS_MAX + 1):
            await put(kv, b"p")
        with pytest.raises(WatchGapError):
            await watch.newest()
    async with kv.watch(b"p") as watch:
        service.close()
        with pytest.raises(ClosedError):
            await watch.newest()


async def test_a_closed_watch_knows_no_newest_commit(kv: KeyValue) -> None:
    async with kv.watch(b"p") as watch:
        pass
    with pytest.raises(ClosedError):
        await watch.newest()


@pytest.mark.parametrize("size", [3, 80_000])
async def test_values_on_request(kv: KeyValue, size: int) -> None:
    view = memoryview(bytearray(b"v" * size))
    ops: list[Op] = [
        Put(b"p/a", b"a" * size),
        Put(b"elsewhere", b""),
        Patch(b"p/b", 0, b"x"),
        Put(b"p/c", view),
        Add(b"p/d", 1),
        Copy(b"p/e", b"p/c"),
        Copy(b"elsewhere", b"p/c"),
        Delete(b"p/a"),
        DeleteRange(b"a", b"z"),
    ]
    async with kv.watch(b"p/", values=True) as watch:
        await kv.commit([], ops)
        view[:] = bytes(size)
        (event,) = await events(watch, 1)
    assert event.changes == (
        Change(b"p/a", None, b"a" * size),
        Change(b"p/b", None, None),
        Change(b"p/c", None, b"v" * size),
        Change(b"p/d", None, None),
        Change(b"p/e", None, None),
        Change(b"p/a", None, None),
        Change(b"p/", b"p0", None),
    )


async def test_history_has_no_values(kv: KeyValue) -> None:
    await put(kv, b"p")
    async with kv.watch(b"p", 0, values=True) as watch:
        assert await events(watch, 1) == [written(1, b"p")]


async def test_the_backlog_is_bounded_in_bytes_of_values(service: Service) -> None:
    kv = service.connect()
    megabyte = b"v" * limits.VALUE_BYTES_MAX
    count = limits.WATCH_BACKLOG_BYTES_MAX // len(megabyte)
    async with kv.watch(b"", values=True) as watch:
        for _ in range(count):
            await kv.commit([], [Put(b"key", megabyte)])
        await events(watch, 1)
        await kv.commit([], [Put(b"key", megabyte)])
        await events(watch, count)
        for _ in range(count + 1):
            await kv.commit([], [Put(b"key", megabyte)])
        with pytest.raises(WatchGapError):
            await anext(aiter(watch))


async def test_there_is_a_limit_to_open_watches(
    kv: KeyValue, other: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenkv.watches.WATCHES_MAX", 8)
    async with trio.open_nursery() as nursery:

        async def hold(task_status: trio.TaskStatus[None]) -> None:
            async with kv.watch(b"p"):
                task_status.started()
                await trio.sleep_forever()

        for _ in range(8):
            await nursery.start(hold)
        assert (await kv.status()).watches == 8
        with pytest.raises(TooManyError):
            async with other.watch(b"q"):
                pass
        nursery.cancel_scope.cancel()
    await settle()
    async with other.watch(b"q"):
        assert (await kv.status()).watches == 1
    await settle()
    assert (await kv.status()).watches == 0


async def test_refuses_a_prefix_longer_than_any_key(kv: KeyValue) -> None:
    with pytest.raises(KeyTooLargeError):
        async with kv.watch(b"p" * (limits.RANGE_BOUND_BYTES_MAX + 1)):
            pass


# Over a network the connection ends with it: see tests/unit/aspenkv/test_listen.py.
async def test_ends_with_the_service(service: Service) -> None:
    kv = service.connect()
    async with kv.watch(b"") as watch:
        service.close()
        with pytest.raises(ClosedError):
            await anext(aiter(watch))


async def test_a_closed_watch_has_no_more_events(kv: KeyValue) -> None:
    async with kv.watch(b"") as watch:
        await put(kv, b"key")
    with pytest.raises(ClosedError):
        await anext(aiter(watch))
