"""The pool: which connections it opens, keeps, replaces and closes, and what callers see of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs.connections import Kind
from aspenfs.limits import (
    POOL_BACKOFF_MAX_S,
    POOL_BULK_CALLS,
    POOL_BYE_S,
    POOL_CONNECTIONS_MAX,
    POOL_DIAL_S,
    POOL_IDLE_S,
    POOL_REFUSED_RETRY_S,
    POOL_SMALL_CALLS,
    POOL_SMALL_CALLS_MAX,
    POOL_WAITING_MAX,
)
from aspenfs.pool import Pool, open_pool
from aspenkv.contract import Newest, Watch, WatchEvent
from aspenkv.errors import (
    AspenKvError,
    BusyError,
    ClosedError,
    ConnectionLostError,
    EngineError,
    ProtocolVersionError,
    ServerKeyError,
    TicketRevokedError,
    UnavailableError,
    WatchGapError,
)
from aspenkv.protocol import Bye, Get, HelloReply, OpenWatch, ReadNewest, ReadRevision, Request
from aspenkv.tickets import Endpoint
from tests.unit.channels import HELLO, FakeChannel, FakeServer, Network

SMALL = ReadRevision()
BULK = Get((b"chunk",), bulk=True)
WATCH = OpenWatch(b"p/", None, values=False, skip_own=False)


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    """Virtual time, which passes whenever all tasks wait."""
    return autojump_clock


class Hold:
    """Keeps all answers back until it is opened."""

    def __init__(self) -> None:
        self.opened = trio.Event()

    async def __call__(self, _channel: FakeChannel, _request: Request) -> None:
        await self.opened.wait()


@asynccontextmanager
async def pooled(
    clock: MockClock, endpoints: int = 1, on_hello: Callable[[HelloReply], None] = lambda _: None
) -> AsyncIterator[tuple[Pool, Network]]:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, clock, endpoints)
        async with open_pool(network.endpoints, network.dial, on_hello=on_hello) as pool:
            yield pool, network
        nursery.cancel_scope.cancel()


async def call(pool: Pool, request: Request = SMALL, timeout_s: float = 30) -> Any:
    deadline_s = trio.current_time() + timeout_s
    kind = Kind.BULK if request is BULK else Kind.SMALL
    async with pool.connection(kind, deadline_s) as connection:
        return await connection.channel.call(request, deadline_s)


async def call_into(results: list[object], pool: Pool, request: Request = SMALL) -> None:
    try:
        results.append(await call(pool, request))
    except AspenKvError as error:
        results.append(error)


def in_flight(network: Network) -> list[int]:
    return [channel.calls_in_flight for channel in network.open_channels]


# --- growth --------------------------------------------------------------------------------------


async def test_no_connection_is_opened_before_the_first_call(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        await wait_all_tasks_blocked()
        assert network.channels == []
        assert not pool.is_connected
        await call(pool)
        assert len(network.channels) == 1
        assert pool.is_connected


async def test_calls_one_after_the_other_share_one_connection(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        for _ in range(100):
            await call(pool)
        assert len(network.channels) == 1


async def test_load_opens_more_connections_up_to_the_limit_and_shares_itself_out(
    clock: MockClock,
) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        network.server.answer = hold = Hold()
        results: list[object] = []
        count = 2 * POOL_SMALL_CALLS * POOL_CONNECTIONS_MAX
        for _ in range(count):
            nursery.start_soon(call_into, results, pool)
            await wait_all_tasks_blocked()
            assert len(network.channels) <= POOL_CONNECTIONS_MAX
        assert len(network.channels) == POOL_CONNECTIONS_MAX - 1, "one is left for bulk"
        assert sum(in_flight(network)) == count
        hold.opened.set()
    assert results == [None] * count


async def test_a_burst_of_first_calls_waits_for_one_dial(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        for _ in range(POOL_SMALL_CALLS):
            nursery.start_soon(call, pool)
        await wait_all_tasks_blocked()
        assert len(network.server.dialed_s) == 1


async def test_calls_beyond_what_the_server_takes_of_one_client_wait(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        network.server.hello = network.server.hello._replace(requests_max=3)
        network.server.answer = hold = Hold()
        for _ in range(10):
            nursery.start_soon(call, pool)
        await wait_all_tasks_blocked()
        assert sum(in_flight(network)) == 3
        assert pool.statistics().waiting == 7
        hold.opened.set()
        await wait_all_tasks_blocked()
        assert pool.statistics().waiting == 0
        assert max(channel.calls_in_flight_max for channel in network.channels) == 3


async def test_a_call_that_no_connection_has_room_for_says_so_in_time(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        network.server.hello = network.server.hello._replace(requests_max=1)
        await call(pool)
        network.server.answer = Hold()
        nursery.start_soon(call, pool)
        await wait_all_tasks_blocked()
        with pytest.raises(UnavailableError, match="all connections"):
            await call(pool, timeout_s=1)
        assert clock.current_time() == 1
        nursery.cancel_scope.cancel()


async def test_a_call_without_time_does_not_cost_the_connection(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        await call(pool)
        with pytest.raises(UnavailableError, match="the time for the call is over"):
            await call(pool, timeout_s=0)
        assert [each.state for each in pool.statistics().connections] == ["open"]
        assert len(network.open_channels) == 1


async def test_too_many_waiting_calls_are_busy(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        network.server.is_silent = True
        for _ in range(POOL_WAITING_MAX):
            nursery.start_soon(call_into, [], pool)
        await wait_all_tasks_blocked()
        with pytest.raises(BusyError):
            await call(pool)
        nursery.cancel_scope.cancel()


# --- small and bulk ------------------------------------------------------------------------------


async def test_small_calls_never_share_a_connection_with_bulk_once_there_are_two(
    clock: MockClock,
) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        await call(pool)
        network.server.answer = hold = Hold()
        nursery.start_soon(call, pool, BULK)
        await wait_all_tasks_blocked()
        first, second = network.channels
        assert BULK in first.requests, "the first does not wait for the second connection"
        for _ in range(POOL_BULK_CALLS):
            nursery.start_soon(call, pool, BULK)
            nursery.start_soon(call, pool)
        await wait_all_tasks_blocked()
        assert second.requests == [BULK] * POOL_BULK_CALLS
        assert first.requests.count(BULK) == 1
        hold.opened.set()


async def test_bulk_leaves_one_connection_to_small_calls_however_much_there_is(
    clock: MockClock,
) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        await call(pool)
        network.server.answer = hold = Hold()
        for _ in range(100):
            nursery.start_soon(call, pool, BULK)
        await wait_all_tasks_blocked()
        assert len(network.channels) == POOL_CONNECTIONS_MAX
        assert all(channel.calls_in_flight <= POOL_BULK_CALLS for channel in network.channels)
        assert pool.statistics().waiting > 0
        before = len(network.channels[0].requests)
        nursery.start_soon(call, pool)
        await wait_all_tasks_blocked()
        assert network.channels[0].requests[before:] == [SMALL], "it overtakes the bulk that waits"
        hold.opened.set()


async def test_bulk_connections_that_stay_idle_are_closed_and_the_last_small_one_is_kept(
    clock: MockClock,
) -> None:
    async with pooled(clock) as (pool, network):
        async with trio.open_nursery() as nursery:
            network.server.answer = hold = Hold()
            for _ in range(3 * POOL_SMALL_CALLS):
                nursery.start_soon(call, pool)
            for _ in range(20):
                nursery.start_soon(call, pool, BULK)
            await wait_all_tasks_blocked()
            hold.opened.set()
        many = len(network.open_channels)
        assert many > 3
        await trio.sleep(POOL_IDLE_S / 2)
        await call(pool, BULK)
        await trio.sleep(POOL_IDLE_S * 0.6)
        assert len(network.open_channels) == 2, "the kept one, and the one used since"
        await trio.sleep(POOL_IDLE_S)
        assert network.open_channels == [network.channels[0]]
        await trio.sleep(10 * POOL_IDLE_S)
        assert pool.is_connected
        assert pool.statistics().lost == 0


# --- loss, back-off, failover --------------------------------------------------------------------


async def test_a_lost_connection_is_replaced_before_a_call_asks_for_it(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        await call(pool)
        network.server.drop_connections()
        await wait_all_tasks_blocked()
        assert len(network.open_channels) == 1
        assert pool.statistics().lost == 1


async def test_a_call_whose_connection_breaks_fails_and_the_connection_is_given_up(
    clock: MockClock,
) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        await call(pool)
        network.server.answer = Hold()
        results: list[object] = []
        nursery.start_soon(call_into, results, pool)
        await wait_all_tasks_blocked()
        network.server.drop_connections()
        await wait_all_tasks_blocked()
        assert isinstance(results[0], ConnectionLostError)
        assert len(network.open_channels) == 1
        nursery.cancel_scope.cancel()


async def test_one_lost_call_takes_its_connection_with_it(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        await call(pool)

        async def lose(_channel: FakeChannel, _request: Request) -> None:
            raise ConnectionLostError("stream reset")

        network.server.answer = lose
        with pytest.raises(ConnectionLostError):
            await call(pool)
        assert network.channels[0].closed.is_set()


async def test_a_call_that_runs_out_of_time_does_not_cost_the_others_their_connection(
    clock: MockClock,
) -> None:
    async with pooled(clock) as (pool, network):
        network.server.answer = Hold()
        with pytest.raises(ConnectionLostError):
            await call(pool, timeout_s=1)
        assert clock.current_time() == pytest.approx(1)
        assert len(network.open_channels) == 1


@pytest.mark.logs("no server can be reached")
async def test_dials_back_off_while_the_server_is_away(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        await call(pool)
        network.server.go_away()
        await wait_all_tasks_blocked()
        with pytest.raises(UnavailableError, match="connection refused"):
            await call(pool, timeout_s=60)
        times = network.server.dialed_s[1:]
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert 12 < len(times) < 40
        assert max(pauses) <= POOL_BACKOFF_MAX_S
        assert min(pauses[-5:]) >= POOL_BACKOFF_MAX_S / 2
        assert pauses[0] < 0.2
        network.server.come_back()
        start_s = clock.current_time()
        await call(pool)
        assert clock.current_time() - start_s <= POOL_BACKOFF_MAX_S


@pytest.mark.logs("no server can be reached")
async def test_an_outage_is_logged_once(caplog: pytest.LogCaptureFixture, clock: MockClock) -> None:
    caplog.set_level("INFO")
    async with pooled(clock) as (pool, network):
        network.server.go_away()
        with pytest.raises(UnavailableError):
            await call(pool)
        network.server.come_back()
        await call(pool)
    said = [each.message for each in caplog.records if each.name == "aspenfs.pool"]
    assert [message for message in said if "can be reached" in message] == [
        "no server can be reached (server0:7400: connection refused); trying again",
        "a server can be reached again",
    ]


async def test_a_server_that_drops_every_connection_is_backed_off_from(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):

        async def drop(channel: FakeChannel, _request: Request) -> None:
            channel.close()

        network.server.answer = drop
        results: list[object] = []
        with trio.move_on_after(60):
            while True:
                await call_into(results, pool)
        assert len(network.server.dialed_s) < 40


@pytest.mark.logs("no server can be reached")
async def test_only_one_dial_is_under_way_while_there_is_no_connection(clock: MockClock) -> None:
    async with pooled(clock, 3) as (pool, network), trio.open_nursery() as nursery:
        for server in network.servers.values():
            server.is_silent = True
        for request in (SMALL, BULK) * 40:
            nursery.start_soon(call_into, [], pool, request)
        await trio.sleep(4 * POOL_DIAL_S)
        dialed = sorted(time for server in network.servers.values() for time in server.dialed_s)
        assert all(later - earlier >= POOL_DIAL_S for earlier, later in pairwise(dialed))
        nursery.cancel_scope.cancel()


async def test_another_endpoint_takes_over_at_once(clock: MockClock) -> None:
    async with pooled(clock, 2) as (pool, network):
        first, second = network.servers.values()
        await call(pool)
        assert (len(first.channels), len(second.channels)) == (1, 0)
        first.go_away()
        await wait_all_tasks_blocked()
        await call(pool)
        assert len(first.dialed_s) == 1, "it is not asked again while another works"
        assert len(second.open_channels) == 1


async def test_a_failing_endpoint_is_left_alone_while_others_work(clock: MockClock) -> None:
    async with pooled(clock, 2) as (pool, network), trio.open_nursery() as nursery:
        first, second = network.servers.values()
        first.dial_failure = UnavailableError("connection refused")
        second.answer = hold = Hold()
        for _ in range(3 * POOL_SMALL_CALLS_MAX):
            nursery.start_soon(call, pool)
        await trio.sleep(20)
        assert len(first.dialed_s) == 1
        assert len(second.open_channels) == 4
        hold.opened.set()


async def test_connections_are_spread_over_all_endpoints(clock: MockClock) -> None:
    async with pooled(clock, 3) as (pool, network), trio.open_nursery() as nursery:
        hold = Hold()
        for server in network.servers.values():
            server.answer = hold
        for _ in range(100):
            nursery.start_soon(call, pool, BULK)
        await wait_all_tasks_blocked()
        assert sorted(len(each.channels) for each in network.servers.values()) == [2, 3, 3]
        hold.opened.set()


async def test_a_server_that_is_about_to_end_gets_no_new_calls_and_ends_those_it_has(
    clock: MockClock,
) -> None:
    async with pooled(clock, 2) as (pool, network), trio.open_nursery() as nursery:
        first, second = network.servers.values()
        first.answer = hold = Hold()
        results: list[object] = []
        nursery.start_soon(call_into, results, pool)
        await wait_all_tasks_blocked()

        async def drain(_channel: FakeChannel, _request: Request) -> None:
            raise UnavailableError("ask another")

        first.answer = drain
        await call_into(results, pool)
        assert isinstance(results[0], UnavailableError)
        await call_into(results, pool)
        assert results[1] is None
        assert len(second.channels[0].requests) == 1
        assert len(first.open_channels) == 1, "a call is still under way there"
        hold.opened.set()
        await wait_all_tasks_blocked()
        assert results[2] is None
        assert first.open_channels == []


async def test_a_closed_service_is_left_too(clock: MockClock) -> None:
    async with pooled(clock, 2) as (pool, network):
        await call(pool)

        async def end(_channel: FakeChannel, _request: Request) -> None:
            raise ClosedError("the service was closed")

        network.server.answer = end
        with pytest.raises(UnavailableError):
            await call(pool)
        await call(pool)


# --- errors that no retry cures ------------------------------------------------------------------


@pytest.mark.logs("no server can be reached")
@pytest.mark.parametrize(
    "error",
    [
        TicketRevokedError("revoked"),
        ServerKeyError("another server"),
        ProtocolVersionError("version 9 wanted"),
    ],
)
async def test_a_refusal_ends_the_wait_of_all_callers_at_once(
    error: AspenKvError, clock: MockClock
) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        network.server.dial_failure = error
        results: list[object] = []
        for _ in range(5):
            nursery.start_soon(call_into, results, pool)
        await wait_all_tasks_blocked()
        assert [type(result) for result in results] == [type(error)] * 5
        assert clock.current_time() == 0
        with pytest.raises(type(error)):
            await call(pool)
        assert len(network.server.dialed_s) == 1, "the next call does not knock again so soon"
        await trio.sleep(10 * POOL_REFUSED_RETRY_S)
        assert len(network.server.dialed_s) == 1, "nobody asks: it is left alone"
        network.server.come_back()
        await call(pool)


@pytest.mark.logs("no server can be reached")
async def test_one_refusing_endpoint_does_not_hide_another_that_may_come_back(
    clock: MockClock,
) -> None:
    async with pooled(clock, 2) as (pool, network), trio.open_nursery() as nursery:
        first, second = network.servers.values()
        first.dial_failure = ServerKeyError("another server")
        second.go_away()
        nursery.start_soon(call, pool)
        await trio.sleep(3)
        second.come_back()
    assert len(second.channels) == 1


@pytest.mark.logs("no server can be reached")
async def test_the_reasons_of_all_endpoints_are_named(clock: MockClock) -> None:
    async with pooled(clock, 2) as (pool, network):
        first, second = network.servers.values()
        first.dial_failure = ServerKeyError("another server")
        second.go_away()
        with pytest.raises(UnavailableError, match=r"server0.*another server; server1.*refused"):
            await call(pool)


@pytest.mark.logs("the connection to server0:7400 failed", "no server can be reached")
async def test_a_bug_in_dialing_does_not_end_the_pool(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        network.server.dial_failure = ZeroDivisionError("a bug")
        with pytest.raises(UnavailableError, match="a bug"):
            await call(pool, timeout_s=5)
        network.server.come_back()
        await call(pool)


async def test_what_the_server_answers_reaches_the_caller_and_keeps_the_connection(
    clock: MockClock,
) -> None:
    async with pooled(clock) as (pool, network):

        async def fail(_channel: FakeChannel, _request: Request) -> None:
            raise EngineError("disk")

        network.server.answer = fail
        with pytest.raises(EngineError):
            await call(pool)
        assert len(network.open_channels) == 1


# --- sessions ------------------------------------------------------------------------------------


async def test_all_connections_belong_to_one_session(clock: MockClock) -> None:
    async with pooled(clock, 2) as (pool, network), trio.open_nursery() as nursery:
        hold = Hold()
        for server in network.servers.values():
            server.answer = hold
        for _ in range(20):
            nursery.start_soon(call, pool, BULK)
        await wait_all_tasks_blocked()
        (session,) = {channel.session for channel in network.channels}
        assert len(session) == 16
        hold.opened.set()


async def epoch(pool: Pool) -> int:
    async with pool.connection(Kind.SMALL, trio.current_time() + 30) as connection:
        return connection.session_epoch


@pytest.mark.logs("no longer knows this client")
async def test_a_server_that_has_forgotten_the_session_begins_a_new_epoch(clock: MockClock) -> None:
    hellos: list[HelloReply] = []
    async with pooled(clock, on_hello=hellos.append) as (pool, network):
        assert await epoch(pool) == 0
        network.server.drop_connections()
        await wait_all_tasks_blocked()
        assert await epoch(pool) == 0
        network.sessions.clear()
        network.server.drop_connections()
        await wait_all_tasks_blocked()
        assert await epoch(pool) == 1
    assert [hello.session_is_new for hello in hellos] == [True, False, True]


# --- watches -------------------------------------------------------------------------------------


async def test_a_watch_keeps_its_connection_and_is_no_load(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        send, receive = trio.open_memory_channel[Any](1)

        async def answer(_channel: FakeChannel, request: Request) -> object:
            return receive if isinstance(request, OpenWatch) else None

        network.server.answer = answer
        async with pool.watch(WATCH, trio.current_time() + 30) as watch:
            assert watch.revision == 0
            await send.send(WatchEvent(3, ()))
            assert await anext(aiter(watch)) == WatchEvent(3, ())
            assert watch.revision == 3
            await trio.sleep(3 * POOL_IDLE_S)
            (connection,) = pool.statistics().connections
            assert (connection.calls, connection.watches) == (0, 1)
            await send.send(WatchGapError("too slow"))
            with pytest.raises(WatchGapError):
                await anext(aiter(watch))
        assert pool.statistics().connections[0].watches == 0


async def test_a_watch_whose_connection_is_lost_says_so(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        _send, receive = trio.open_memory_channel[Any](1)

        async def answer(_channel: FakeChannel, _request: Request) -> object:
            return receive

        network.server.answer = answer
        async with pool.watch(WATCH, trio.current_time() + 30) as watch:
            network.server.drop_connections()
            with pytest.raises(UnavailableError):
                await anext(aiter(watch))
        assert len(network.open_channels) == 1


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (ConnectionLostError("gone"), UnavailableError),
        (ClosedError("the watch has ended"), UnavailableError),
        (BusyError("too many requests"), UnavailableError),
        (WatchGapError("too slow"), WatchGapError),
    ],
)
async def test_a_watch_that_cannot_say_what_is_newest_says_why(
    clock: MockClock, failure: Exception, error: type[AspenKvError]
) -> None:
    async with pooled(clock) as (pool, network):
        _send, receive = trio.open_memory_channel[Any](1)

        async def answer(_channel: FakeChannel, request: Request) -> object:
            if isinstance(request, ReadNewest):
                raise failure
            return receive

        network.server.answer = answer
        async with pool.watch(WATCH, trio.current_time() + 30) as watch:
            with pytest.raises(error):
                await watch.newest()


async def test_a_watch_says_what_is_newest_until_its_block_ends(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        _send, receive = trio.open_memory_channel[Any](1)
        asked, go_on = trio.Event(), trio.Event()

        async def answer(_channel: FakeChannel, request: Request) -> object:
            if not isinstance(request, ReadNewest):
                return receive
            if asked.is_set():
                await go_on.wait()
                raise ClosedError("the watch was closed")
            asked.set()
            return Newest(7, 0.5)

        async def ask(watch: Watch) -> None:
            with pytest.raises(ClosedError):
                await watch.newest()

        network.server.answer = answer
        async with pool.watch(WATCH, trio.current_time() + 30) as watch:
            assert await watch.newest() == Newest(7, 0.5)
            nursery.start_soon(ask, watch)
            await wait_all_tasks_blocked()
        await ask(watch)
        go_on.set()


async def test_a_watch_that_cannot_be_opened_counts_as_ended(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):

        async def answer(_channel: FakeChannel, _request: Request) -> object:
            raise WatchGapError("history is gone")

        network.server.answer = answer
        with pytest.raises(WatchGapError):
            async with pool.watch(WATCH, trio.current_time() + 30):
                pytest.fail("it was not opened")
        assert pool.statistics().connections[0].watches == 0


# --- cancellation, closing -----------------------------------------------------------------------


async def test_a_cancelled_call_leaves_the_connection_to_the_others(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        network.server.answer = hold = Hold()
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_into, results, pool)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(call, pool)
                    await wait_all_tasks_blocked()
                    assert in_flight(network) == [2]
                    scope.cancel()
            assert in_flight(network) == [1]
            assert pool.statistics().connections[0].calls == 1
            hold.opened.set()
        assert results == [None]
        assert pool.statistics().connections[0].calls == 0


async def test_a_cancelled_wait_gives_its_place_back(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        network.server.is_silent = True
        nursery.start_soon(call, pool)
        await wait_all_tasks_blocked()
        assert pool.statistics().waiting == 1
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        assert pool.statistics().waiting == 0


async def test_a_connection_given_in_the_moment_of_cancellation_is_free_again(
    clock: MockClock,
) -> None:
    async with pooled(clock) as (pool, network):
        network.server.hello = network.server.hello._replace(requests_max=1)
        await call(pool)
        network.server.answer = hold = Hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, pool)
            await wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(call, pool)
                    await wait_all_tasks_blocked()
                    scope.cancel()  # and in the same moment the first call ends
                    hold.opened.set()
        assert pool.statistics().connections[0].calls == 0
        await call(pool)


async def test_a_goodbye_is_said_at_the_end(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        await call(pool)
        channel = network.channels[0]
    assert channel.requests == [SMALL, Bye()]
    assert channel.closed.is_set()


async def test_a_server_that_does_not_answer_the_goodbye_does_not_hold_the_end_up(
    clock: MockClock,
) -> None:
    async with pooled(clock) as (pool, network):
        await call(pool)
        network.server.answer = Hold()
    assert clock.current_time() == pytest.approx(POOL_BYE_S)


async def test_a_goodbye_that_fails_is_no_error(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network):
        await call(pool)

        async def fail(_channel: FakeChannel, _request: Request) -> None:
            raise EngineError("disk")

        network.server.answer = fail


async def test_closing_fails_calls_under_way_and_those_that_wait(clock: MockClock) -> None:
    results: list[object] = []
    async with trio.open_nursery() as nursery:
        network = Network(nursery, clock)
        network.server.hello = network.server.hello._replace(requests_max=2)
        async with open_pool(network.endpoints, network.dial, on_hello=lambda _: None) as pool:
            await call(pool)
            network.server.answer = Hold()
            for _ in range(4):
                nursery.start_soon(call_into, results, pool)
            await wait_all_tasks_blocked()
            network.server.answer = partial(_at_once, network.server)
        await wait_all_tasks_blocked()
        assert sorted(type(each).__name__ for each in results) == [
            "ClosedError",
            "ClosedError",
            "ConnectionLostError",
            "ConnectionLostError",
        ]
        with pytest.raises(ClosedError):
            await call(pool)
        assert len(network.server.dialed_s) == 1, "nothing is dialed any more"
        nursery.cancel_scope.cancel()


async def _at_once(_server: FakeServer, _channel: FakeChannel, _request: Request) -> None:
    """Answer."""


async def test_closing_ends_a_dial_under_way(clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, clock)
        network.server.is_silent = True
        results: list[object] = []
        async with open_pool(network.endpoints, network.dial, on_hello=lambda _: None) as pool:
            nursery.start_soon(call_into, results, pool)
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert isinstance(results[0], ClosedError)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("failure", [None, UnavailableError("no answer")])
async def test_a_dial_that_ends_after_the_pool_changes_nothing(
    clock: MockClock, failure: AspenKvError | None
) -> None:
    answered = trio.Event()

    @asynccontextmanager
    async def stubborn(
        _endpoint: Endpoint, session: bytes, _deadline_s: float, /
    ) -> AsyncIterator[FakeChannel]:
        with trio.CancelScope(shield=True):
            await answered.wait()
        if failure is not None:
            raise failure
        yield FakeChannel(network.server, HELLO, session)

    async def answer_late() -> None:
        await trio.sleep(1)
        answered.set()

    async with trio.open_nursery() as nursery:
        network = Network(nursery, clock)
        results: list[object] = []
        async with open_pool(network.endpoints, stubborn, on_hello=lambda _: None) as pool:
            nursery.start_soon(call_into, results, pool)
            await wait_all_tasks_blocked()
            nursery.start_soon(answer_late)
        assert isinstance(results[0], ClosedError)
        assert pool.statistics().failed_dials == 0
        assert not pool.is_connected


async def test_an_error_of_the_block_comes_out_as_it_is(clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Network(nursery, clock)
        with pytest.raises(LookupError, match="mine"):
            async with open_pool(network.endpoints, network.dial, on_hello=lambda _: None):
                raise LookupError("mine")


# --- statistics ----------------------------------------------------------------------------------


async def test_statistics_tell_what_the_pool_does(clock: MockClock) -> None:
    async with pooled(clock) as (pool, network), trio.open_nursery() as nursery:
        await call(pool)
        network.server.answer = hold = Hold()
        await trio.sleep(5)
        nursery.start_soon(call, pool, BULK)
        nursery.start_soon(call, pool)
        await trio.sleep(1)
        statistics = pool.statistics()
        assert [each.endpoint for each in statistics.connections] == ["server0:7400"] * 2
        assert [each.is_bulk for each in statistics.connections] == [False, True]
        assert [each.state for each in statistics.connections] == ["open", "open"]
        assert [each.calls for each in statistics.connections] == [2, 0]
        assert statistics[1:] == (0, 2, 1, 0, 2, 0, 0, True, 0.0)
        hold.opened.set()
