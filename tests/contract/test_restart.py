"""What a server finds again when it is started on the same data, and what it must not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from trio.testing import MockClock

from aspenkv.contract import KeyValue, Put, RevisionIs
from aspenkv.errors import ClosedError, LeaseNotFoundError, WatchGapError
from aspenkv.service import Service
from tests.contract.carriers import Serve, pass_time

OpenServer = Callable[[], AbstractAsyncContextManager[Service]]

BIG = b"v" * 80_000


async def keys(kv: KeyValue) -> list[bytes]:
    page = await kv.scan(b"", b"\xff", limit=1000, keys_only=True)
    return [record.key for record in page.records]


async def test_keys_values_and_revisions_are_kept(serve: Serve) -> None:
    async with serve() as connect:
        kv = await connect()
        await kv.commit([], [Put(b"a", b"1"), Put(b"b", BIG)])
        await kv.commit([], [Put(b"\0\xff", b"")])
        await kv.sync()
    async with serve() as connect:
        kv = await connect()
        assert await kv.revision() == 2
        assert (await kv.status()).revision == 2
        assert await kv.get([b"a", b"b", b"\0\xff"]) == [(b"1", 1), (BIG, 1), (b"", 2)]
        assert await kv.commit([RevisionIs(b"a", 1)], [Put(b"a", b"2")]) == (3, None)


async def test_history_is_not_kept(serve: Serve) -> None:
    async with serve() as connect:
        kv = await connect()
        for _ in range(3):
            await kv.commit([], [Put(b"key", b"")])
    async with serve() as connect:
        kv = await connect()
        with pytest.raises(WatchGapError):
            async with kv.watch(b"", 2):
                pass
        async with kv.watch(b"", 3) as watch:
            await kv.commit([], [Put(b"key", b"")])
            assert (await anext(aiter(watch))).revision == 4


async def test_keys_of_the_servers_own_process_vanish_in_one_commit(
    open_server: OpenServer,
) -> None:
    """Who held their lease died with the last server: only direct clients do."""
    async with open_server() as service:
        kv = service.connect()
        lease, second = await kv.lease(3600), await kv.lease(3600)
        await kv.commit([], [Put(b"a1", b"", lease), Put(b"a2", BIG, lease)])
        await kv.commit([], [Put(b"b", b"", second)])
        await kv.commit([], [Put(b"stays", b"")])
    async with open_server() as service:
        kv = service.connect()
        assert await keys(kv) == [b"stays"]
        assert await kv.revision() == 4
        assert (await kv.status()).leases == 0
        with pytest.raises(LeaseNotFoundError):
            await kv.keepalive(lease)


async def test_a_restart_with_nothing_to_remove_makes_no_commit(open_server: OpenServer) -> None:
    async with open_server() as service:
        kv = service.connect()
        lease = await kv.lease(3600)
        await kv.commit([], [Put(b"key", b"", lease)])
        await kv.commit([], [Put(b"key", b"")])
    async with open_server() as service:
        assert await service.connect().revision() == 2


async def test_other_leases_have_their_full_time_again(serve: Serve, clock: MockClock) -> None:
    async with serve() as connect:
        kv = await connect(process_bound=False)
        lease = await kv.lease(10)
        await kv.commit([], [Put(b"a", b"", lease), Put(b"b", b"", lease)])
        await kv.commit([], [Put(b"b", b"")])
        await pass_time(clock, 9)
    async with serve() as connect:
        kv = await connect(process_bound=False)
        await pass_time(clock, 9)
        await kv.keepalive(lease)
        await pass_time(clock, 9)
        assert await keys(kv) == [b"a", b"b"]
        await kv.revoke(lease)
        assert await keys(kv) == [b"b"]
    async with serve() as connect:
        assert (await (await connect()).status()).leases == 0


async def test_every_call_after_the_end_is_refused(open_server: OpenServer) -> None:
    async with open_server() as service:
        kv = service.connect()
        lease = await kv.lease(10)
    calls = (
        lambda: kv.get([b"key"]),
        lambda: kv.get([b"key"], bulk=True),
        lambda: kv.scan(b"a", b"b", limit=1),
        lambda: kv.commit([], [Put(b"key", b"")]),
        lambda: kv.lease(10),
        lambda: kv.keepalive(lease),
        lambda: kv.revoke(lease),
        kv.revision,
        kv.sync,
        kv.status,
    )
    for call in calls:
        with pytest.raises(ClosedError):
            await call()
    with pytest.raises(ClosedError):
        async with kv.watch(b""):
            pass


async def test_a_commit_that_waits_its_turn_when_the_service_closes_is_refused(
    service: Service,
) -> None:
    kv = service.connect()
    outcomes: list[object] = []

    async def commit() -> None:
        try:
            outcomes.append(await kv.commit([], [Put(b"key", b"v" * 1_000_000)]))
        except ClosedError as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(commit)
        await trio.lowlevel.checkpoint()
        service.close()
    assert {type(outcome).__name__ for outcome in outcomes} <= {"CommitResult", "ClosedError"}
    assert isinstance(outcomes[-1], ClosedError)
