"""The client's end of a connection."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import msgpack
import pytest
import trio

from aspenkv import limits
from aspenkv.contract import CreatedTicket, Newest, Put, Watch, WatchEvent
from aspenkv.dial import Channel, dial
from aspenkv.errors import (
    AccessDeniedError,
    AspenKvError,
    BusyError,
    ClosedError,
    ConnectionLostError,
    EngineError,
    ProtocolVersionError,
    RemoteProtocolError,
    ServerKeyError,
    TicketExpiredError,
    TicketRevokedError,
    TicketUnknownError,
    UnavailableError,
    WatchGapError,
)
from aspenkv.identity import ServerIdentity, new_identity
from aspenkv.protocol import (
    VERSION,
    Get,
    Hello,
    HelloReply,
    ListTickets,
    OpenWatch,
    ReadRevision,
    Sync,
    WatchOpened,
    decode_request,
    encode_reply,
    encode_watch_message,
)
from aspenkv.quic import QuicConnection, QuicStream, ServerLimits, serve_quic
from aspenkv.quic.errors import INTERNAL_ERROR
from aspenkv.tickets import Ticket
from tests.unit.aspenkv.ends import CALL_S, SERVER, Host
from tests.unit.aspenkv.network import MemoryNetwork

pytestmark = pytest.mark.usefixtures("virtual_time")

WATCH = OpenWatch(b"", None, values=False, skip_own=False)
WELCOME = HelloReply(
    server_id=bytes(16),
    version=VERSION,
    prefix=b"",
    can_write=True,
    is_admin=True,
    session_is_new=True,
    started_revision=0,
    slots_max=1,
    requests_max=1,
)

Answer = Callable[[QuicConnection, QuicStream, bytes], Awaitable[None]]


class Stranger:
    """A server that answers as a test wants; unless told otherwise it welcomes everybody."""

    def __init__(self, network: MemoryNetwork, identity: ServerIdentity) -> None:
        self.network = network
        self.answer: Answer | None = None
        self.hello_answer: Answer = self.welcome
        self.requests = 0
        self.ticket = Ticket((SERVER,), identity.fingerprint, bytes(16), bytes(32))

    def connected(self, connection: QuicConnection) -> None:
        connection.admit()

    def disconnected(self, connection: QuicConnection) -> None:
        pass

    async def handle(self, connection: QuicConnection, stream: QuicStream, frame: bytes) -> None:
        self.requests += 1
        if isinstance(decode_request(frame).request, Hello):
            await self.hello_answer(connection, stream, frame)
        else:
            assert self.answer is not None
            await self.answer(connection, stream, frame)

    async def welcome(self, _connection: QuicConnection, stream: QuicStream, frame: bytes) -> None:
        request_id, _, hello = decode_request(frame)
        await stream.send(encode_reply(request_id, hello, WELCOME), end=True)

    def dial(self, timeout_s: float = CALL_S) -> AbstractAsyncContextManager[Channel]:
        deadline_s = trio.current_time() + timeout_s
        return dial(
            SERVER, bytes(16), deadline_s, ticket=self.ticket, client="", network=self.network
        )


def in_s(seconds: float) -> float:
    return trio.current_time() + seconds


@asynccontextmanager
async def strange_server(**options: Any) -> AsyncIterator[Stranger]:
    network, identity = MemoryNetwork(), new_identity()
    stranger = Stranger(network, identity)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.run)
        sockets = [network.bind(*SERVER)]
        await nursery.start(partial(serve_quic, sockets, identity, stranger, **options))
        yield stranger
        nursery.cancel_scope.cancel()


@pytest.fixture
async def stranger(virtual_time: None) -> AsyncIterator[Stranger]:
    del virtual_time
    async with strange_server() as stranger:
        yield stranger


# --- dialing -------------------------------------------------------------------------------------


async def test_a_good_ticket_opens_a_channel(host: Host) -> None:
    async with host.dial(host.ticket(await host.make_ticket())) as channel:
        assert channel.hello.is_admin
        assert len(await channel.call(ListTickets(), in_s(1))) == 1
        (session,) = host.service.status().sessions
        assert session.client == "dialed"
        assert not channel.closed.is_set()
    assert channel.closed.is_set()
    await trio.sleep(1)
    assert host.service.status().sessions == ()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("ticket", TicketUnknownError),
        ("secret", TicketUnknownError),
        ("expired", TicketExpiredError),
        ("revoked", TicketRevokedError),
        ("key", ServerKeyError),
    ],
)
async def test_each_wrong_ticket_has_its_own_error(
    host: Host, wrong: str, error: type[AspenKvError]
) -> None:
    created = await host.make_ticket(expires_s=1e-6 if wrong == "expired" else None)
    if wrong == "revoked":
        await host.service.revoke_ticket(created.ticket_id)
    ticket = host.ticket(created)
    if wrong == "ticket":
        ticket = host.ticket(CreatedTicket(bytes(16), bytes(32)))
    elif wrong == "secret":
        ticket = ticket._replace(secret=bytes(32))
    elif wrong == "key":
        ticket = ticket._replace(fingerprint=bytes(32))
    with pytest.raises(error) as caught:
        async with host.dial(ticket):
            pass
    assert caught.type is error
    assert "\n" not in str(caught.value)
    assert ticket.secret.hex() not in str(caught.value)


async def test_a_server_of_another_key_is_told_nothing(stranger: Stranger) -> None:
    stranger.ticket = stranger.ticket._replace(fingerprint=bytes(32))
    with pytest.raises(ServerKeyError):
        async with stranger.dial():
            pass
    assert stranger.requests == 0


async def test_a_server_that_ends_is_unavailable(host: Host) -> None:
    ticket = host.ticket(await host.make_ticket())
    await host.listener.drain()
    with pytest.raises(UnavailableError):
        async with host.dial(ticket):
            pass


async def test_a_server_that_takes_no_more_connections_is_busy(host: Host) -> None:
    host.server.stop_accepting()
    with pytest.raises(BusyError):
        async with host.dial(host.ticket(await host.make_ticket())):
            pass


@pytest.mark.parametrize(
    ("timeout_s", "waited_s"), [(0.0, 0.0), (-1.0, 0.0), (3.0, 3.0), (60.0, limits.HELLO_TIMEOUT_S)]
)
async def test_silence_is_waited_for_so_long_and_no_longer(
    stranger: Stranger, timeout_s: float, waited_s: float
) -> None:
    stranger.network.is_parted = True
    began_at = trio.current_time()
    with pytest.raises(UnavailableError):
        async with stranger.dial(timeout_s):
            pass
    assert trio.current_time() - began_at == pytest.approx(waited_s, abs=0.1)


@pytest.mark.parametrize(("timeout_s", "waited_s"), [(3.0, 3.0), (60.0, limits.HELLO_TIMEOUT_S)])
async def test_a_server_that_says_nothing_to_a_hello_is_unavailable(
    stranger: Stranger, timeout_s: float, waited_s: float
) -> None:
    async def wait(*_: object) -> None:
        await trio.sleep_forever()

    stranger.hello_answer = wait
    began_at = trio.current_time()
    with pytest.raises(UnavailableError):
        async with stranger.dial(timeout_s):
            pass
    assert trio.current_time() - began_at == pytest.approx(waited_s, abs=0.2)


async def close(connection: QuicConnection, _stream: QuicStream, _frame: bytes) -> None:
    connection.close(INTERNAL_ERROR, "of a test")


async def reset(_connection: QuicConnection, stream: QuicStream, _frame: bytes) -> None:
    stream.reset(INTERNAL_ERROR)


async def garbage(_connection: QuicConnection, stream: QuicStream, _frame: bytes) -> None:
    await stream.send(b"garbage", end=True)


async def newer(_connection: QuicConnection, stream: QuicStream, _frame: bytes) -> None:
    await stream.send(msgpack.packb([VERSION + 1, 0, 0]), end=True)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (close, UnavailableError),
        (reset, UnavailableError),
        (garbage, RemoteProtocolError),
        (newer, ProtocolVersionError),
    ],
)
async def test_a_hello_that_fails_has_its_own_error(
    stranger: Stranger, answer: Answer, error: type[AspenKvError]
) -> None:
    stranger.hello_answer = answer
    with pytest.raises(error):
        async with stranger.dial():
            pass


async def test_an_error_in_the_block_comes_out_as_it_is(host: Host) -> None:
    ticket = host.ticket(await host.make_ticket())
    with pytest.raises(LookupError, match="of the user"):
        async with host.dial(ticket):
            raise LookupError("of the user")


# --- calls ---------------------------------------------------------------------------------------


async def test_an_answer_in_time_is_returned_and_an_error_raised(host: Host) -> None:
    await host.service.connect().commit([], [Put(b"key", b"value")])
    async with host.dial(host.ticket(await host.make_ticket())) as channel:
        assert await channel.call(Get((b"key",), bulk=False), in_s(1)) == [(b"value", 1)]
        with pytest.raises(AccessDeniedError):
            await channel.call(Hello(bytes(16), bytes(32), bytes(16), "", VERSION), in_s(1))


async def test_no_time_left_means_nothing_is_sent(stranger: Stranger) -> None:
    async with stranger.dial() as channel:
        before = stranger.requests
        for request in (ReadRevision(), Sync()):
            with pytest.raises(UnavailableError):
                await channel.call(request, in_s(0))
        with pytest.raises(UnavailableError):
            async with channel.watch(WATCH, in_s(0)):
                pass
        await trio.sleep(1)
        assert stranger.requests == before


async def test_a_call_without_answer_ends_at_its_deadline_and_others_go_on(
    stranger: Stranger,
) -> None:
    ended = trio.Event()

    async def wait(_connection: QuicConnection, stream: QuicStream, frame: bytes) -> None:
        request_id, deadline_ms, request = decode_request(frame)
        if isinstance(request, Sync):
            assert deadline_ms == pytest.approx(3000, abs=2)
            try:
                await trio.sleep_forever()
            finally:
                ended.set()
        await stream.send(encode_reply(request_id, request, 7), end=True)

    stranger.answer = wait
    async with stranger.dial() as channel:
        began_at = trio.current_time()
        with pytest.raises(ConnectionLostError):
            await channel.call(Sync(), in_s(3))
        assert trio.current_time() - began_at == pytest.approx(3, abs=0.01)
        with trio.fail_after(1):
            await ended.wait()
        assert channel.calls_in_flight == 0
        assert await channel.call(ReadRevision(), in_s(1)) == 7


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (close, ConnectionLostError),
        (reset, ConnectionLostError),
        (garbage, RemoteProtocolError),
    ],
)
async def test_a_call_that_breaks_off_has_its_own_error(
    stranger: Stranger, answer: Answer, error: type[AspenKvError]
) -> None:
    stranger.answer = answer
    async with stranger.dial() as channel:
        with pytest.raises(error):
            await channel.call(ReadRevision(), in_s(1))
        assert channel.closed.is_set() is (answer is close)


async def test_a_reply_to_another_request_is_none(stranger: Stranger) -> None:
    async def answer(_connection: QuicConnection, stream: QuicStream, frame: bytes) -> None:
        request_id, _, request = decode_request(frame)
        await stream.send(encode_reply(request_id + 1, request, 7), end=True)

    stranger.answer = answer
    async with stranger.dial() as channel:
        with pytest.raises(RemoteProtocolError):
            await channel.call(ReadRevision(), in_s(1))


async def test_closing_ends_calls_and_watches(stranger: Stranger) -> None:
    async def answer(_connection: QuicConnection, stream: QuicStream, frame: bytes) -> None:
        if isinstance(decode_request(frame).request, OpenWatch):
            await stream.send(encode_watch_message(WatchOpened(1)))
        await trio.sleep_forever()

    async def sync(channel: Channel) -> None:
        with pytest.raises(ConnectionLostError):
            await channel.call(Sync(), in_s(20))

    stranger.answer = answer
    async with stranger.dial() as channel, channel.watch(WATCH, in_s(1)) as watch:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync, channel)
            await trio.sleep(1)
            channel.close()
        with pytest.raises(ConnectionLostError):
            await anext(aiter(watch))
        with pytest.raises(ConnectionLostError):
            async with channel.watch(WATCH, in_s(1)):
                pass


# --- watches -------------------------------------------------------------------------------------


async def test_a_watch_that_is_not_opened_in_time_is_reset(stranger: Stranger) -> None:
    ended = trio.Event()

    async def answer(*_: object) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    stranger.answer = answer
    async with stranger.dial() as channel:
        began_at = trio.current_time()
        with pytest.raises(ConnectionLostError):
            async with channel.watch(WATCH, in_s(3)):
                pass
        assert trio.current_time() - began_at == pytest.approx(3, abs=0.01)
        with trio.fail_after(1):
            await ended.wait()


def watching(*content: bytes, end: bool) -> Answer:
    async def answer(_connection: QuicConnection, stream: QuicStream, _frame: bytes) -> None:
        await stream.send(b"".join(content), end=end)
        await trio.sleep_forever()

    return answer


OPENED = encode_watch_message(WatchOpened(4))
EVENT = encode_watch_message(WatchEvent(5, ()))
GAP = encode_watch_message(WatchGapError("fell behind"))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ((GAP,), WatchGapError),
        ((EVENT,), RemoteProtocolError),
        ((b"garbage",), RemoteProtocolError),
        ((OPENED[:-1],), RemoteProtocolError),
        ((), RemoteProtocolError),
    ],
)
async def test_a_watch_that_does_not_open_says_why(
    stranger: Stranger, content: tuple[bytes, ...], error: type[AspenKvError]
) -> None:
    stranger.answer = watching(*content, end=True)
    async with stranger.dial() as channel:
        with pytest.raises(error):
            async with channel.watch(WATCH, in_s(1)):
                pass


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        (GAP, WatchGapError),
        (encode_watch_message(ClosedError("the service was closed")), ClosedError),
        (encode_watch_message(EngineError("the disk is gone")), EngineError),
        (b"", RemoteProtocolError),
        (OPENED, RemoteProtocolError),
        (struct.pack(">I", 1 << 31), RemoteProtocolError),
    ],
)
async def test_what_ends_a_watch_is_raised_after_the_events_that_came_with_it(
    stranger: Stranger, ending: bytes, error: type[AspenKvError]
) -> None:
    stranger.answer = watching(OPENED, EVENT, ending, end=True)
    async with stranger.dial() as channel, channel.watch(WATCH, in_s(1)) as watch:
        assert watch.revision == 4
        events = aiter(watch)
        assert await anext(events) == WatchEvent(5, ())
        assert watch.revision == 5
        for _ in range(2):
            with pytest.raises(error):
                await anext(events)


async def test_a_server_that_does_not_say_what_is_newest_is_not_waited_for(
    stranger: Stranger,
) -> None:
    stranger.answer = watching(OPENED, end=False)
    async with stranger.dial() as channel, channel.watch(WATCH, in_s(1)) as watch:

        async def answer(*_: object) -> None:
            await trio.sleep_forever()

        stranger.answer = answer
        began_at = trio.current_time()
        with pytest.raises(ConnectionLostError):
            await watch.newest()
        assert trio.current_time() - began_at == pytest.approx(limits.IDLE_TIMEOUT_S, abs=0.01)


async def test_what_is_newest_is_not_told_of_a_watch_that_was_closed_meanwhile(
    stranger: Stranger,
) -> None:
    stranger.answer = watching(OPENED, end=False)
    asked, go_on = trio.Event(), trio.Event()

    async def answer(_connection: QuicConnection, stream: QuicStream, frame: bytes) -> None:
        request_id, _, request = decode_request(frame)
        asked.set()
        await go_on.wait()
        await stream.send(encode_reply(request_id, request, Newest(7, 0.0)), end=True)

    async def ask(watch: Watch) -> None:
        with pytest.raises(ClosedError):
            await watch.newest()

    async with stranger.dial() as channel, trio.open_nursery() as nursery:
        async with channel.watch(WATCH, in_s(1)) as watch:
            stranger.answer = answer
            nursery.start_soon(ask, watch)
            await asked.wait()
        go_on.set()


async def test_a_watch_that_the_server_gives_up_is_lost(stranger: Stranger) -> None:
    async def answer(_connection: QuicConnection, stream: QuicStream, _frame: bytes) -> None:
        await stream.send(OPENED)
        await trio.sleep(1)
        stream.reset(INTERNAL_ERROR)

    stranger.answer = answer
    async with stranger.dial() as channel, channel.watch(WATCH, in_s(5)) as watch:
        with pytest.raises(ConnectionLostError):
            await anext(aiter(watch))
        assert not channel.closed.is_set()


async def test_a_watch_ends_with_its_block(host: Host) -> None:
    async with host.dial(host.ticket(await host.make_ticket())) as channel:
        async with channel.watch(WATCH, in_s(1)) as watch:
            assert host.service.status().watches == 1
            await host.service.connect().commit([], [Put(b"key", b"")])
            await trio.sleep(1)
        with pytest.raises(ClosedError):
            await anext(aiter(watch))
        await trio.sleep(1)
        assert host.service.status().watches == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"limits": ServerLimits(connections_max=0)}, BusyError),
        ({"alpn": "aspenkv/0"}, ProtocolVersionError),
    ],
)
async def test_a_server_that_refuses_the_connection_says_why(
    options: dict[str, Any], error: type[AspenKvError]
) -> None:
    async with strange_server(**options) as stranger:
        with pytest.raises(error):
            async with stranger.dial():
                pass
