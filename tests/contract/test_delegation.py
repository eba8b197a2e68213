"""The rules of delegations: who is alone, what that is worth, and that it holds up nobody long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenkv.contract import Add, CommitResult, KeyValue, Op, Put, SlotUse, Watch
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import ClosedError
from aspenkv.limits import DELEGATION_QUIET_S, DELEGATION_S, DELEGATION_SLACK_S, HISTORY_EVENTS_MAX
from aspenkv.service import RemoteSession, Service
from aspenkv.store import Store
from aspenkv.watches import Watcher
from tests.contract.carriers import Carrier, Connect, pass_time, settle
from tests.contract.clients import READER, A, B, enter, join, make_ticket

OpenServer = Callable[[], AbstractAsyncContextManager[Service]]

KEPT_S = DELEGATION_S + DELEGATION_SLACK_S
A_MOMENT_S = 0.01
ID = b"N" * 16


async def put(kv: KeyValue | RemoteSession, *keys: bytes, size: int = 5) -> int:
    ops: list[Op] = [Put(key, bytes(size)) for key in keys]
    return (await kv.commit([], ops)).revision


async def alone_s(watch: Watch) -> float:
    return (await watch.newest()).alone_s


class Commits:
    """Commits that may have to wait, and when each was done."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.done_s: list[float] = []
        self.done = trio.Event()

    def start(self, kv: KeyValue | RemoteSession, ops: Sequence[Op]) -> None:
        self._nursery.start_soon(self._commit, kv, ops)

    async def _commit(self, kv: KeyValue | RemoteSession, ops: Sequence[Op]) -> None:
        await kv.commit([], ops)
        self.done_s.append(trio.current_time())
        self.done.set()


# --- who is alone


async def test_a_client_is_alone_if_nobody_else_watches_or_commits(kv: KeyValue) -> None:
    await put(kv, b"p1")
    async with kv.watch(b"p") as watch, kv.watch(b"p1", skip_own=True) as another:
        assert await alone_s(watch) == DELEGATION_S
        await put(kv, b"p1")
        assert await alone_s(another) == DELEGATION_S
        assert await alone_s(watch) == DELEGATION_S


@pytest.mark.parametrize(
    ("prefix", "is_alone"),
    [(b"p", False), (b"", False), (b"p1", False), (b"o", True), (b"q", True)],
)
async def test_a_client_is_not_alone_while_another_watches_the_same(
    kv: KeyValue, other: KeyValue, prefix: bytes, is_alone: bool
) -> None:
    async with kv.watch(b"p") as watch:
        assert await alone_s(watch) == DELEGATION_S
        async with other.watch(prefix) as another:
            assert bool(await alone_s(watch)) is is_alone
            assert bool(await alone_s(another)) is is_alone
        await settle()
        assert await alone_s(watch) == DELEGATION_S


async def test_a_client_is_not_alone_for_a_while_after_another_committed(
    kv: KeyValue, other: KeyValue, clock: MockClock, carrier: Carrier
) -> None:
    async with kv.watch(b"p") as watch:
        await put(other, b"p1")
        assert await alone_s(watch) == 0
        await pass_time(clock, DELEGATION_QUIET_S - 1 - carrier.grain_s)
        assert await alone_s(watch) == 0
        async with kv.watch(b"p") as later, kv.watch(b"p2") as elsewhere:
            assert await alone_s(later) == 0
            assert await alone_s(elsewhere) == DELEGATION_S
        await pass_time(clock, 1 + 2 * carrier.grain_s)
        assert await alone_s(watch) == DELEGATION_S


async def test_what_is_committed_elsewhere_does_not_matter(kv: KeyValue, other: KeyValue) -> None:
    async with kv.watch(b"p") as watch:
        await put(other, b"o", b"q")
        assert await alone_s(watch) == DELEGATION_S


