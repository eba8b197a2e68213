"""Many clients at once: one order of commits, whole reads, and cancellation that leaves no half."""

from __future__ import annotations

import trio

from aspenkv.contract import ABSENT, Add, Check, KeyValue, Op, Put, RevisionIs
from tests.contract.carriers import Connect, settle

BIG = 200_000
"""Bytes of a value that makes a commit run in a thread."""


async def test_large_and_small_commits_have_one_order(connect: Connect) -> None:
    """Each commit adds one and is seen once, in the order of revisions."""
    watcher = await connect()

    async def work(kv: KeyValue, size: int) -> None:
        for _ in range(10):
            await kv.commit([], [Add(b"count", 1), Put(b"value", bytes(size))])
            await trio.lowlevel.checkpoint()

    async with watcher.watch(b"") as watch:
        async with trio.open_nursery() as nursery:
            for size in (1, BIG, 1, BIG):
                nursery.start_soon(work, await connect(), size)
        seen = [(await anext(aiter(watch))).revision for _ in range(40)]
        assert seen == list(range(1, 41))
        assert watch.revision == 40
    (count,) = await watcher.get([b"count"])
    assert count == ((40).to_bytes(8, "little"), 40)


async def test_one_winner_among_many(connect: Connect) -> None:
    wins: list[int] = []

    async def create(size: int) -> None:
        kv = await connect()
        checks: list[Check] = [RevisionIs(b"key", ABSENT)]
        result = await kv.commit(checks, [Put(b"key", bytes(size))])
        if result.failed_check is None:
            wins.append(size)

    async with trio.open_nursery() as nursery:
        for size in (BIG, 1, BIG + 1, 2):
            nursery.start_soon(create, size)
    assert len(wins) == 1


async def test_reads_see_all_of_a_commit_or_nothing(kv: KeyValue) -> None:
    """A reader meets commits in flight; both values are always of one revision."""
    names = [b"a", b"b", b"large"]
    done = False

    async def write() -> None:
        nonlocal done
        for index in range(60):
            ops: list[Op] = [Put(b"a", b"%d" % index), Put(b"large", bytes(BIG)), Put(b"b", b"")]
            await kv.commit([], ops)
        done = True

    await kv.commit([], [Put(name, b"") for name in names])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        newest = 0
        while not done:
            for bulk in (False, True):
                found = await kv.get(names if bulk else names[:2], bulk=bulk)
                revisions = {each.revision for each in found if each is not None}
                assert len(revisions) == 1
                newest = max(newest, *revisions)
                assert await kv.revision() >= newest
            page = await kv.scan(b"", b"z", limit=10, keys_only=True)
            assert len({record.revision for record in page.records}) == 1
            await trio.lowlevel.checkpoint()


async def test_a_cancelled_commit_ran_wholly_or_not_at_all(kv: KeyValue) -> None:
    acknowledged = 0
    async with kv.watch(b"") as watch:
        for attempt in range(30):
            with trio.move_on_after(0.0005 * (attempt % 6)) as scope:
                await kv.commit([], [Add(b"count", 1), Put(b"value", bytes(BIG))])
                acknowledged += 1
            assert scope.cancel_called or acknowledged
        await settle()
        (count,) = await kv.get([b"count"])
        total = 0 if count is None else int.from_bytes(count.value, "little")
        assert acknowledged <= total <= 30
        assert await kv.revision() == total
        assert watch.revision == 0 or total == 0
        for revision in range(1, total + 1):
            assert (await anext(aiter(watch))).revision == revision
        assert watch.revision == total


async def test_sync_returns_while_others_commit(kv: KeyValue) -> None:

    async def commit() -> None:
        for _ in range(5):
            await kv.commit([], [Put(b"value", bytes(BIG))])

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            for _ in range(3):
                await kv.sync()
