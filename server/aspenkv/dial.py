"""The client's end of one connection: hello, then calls and watches over streams of their own."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from typing import Any, Final

import trio

from aspenkv.contract import Newest, Watch, WatchEvent
from aspenkv.errors import AspenKvError, ClosedError, ConnectionLostError, UnavailableError
from aspenkv.limits import HELLO_TIMEOUT_S, IDLE_TIMEOUT_S, REPLY_BYTES_MAX
from aspenkv.protocol import (
    VERSION,
    Hello,
    HelloReply,
    OpenWatch,
    ReadNewest,
    Request,
    WatchDecoder,
    WatchOpened,
    WatchProgress,
    decode_reply,
    encode_request,
)
from aspenkv.quic import QuicConnection, QuicStream, connect_quic
from aspenkv.quic.datagrams import Network
from aspenkv.quic.errors import NO_ERROR, StreamResetError
from aspenkv.quic.udp import UDP
from aspenkv.tickets import Endpoint, Ticket

_MS_PER_S: Final = 1000


@asynccontextmanager
async def dial(
    endpoint: Endpoint,
    session: bytes,
    deadline_s: float,
    *,
    ticket: Ticket,
    client: str,
    network: Network = UDP,
) -> AsyncIterator[Channel]:
    """Connect to a server, show the ticket, and hang up when the block ends.

    Args:
        endpoint: where the server is.
        session: 16 bytes that all connections of one client share.
        deadline_s: when to give up, on trio's clock.
        ticket: how to know the server, and what to show it.
        client: what the server's status calls this client.
        network: what carries the datagrams.

    Raises:
        UnavailableError: nobody answers there.
        ServerKeyError: who answers is not the ticket's server.
        ProtocolVersionError: it speaks another version.
        TicketError: it does not accept the ticket.
        BusyError, TooManyError: it takes no more clients now.
    """
    timeout_s = min(HELLO_TIMEOUT_S, deadline_s - trio.current_time())
    if timeout_s <= 0:
        raise UnavailableError(f"no time is left to connect to {endpoint}")
    async with connect_quic(
        endpoint.host,
        endpoint.port,
        fingerprint=ticket.fingerprint,
        connect_timeout_s=timeout_s,
        network=network,
    ) as connection:
        channel = Channel(connection)
        try:
            await channel.hello_with(
                Hello(ticket.ticket_id, ticket.secret, session, client, VERSION),
                deadline_s=min(deadline_s, trio.current_time() + HELLO_TIMEOUT_S),
            )
        except ConnectionLostError as error:
            raise UnavailableError(f"{endpoint} hung up: {error}") from None
        yield channel


class Channel:
    """One connection on which the server has accepted the ticket."""

    def __init__(self, connection: QuicConnection) -> None:
        """Take a connection; :meth:`hello_with` comes first."""
        self._connection = connection
        self._request_ids = itertools.count(1)
        self._hello: HelloReply | None = None
        self.calls_in_flight = 0

    @property
    def hello(self) -> HelloReply:
        """What the server said of itself, of the ticket's rights and of this client's session."""
        assert self._hello is not None, "hello comes first"
        return self._hello

    @property
    def closed(self) -> trio.Event:
        """Set when the connection is gone, for whatever reason."""
        return self._connection.closed

    def close(self) -> None:
        """Hang up at once."""
        self._connection.close()

    async def hello_with(self, hello: Hello, deadline_s: float) -> None:
        """Show a ticket. Raises what :func:`dial` does."""
        self._hello = await self.call(hello, deadline_s)

    async def call(self, request: Request, deadline_s: float) -> Any:  # noqa: ANN401 - of the type that belongs to the request
        """Send a request and return its reply.

        A cancelled call resets its stream, and the server stops working on it where it can.

        Raises:
            UnavailableError: the time was over before anything was sent.
            ConnectionLostError: no answer came in time, or the connection broke; the request may
                have been carried out.
            RemoteProtocolError: the reply is none.
            AspenKvError: what the server answered.
        """
        request_id = next(self._request_ids)
        frame = encode_request(request_id, _milliseconds_left(deadline_s), request)
        self.calls_in_flight += 1
        try:
            with trio.move_on_at(deadline_s):
                reply = await self._connection.exchange(frame, reply_bytes_max=REPLY_BYTES_MAX)
                return decode_reply(reply, request_id, request)
        except StreamResetError as error:
            raise ConnectionLostError(f"the server gave up the request: {error}") from None
        finally:
            self.calls_in_flight -= 1
        raise ConnectionLostError("no answer came in time")

    @asynccontextmanager
    async def watch(self, request: OpenWatch, deadline_s: float) -> AsyncIterator[Watch]:
        """Open a watch, and end it with the block.

        Args:
            request: what to watch.
            deadline_s: when the server must have opened it, on trio's clock.

        Raises:
            ConnectionLostError: the connection broke, here or while events are awaited.
            WatchGapError, TooManyError, AccessDeniedError: as the server says.
        """
        request_id = next(self._request_ids)
        frame = encode_request(request_id, _milliseconds_left(deadline_s), request)
        ask = partial(self.call, ReadNewest(request_id))
        watch: RemoteWatch | None = None
        async with AsyncExitStack() as stack:
            with trio.move_on_at(deadline_s):
                stream = await self._connection.open_stream()
                stack.callback(stream.reset, NO_ERROR)
                await stream.send(frame, end=True)
                opening = stack.enter_context(closing(RemoteWatch(stream, ask)))
                await opening.opened()
                watch = opening
            if watch is None:
                raise ConnectionLostError("no answer came in time")
            yield watch


class RemoteWatch:
    """The client's end of a watch; see :class:`aspenkv.contract.Watch`."""

    def __init__(self, stream: QuicStream, ask: Callable[[float], Awaitable[Newest]]) -> None:
        """Take the stream on which the server sends its events, and who asks it until a deadline.

        ``ask`` goes to the server that serves the watch: no other knows what it hands out.
        """
        self._stream = stream
        self._ask = ask
        self._decoder = WatchDecoder()
        self._messages: deque[WatchOpened | WatchEvent | WatchProgress] = deque()
        self._revision = 0
        self._is_closed = False

    @property
    def revision(self) -> int:
        """Every commit up to this revision was handed out, or did not touch the prefix."""
        return self._revision

    async def newest(self) -> Newest:
        """See :meth:`aspenkv.contract.Watch.newest`.

        A server that lives answers at once, so this waits no longer than for a sign of life.

        Raises:
            ConnectionLostError: no answer came in IDLE_TIMEOUT_S, or the connection broke.
            ClosedError: the watch was closed, at either end.
            AspenKvError: what else the server answered, as the failure of the watch.
        """
        self._check_open()
        newest = await self._ask(trio.current_time() + IDLE_TIMEOUT_S)
        self._check_open()
        return newest

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        """Iterate over the events."""
        return self

    async def opened(self) -> None:
        """Wait until the server has opened the watch."""
        message = await self._next()
        assert isinstance(message, WatchOpened), "the decoder lets nothing else come first"
        self._revision = message.revision

    def close(self) -> None:
        """Have no more events; what the iterator raises then is ClosedError."""
        self._is_closed = True
        self._messages.clear()

    async def __anext__(self) -> WatchEvent:
        """Return the next event, waiting for it."""
        while True:
            message = await self._next()
            if isinstance(message, WatchEvent):
                self._revision = max(self._revision, message.revision)
                return message
            self._revision = max(self._revision, message.revision)

    async def _next(self) -> WatchOpened | WatchEvent | WatchProgress:
        while not self._messages:
            try:
                data = await self._stream.receive_some()
            except StreamResetError as error:
                raise self._why_ended(error) from None
            self._messages.extend(self._decoder.receive_data(data))
        return self._messages.popleft()

    def _why_ended(self, reset: StreamResetError) -> AspenKvError:
        if self._is_closed:
            return _closed()
        return ConnectionLostError(f"the server gave up the watch: {reset}")

    def _check_open(self) -> None:
        if self._is_closed:
            raise _closed()


def _closed() -> ClosedError:
    return ClosedError("the watch was closed")


def _milliseconds_left(deadline_s: float) -> int:
    left_s = deadline_s - trio.current_time()
    if left_s <= 0:
        raise UnavailableError("the time for the call is over")
    return max(1, round(left_s * _MS_PER_S))