async def test_a_commit_that_history_no_longer_knows_is_not_forgotten_too_early(
    kv: KeyValue, other: KeyValue, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenkv.watches.HISTORY_EVENTS_MAX", 2)
    assert HISTORY_EVENTS_MAX > 2
    await put(other, b"p")
    for _ in range(3):
        await put(kv, b"p")
    async with kv.watch(b"p") as watch:
        assert await alone_s(watch) == 0
    await pass_time(clock, DELEGATION_QUIET_S + 1)
    async with kv.watch(b"p") as watch:
        assert await alone_s(watch) == DELEGATION_S


async def test_the_end_of_a_lease_is_not_another_clients_doing(
    kv: KeyValue, other: KeyValue, clock: MockClock
) -> None:
    lease = await other.lease(2 * DELEGATION_QUIET_S)
    await other.commit([], [Put(b"p", b"", lease)])
    await pass_time(clock, DELEGATION_QUIET_S + 1)
    async with kv.watch(b"p") as watch:
        assert await alone_s(watch) == DELEGATION_S
        await other.revoke(lease)
        assert (await other.get([b"p"])) == [None]
        assert await alone_s(watch) == DELEGATION_S
    async with kv.watch(b"p") as watch:
        assert await alone_s(watch) == DELEGATION_S


async def test_a_server_that_is_not_the_only_one_promises_nothing() -> None:
    store = Store(MemoryEngine(), ("one", "two"), is_sole=False)
    await store.load()
    async with store.watch(b"p", None, Watcher("client", values=False, skip_own=False)) as watch:
        assert await alone_s(watch) == 0


# --- what it is worth


@pytest.mark.parametrize("size", [5, 200_000], ids=["inline", "thread"])
async def test_a_foreign_commit_waits_until_the_delegation_has_run_out_and_no_longer(
    kv: KeyValue, other: KeyValue, clock: MockClock, carrier: Carrier, size: int
) -> None:
    async with kv.watch(b"p") as watch, trio.open_nursery() as nursery:
        granted_s = trio.current_time()
        assert await alone_s(watch) == DELEGATION_S
        commits = Commits(nursery)
        commits.start(other, [Put(b"p", bytes(size))])
        await pass_time(clock, DELEGATION_S / 2)
        revision = await put(kv, b"p")  # the holder's own does not wait
        assert await watch.newest() == (revision, 0.0)  # nor is it promised more meanwhile
        assert trio.current_time() < granted_s + DELEGATION_S
        assert not commits.done_s
        await pass_time(clock, KEPT_S - DELEGATION_S / 2 + A_MOMENT_S)
        await commits.done.wait()
        waited_s = commits.done_s[0] - granted_s
        assert DELEGATION_S <= waited_s <= KEPT_S + 2 * A_MOMENT_S + carrier.grain_s
        assert await watch.newest() == (revision + 1, 0.0)


async def test_other_commits_do_not_wait(kv: KeyValue, other: KeyValue) -> None:
    async with kv.watch(b"p") as watch:
        for _ in range(20):
            granted_s = trio.current_time()
            assert await alone_s(watch) == DELEGATION_S
            await put(other, b"o")
            await put(other, b"q", size=200_000)
            await other.commit([], [])
            await put(kv, b"p", b"q")
            assert trio.current_time() < granted_s + DELEGATION_S


async def test_another_that_only_watches_does_not_wait(
    kv: KeyValue, other: KeyValue, clock: MockClock
) -> None:
    async with kv.watch(b"p") as watch, trio.open_nursery() as nursery:
        granted_s = trio.current_time()
        await alone_s(watch)
        async with other.watch(b"p"):
            assert trio.current_time() < granted_s + DELEGATION_S
            commits = Commits(nursery)
            commits.start(other, [Put(b"p", b"")])
            await pass_time(clock, KEPT_S + A_MOMENT_S)
            await commits.done.wait()
            assert commits.done_s[0] >= granted_s + DELEGATION_S


async def test_a_commit_that_is_given_up_while_it_waits_is_not_done(
    kv: KeyValue, other: KeyValue, clock: MockClock
) -> None:
    async with kv.watch(b"p") as watch:
        await alone_s(watch)
        async with trio.open_nursery() as nursery:
            Commits(nursery).start(other, [Put(b"p", b"")])
            await pass_time(clock, DELEGATION_S / 2)
            nursery.cancel_scope.cancel()
        await pass_time(clock, KEPT_S)
        await put(kv, b"elsewhere")
        assert await kv.get([b"p"]) == [None]
        assert await kv.revision() == 1
        assert await alone_s(watch) == 0  # who has tried may try again
        await pass_time(clock, DELEGATION_QUIET_S)
        assert await alone_s(watch) == DELEGATION_S


async def test_who_holds_a_delegation_cannot_keep_others_waiting_by_renewing_it(
    kv: KeyValue, other: KeyValue, clock: MockClock
) -> None:
    async with (
        kv.watch(b"p") as watch,
        kv.watch(b"elsewhere") as elsewhere,
        trio.open_nursery() as nursery,
    ):
        await alone_s(watch)
        commits = Commits(nursery)
        for size in (0, 200_000):
            commits.start(other, [Put(b"p", bytes(size))])
        for _ in range(9):
            await pass_time(clock, DELEGATION_S / 8)
            assert await alone_s(watch) == 0
            assert await alone_s(elsewhere) == DELEGATION_S
        await commits.done.wait()


@pytest.mark.parametrize("size", [5, 200_000], ids=["inline", "thread"])
async def test_no_foreign_commit_is_done_within_a_delegation(
    connect: Connect, clock: MockClock, size: int
) -> None:
    """A holder asks again and again, while others commit now and then."""
    kv, one, two = [await connect() for _ in range(3)]
    done: list[int] = []
    held = 0

    async def write(writer: KeyValue, pause_s: float) -> None:
        for _ in range(3):
            await trio.sleep(pause_s)
            done.append(await put(writer, b"p", size=size))

    async with kv.watch(b"p") as watch, trio.open_nursery() as nursery:
        nursery.start_soon(write, one, DELEGATION_QUIET_S + 1.3)
        nursery.start_soon(write, two, DELEGATION_QUIET_S + 4.1)
        while len(done) < 6:
            asked_s = trio.current_time()
            if await alone_s(watch):
                before = await kv.revision()
                left_s = asked_s + DELEGATION_S - trio.current_time()
                await pass_time(clock, left_s - 5 * A_MOMENT_S)
                after = await kv.revision()
                if trio.current_time() < asked_s + DELEGATION_S:
                    assert after == before
                    held += 1
            await pass_time(clock, 5 * A_MOMENT_S)
    assert held > 3


# --- sessions


async def test_a_waiting_commit_that_comes_again_is_done_once(
    service: Service, clock: MockClock
) -> None:
    ticket = await make_ticket(service)
    first, second = [await enter(service, ticket, ID) for _ in range(2)]
    answers: list[CommitResult] = []

    async def commit(connection: RemoteSession) -> None:
        answers.append(await connection.commit([], [Add(b"fs:a:n", 1)], SlotUse(0, 1)))

    async with service.connect().watch(b"") as watch, trio.open_nursery() as nursery:
        await alone_s(watch)
        with trio.CancelScope() as given_up:
            async with trio.open_nursery() as inner:
                inner.start_soon(commit, first)
                nursery.start_soon(commit, second)
                await wait_all_tasks_blocked()
                given_up.cancel()
        await wait_all_tasks_blocked()
        assert answers == []
        await pass_time(clock, KEPT_S)
    assert answers == [CommitResult(1, None)]
    assert await first.commit([], [Add(b"fs:a:n", 1)], SlotUse(0, 1)) == CommitResult(1, None)
    assert service.store.revision() == 1


async def test_closing_the_service_ends_the_wait(service: Service) -> None:
    kv, other = service.connect(), service.connect()
    async with kv.watch(b"p") as watch, trio.open_nursery() as nursery:
        await alone_s(watch)

        async def commit() -> None:
            with pytest.raises(ClosedError):
                await put(other, b"p")

        nursery.start_soon(commit)
        await wait_all_tasks_blocked()
        service.close()


async def test_a_session_that_said_goodbye_holds_up_nobody(service: Service) -> None:
    leaving, staying = await join(service), await join(service)
    async with leaving.watch(b"fs:a:") as watch:
        assert await alone_s(watch) == DELEGATION_S
        await leaving.end()
        with pytest.raises(ClosedError):
            await watch.newest()
    await put(staying, b"fs:a:key")


async def test_a_session_that_no_later_server_would_know_is_granted_nothing(
    service: Service,
) -> None:
    reader = await join(service, READER)
    async with reader.watch(b"fs:a:") as watch:
        assert await alone_s(watch) == 0


async def test_a_server_that_starts_keeps_what_the_one_before_has_promised(
    open_server: OpenServer, clock: MockClock
) -> None:
    async with open_server() as service:
        ticket = await make_ticket(service)
        session = await enter(service, ticket, ID)
        async with session.watch(b"fs:a:") as watch:
            assert await alone_s(watch) == DELEGATION_S
    async with open_server() as service, trio.open_nursery() as nursery:
        again = await enter(service, ticket, ID)
        await put(again, b"fs:a:key")
        await put(await join(service, B), b"fs:b:key")
        commits = Commits(nursery)
        commits.start(await join(service, A), [Put(b"fs:a:key", b"")])
        commits.start(service.connect(), [Put(b"fs:a:key", b"")])
        await wait_all_tasks_blocked()
        assert not commits.done_s
        await pass_time(clock, KEPT_S)
        await commits.done.wait()


async def test_a_server_that_starts_without_sessions_lets_nobody_wait(
    open_server: OpenServer,
) -> None:
    async with open_server() as service:
        session = await join(service)
        async with session.watch(b"fs:a:") as watch:
            assert await alone_s(watch) == DELEGATION_S
        await session.end()
    async with open_server() as service:
        await put(service.connect(), b"fs:a:key")
