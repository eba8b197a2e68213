"""The client over a pool: what it tries again, for how long, and what it says in the end."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs.kv import PooledKeyValue, open_kv
from aspenfs.limits import POOL_BULK_COMMIT_BYTES
from aspenkv.contract import (
    Add,
    CommitResult,
    Patch,
    Put,
    RevisionIs,
    ScanPage,
    SlotUse,
    Versioned,
    WatchEvent,
)
from aspenkv.errors import (
    BusyError,
    ClosedError,
    ConnectionLostError,
    EngineError,
    InvalidRequestError,
    LeaseNotFoundError,
    OutcomeUnknownError,
    RemoteProtocolError,
    TicketRevokedError,
    UnavailableError,
    WatchGapError,
)
from aspenkv.limits import BULK_GET_KEYS_MAX
from aspenkv.protocol import (
    Commit,
    Get,
    GrantLease,
    Keepalive,
    OpenWatch,
    ReadRevision,
    ReadStatus,
    Request,
    Revoke,
    Scan,
    Sync,
)
from tests.unit.channels import HELLO, FakeChannel, Network

TIMEOUT_S = 30.0
PUT = (Put(b"key", b"value"),)
DONE = CommitResult(7, None)


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    """Virtual time, which passes whenever all tasks wait."""
    return autojump_clock


@asynccontextmanager
async def connected(
    clock: MockClock, endpoints: int = 1
) -> AsyncIterator[tuple[PooledKeyValue, Network]]:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, clock, endpoints)
        async with open_kv(network.endpoints, network.dial, timeout_s=TIMEOUT_S) as kv:
            yield kv, network
        nursery.cancel_scope.cancel()


class Script:
    """Answers requests in turn: an error is raised, a step is taken, all else is the reply.

    The last one is for all further requests.
    """

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)
        self.requests: list[Request] = []

    async def __call__(self, channel: FakeChannel, request: Request) -> Any:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        await trio.lowlevel.checkpoint()
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            return await answer(channel, request)
        return answer


async def drop(channel: FakeChannel, _request: Request) -> None:
    """Break the connection in place of an answer."""
    channel.close()


async def silence(_channel: FakeChannel, _request: Request) -> None:
    await trio.sleep_forever()


LOST = (drop, ConnectionLostError("stream reset"))


# --- what is sent --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "request_sent", "reply", "result"),
    [
        (lambda kv: kv.get([b"a"]), Get([b"a"], bulk=False), [None], [None]),
        (
            lambda kv: kv.scan(
                b"a", b"b", limit=3, keys_only=True, reverse=True, continuation=b"c"
            ),
            Scan(b"a", b"b", 3, True, True, b"c"),
            ScanPage([], None),
            ScanPage([], None),
        ),
        (
            lambda kv: kv.commit([RevisionIs(b"a", 1)], PUT),
            Commit([RevisionIs(b"a", 1)], PUT, SlotUse(0, 1)),
            DONE,
            DONE,
        ),
        (lambda kv: kv.lease(5.0), GrantLease(5.0), 9, 9),
        (lambda kv: kv.keepalive(9), Keepalive(9), None, None),
        (lambda kv: kv.revoke(9), Revoke(9), None, None),
        (lambda kv: kv.revision(), ReadRevision(), 12, 12),
        (lambda kv: kv.sync(), Sync(), None, None),
        (lambda kv: kv.status(), ReadStatus(), "status", "status"),
    ],
    ids=lambda each: type(each).__name__,
)
@pytest.mark.parametrize("lost", [None, *LOST], ids=("answered", "broken", "reset"))
async def test_each_call_is_one_request_and_is_tried_again_when_its_answer_is_lost(
    clock: MockClock,
    call: Callable[[PooledKeyValue], Awaitable[object]],
    request_sent: Request,
    reply: object,
    result: object,
    lost: object,
) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = script = Script(*([] if lost is None else [lost]), reply)
        assert await call(kv) == result
        tries = 1 if lost is None else 2
        assert script.requests == [request_sent] * tries
        assert {type(each) for each in script.requests} == {type(request_sent)}
        assert kv.statistics().retries == tries - 1
        assert clock.current_time() < 1


async def test_a_get_of_small_values_is_of_one_moment_however_many_keys(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        keys = [b"%d" % number for number in range(1000)]
        network.server.answer = script = Script([None] * 1000)
        assert await kv.get(keys) == [None] * 1000
        assert script.requests == [Get(keys, bulk=False)]


async def test_a_get_of_large_values_is_split_so_that_each_reply_can_hold_them(
    clock: MockClock,
) -> None:
    async with connected(clock) as (kv, network):

        async def answer(_channel: FakeChannel, request: Request) -> object:
            if not isinstance(request, Get):
                return None
            assert len(request.keys) <= BULK_GET_KEYS_MAX
            return [Versioned(key, 1) for key in request.keys]

        network.server.answer = answer
        keys = [b"%d" % number for number in range(2 * BULK_GET_KEYS_MAX + 1)]
        assert await kv.get(keys, bulk=True) == [Versioned(key, 1) for key in keys]
        assert len(network.requests()) == 3


@pytest.mark.parametrize(
    "op", [Put(b"k", bytes(POOL_BULK_COMMIT_BYTES)), Patch(b"k", 0, bytes(POOL_BULK_COMMIT_BYTES))]
)
async def test_large_commits_keep_off_the_connection_of_small_calls(
    clock: MockClock, op: Put | Patch
) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(DONE)
        for _ in range(3):
            await kv.commit([], [op, Put(b"one", b"more")])
        assert kv.statistics().pool.bulk_calls == 3
        assert len(network.channels[-1].requests) == 2


# --- reads: time, errors -------------------------------------------------------------------------


@pytest.mark.logs("no server can be reached")
async def test_opening_fails_in_time_if_no_server_answers(clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, clock)
        network.server.go_away()
        with pytest.raises(UnavailableError, match="connection refused"):
            async with open_kv(network.endpoints, network.dial, timeout_s=3.0):
                pytest.fail("there is no server")
        assert 2 <= clock.current_time() <= 3


@pytest.mark.logs("no server can be reached")
async def test_opening_fails_at_once_if_the_ticket_is_not_accepted(clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, clock)
        network.server.go_away(TicketRevokedError("revoked"))
        with pytest.raises(TicketRevokedError):
            async with open_kv(network.endpoints, network.dial):
                pytest.fail("the ticket is revoked")
        assert clock.current_time() == 0


@pytest.mark.logs("no server can be reached")
async def test_calls_wait_for_a_server_that_comes_back(clock: MockClock) -> None:
    async with connected(clock) as (kv, network), trio.open_nursery() as nursery:
        network.server.go_away()
        await wait_all_tasks_blocked()
        assert not kv.is_connected
        nursery.start_soon(kv.revision)
        await trio.sleep(20)
        network.server.come_back()
    assert kv.is_connected


@pytest.mark.logs("no server can be reached")
async def test_a_call_gives_up_in_time_and_says_why(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.go_away()
        with pytest.raises(UnavailableError, match=r"given up after 30 s.*connection refused"):
            await kv.revision()
        assert clock.current_time() <= TIMEOUT_S


@pytest.mark.parametrize("answer", [silence, BusyError("later"), drop, UnavailableError("drain")])
async def test_no_call_takes_longer_than_its_timeout(clock: MockClock, answer: object) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(answer)
        with pytest.raises(UnavailableError):
            await kv.revision()
        assert TIMEOUT_S - 6 <= clock.current_time() <= TIMEOUT_S + 0.001


async def test_a_busy_server_is_asked_again_less_and_less_often(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(*[BusyError("later")] * 12, 5)
        assert await kv.revision() == 5
        assert 3 < clock.current_time() < 10
        assert kv.statistics().retries == 12


@pytest.mark.parametrize(
    "error", [EngineError("disk"), InvalidRequestError("nonsense"), RemoteProtocolError("garbage")]
)
async def test_an_answered_error_is_not_tried_again(clock: MockClock, error: Exception) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = script = Script(error)
        with pytest.raises(type(error)):
            await kv.revision()
        assert len(script.requests) == 1


@pytest.mark.parametrize("lost", LOST)
async def test_a_repeated_revoke_that_finds_no_lease_was_done(
    clock: MockClock, lost: object
) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(lost, LeaseNotFoundError("gone"))
        await kv.revoke(9)


async def test_a_first_revoke_that_finds_no_lease_says_so(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(BusyError("later"), LeaseNotFoundError("gone"))
        with pytest.raises(LeaseNotFoundError):
            await kv.revoke(9)


async def test_a_closed_client_says_so(clock: MockClock) -> None:
    async with connected(clock) as (kv, _):
        pass
    with pytest.raises(ClosedError):
        await kv.revision()


# --- commits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [UnavailableError("draining"), BusyError("later")])
async def test_a_commit_that_was_never_carried_out_says_so_at_the_end(
    clock: MockClock, error: Exception
) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(error)
        with pytest.raises(UnavailableError):
            await kv.commit([], PUT)
        assert kv.statistics().commits_in_doubt == 0


@pytest.mark.parametrize(
    "answers",
    [
        [silence],
        [drop],
        [drop, BusyError("later")],
        [OutcomeUnknownError("the cluster is away")],
        [OutcomeUnknownError("the cluster is away"), UnavailableError("draining")],
    ],
)
async def test_a_commit_that_may_have_been_carried_out_says_so_at_the_end(
    clock: MockClock, answers: list[object]
) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = script = Script(*answers)
        with pytest.raises(OutcomeUnknownError):
            await kv.commit([], PUT)
        assert clock.current_time() <= TIMEOUT_S + 0.001
        assert all(each == Commit([], PUT, SlotUse(0, 1)) for each in script.requests)
        assert kv.statistics().commits_in_doubt == 1
        network.server.answer = script = Script(DONE)
        await kv.commit([], PUT)
        (request,) = script.requests
        assert isinstance(request, Commit)
        assert request.slot == SlotUse(0, 2), "the slot moves on, and the old one is refused"


@pytest.mark.parametrize(
    "error", [InvalidRequestError("overflow"), LeaseNotFoundError("gone"), EngineError("full")]
)
async def test_what_a_slot_answers_settles_the_doubt(clock: MockClock, error: Exception) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(drop, error)
        with pytest.raises(type(error)):
            await kv.commit([], PUT)


async def test_a_reply_that_is_none_leaves_a_commit_in_doubt(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(RemoteProtocolError("garbage"))
        with pytest.raises(OutcomeUnknownError):
            await kv.commit([], PUT)


@pytest.mark.logs("no server can be reached")
async def test_a_refusal_while_in_doubt_leaves_it_in_doubt(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):

        async def revoke(channel: FakeChannel, _request: Request) -> None:
            network.server.go_away(TicketRevokedError("revoked"))
            channel.close()

        network.server.answer = Script(revoke)
        with pytest.raises(OutcomeUnknownError, match="revoked"):
            await kv.commit([], PUT)
        with pytest.raises(TicketRevokedError):
            await kv.commit([], PUT)


@pytest.mark.logs("no longer knows this client")
async def test_a_server_that_has_forgotten_this_client_gets_no_commit_a_second_time(
    clock: MockClock,
) -> None:
    async with connected(clock) as (kv, network):

        async def forget(channel: FakeChannel, _request: Request) -> None:
            network.sessions.clear()
            channel.close()

        network.server.answer = script = Script(forget, DONE)
        with pytest.raises(OutcomeUnknownError, match="no longer knows"):
            await kv.commit([], PUT)
        assert len(script.requests) == 1
        assert await kv.commit([], PUT) == DONE


@pytest.mark.logs("no longer knows this client")
async def test_a_commit_that_was_not_sent_goes_to_a_server_that_has_forgotten_this_client(
    clock: MockClock,
) -> None:
    async with connected(clock) as (kv, network):
        network.sessions.clear()
        network.server.drop_connections()
        await wait_all_tasks_blocked()
        network.server.answer = Script(DONE)
        assert await kv.commit([], PUT) == DONE


async def test_as_many_commits_are_under_way_as_there_are_slots(clock: MockClock) -> None:
    async with connected(clock) as (kv, network), trio.open_nursery() as nursery:
        gate = trio.Event()

        async def answer(_channel: FakeChannel, _request: Request) -> object:
            await gate.wait()
            return DONE

        network.server.answer = answer
        for _ in range(10):
            nursery.start_soon(kv.commit, (), PUT)
        await wait_all_tasks_blocked()
        assert len(network.requests()) == HELLO.slots_max
        gate.set()
    uses = {each.slot for each in network.requests() if isinstance(each, Commit)}
    assert len(uses) == 10


@pytest.mark.parametrize("answer", [DONE, drop, BusyError("later"), silence])
async def test_a_commit_can_be_cancelled_at_any_point_and_leaks_nothing(
    clock: MockClock, answer: object
) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(answer)

        async def cancel_after(checkpoints: int, scope: trio.CancelScope) -> None:
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        for checkpoints in range(25):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_after, checkpoints, scope)
                    await kv.commit([], PUT)
                    nursery.cancel_scope.cancel()
            await wait_all_tasks_blocked()
            statistics = kv.statistics()
            assert statistics.slots_in_use == 0
            assert statistics.pool.waiting == 0
            assert sum(each.calls for each in statistics.pool.connections) == 0
        network.server.answer = Script(DONE)
        assert await kv.commit([], PUT) == DONE


# --- power cuts ----------------------------------------------------------------------------------


def restart(network: Network, started_revision: int, *, server_id: bytes = b"next") -> None:
    network.server.hello = HELLO._replace(server_id=server_id, started_revision=started_revision)
    network.server.drop_connections()


@pytest.mark.logs("CRITICAL|lost commits that were not synced .revisions 6 to 7.")
async def test_a_loss_of_acknowledged_commits_is_told_by_the_next_sync_once(
    clock: MockClock,
) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(DONE)
        await kv.commit([], PUT)
        restart(network, 5)
        await wait_all_tasks_blocked()
        assert kv.statistics().losses == 1
        with pytest.raises(EngineError, match="6 to 7"):
            await kv.sync()
        await kv.sync()


@pytest.mark.logs("lost commits")
async def test_a_loss_that_happens_during_a_sync_is_told_by_it(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(DONE)
        await kv.commit([], PUT)

        async def power_cut(_channel: FakeChannel, _request: Request) -> None:
            restart(network, 5)

        network.server.answer = Script(power_cut, None)
        with pytest.raises(EngineError):
            await kv.sync()


async def test_nothing_is_lost_if_no_commit_of_ours_was(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(CommitResult(7, 0), CommitResult(7, None), None)
        await kv.commit([RevisionIs(b"a", 1)], PUT)  # its check failed
        await kv.commit([RevisionIs(b"a", 1)], [])  # only checks
        restart(network, 5)
        await wait_all_tasks_blocked()
        await kv.sync()


async def test_a_restart_that_kept_everything_is_no_loss(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = Script(DONE, None)
        await kv.commit([], PUT)
        restart(network, 7)
        await wait_all_tasks_blocked()
        await kv.sync()
        assert kv.statistics().losses == 0


# --- watches -------------------------------------------------------------------------------------


class Watched:
    """A server of one watch: hands out what the test puts into ``send``."""

    def __init__(self) -> None:
        self.send, self._receive = trio.open_memory_channel[Any](10)
        self.requests: list[Request] = []

    async def __call__(self, _channel: FakeChannel, request: Request) -> object:
        self.requests.append(request)
        return self._receive if isinstance(request, OpenWatch) else None


@pytest.mark.parametrize(
    "error", [ConnectionLostError("reset"), BusyError("later"), UnavailableError("draining")]
)
async def test_opening_a_watch_is_tried_again(clock: MockClock, error: Exception) -> None:
    async with connected(clock) as (kv, network):
        watched = Watched()
        network.server.answer = Script(error, watched)
        async with kv.watch(b"p/", 3, values=True, skip_own=True) as watch:
            await watched.send.send(WatchEvent(4, ()))
            assert await anext(aiter(watch)) == WatchEvent(4, ())
        assert watched.requests == [OpenWatch(b"p/", 3, values=True, skip_own=True)]
        assert kv.statistics().retries == 1


async def test_opening_a_watch_ends_with_its_time(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = silence
        with pytest.raises(UnavailableError):
            async with kv.watch(b"p/"):
                pytest.fail("nobody answers")
        assert clock.current_time() <= TIMEOUT_S + 0.001


async def test_a_gap_is_not_tried_again(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = script = Script(WatchGapError("history is gone"))
        with pytest.raises(WatchGapError):
            async with kv.watch(b"p/", 3):
                pytest.fail("history is gone")
        assert len(script.requests) == 1


async def test_an_error_in_the_block_of_a_watch_is_the_callers_own(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = watched = Watched()
        with pytest.raises(UnavailableError, match="mine"):
            async with kv.watch(b"p/"):
                raise UnavailableError("mine")
        assert len(watched.requests) == 1
        assert len(network.open_channels) == 1


async def test_a_watch_that_breaks_off_can_be_gone_on_with(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = watched = Watched()
        async with kv.watch(b"p/") as watch:
            await watched.send.send(WatchEvent(4, ()))
            await anext(aiter(watch))
            network.server.drop_connections()
            with pytest.raises(UnavailableError):
                await anext(aiter(watch))
        with pytest.raises(ClosedError):
            await anext(aiter(watch))
        async with kv.watch(b"p/", watch.revision) as watch:
            await watched.send.send(WatchEvent(5, ()))
            assert await anext(aiter(watch)) == WatchEvent(5, ())


async def test_a_watch_does_not_go_on_in_a_history_that_was_replaced(clock: MockClock) -> None:
    async with connected(clock) as (kv, network):
        network.server.answer = watched = Watched()
        async with kv.watch(b"p/") as watch:
            await watched.send.send(WatchEvent(9, ()))
            await anext(aiter(watch))
            restart(network, 5)
            with pytest.raises(UnavailableError):
                await anext(aiter(watch))
        with pytest.raises(WatchGapError, match="power cut"):
            async with kv.watch(b"p/", 9):
                pytest.fail("the server's revision 9 is another commit")
        async with kv.watch(b"p/", 5):
            pass


# --- exactly once --------------------------------------------------------------------------------


class SlotServer:
    """A counter behind a slot table, and a network that loses, delays and repeats."""

    def __init__(self, network: Network, seed: int) -> None:
        self.random = random.Random(seed)
        self.network = network
        self.counter = 0
        self.last: dict[int, tuple[int, CommitResult]] = {}

    async def __call__(self, channel: FakeChannel, request: Request) -> object:
        if not isinstance(request, Commit):
            return None
        assert request.slot is not None
        fate = self.random.random()
        if fate < 0.1:
            raise BusyError("later")
        if fate < 0.2:
            channel.close()  # before it arrives
            return None
        if fate < 0.3:
            channel.close()
            await trio.sleep(self.random.random())  # it arrives, but late
        await trio.sleep(0.001 * self.random.random())
        result = self._carry_out(request.slot)
        if fate > 0.8:
            channel.close()
        return result

    def _carry_out(self, use: SlotUse) -> CommitResult:
        sequence, answer = self.last.get(use.slot, (0, DONE))
        if use.sequence < sequence:
            raise InvalidRequestError("stale: a client never sees this answer")
        if use.sequence > sequence:
            self.counter += 1
            answer = CommitResult(self.counter, None)
            self.last[use.slot] = (use.sequence, answer)
        return answer


@pytest.mark.parametrize("seed", range(10))
async def test_each_commit_is_carried_out_once_whatever_the_network_does(
    clock: MockClock, seed: int
) -> None:
    async with connected(clock, 2) as (kv, network):
        store = SlotServer(network, seed)
        for server in network.servers.values():
            server.answer = store
        revisions: list[int] = []
        doubtful = 0

        async def increment() -> None:
            nonlocal doubtful
            for _ in range(10):
                try:
                    revisions.append((await kv.commit([], [Add(b"n", 1)])).revision)
                except OutcomeUnknownError:
                    doubtful += 1

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(increment)
        assert len(set(revisions)) == len(revisions), "no answer is that of another commit"
        assert len(revisions) <= store.counter <= len(revisions) + doubtful
        assert len(revisions) + doubtful == 80
        assert len(revisions) > 70
