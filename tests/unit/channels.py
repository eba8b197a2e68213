"""Servers and channels in memory, for the pool and the client above it: what fails is scripted.

A request that has reached a server is carried out there whatever becomes of its channel, as over a
network.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import MockClock

from aspenkv.contract import Newest, Watch, WatchEvent
from aspenkv.errors import ConnectionLostError, UnavailableError
from aspenkv.protocol import Bye, HelloReply, OpenWatch, ReadNewest, Request
from aspenkv.tickets import Endpoint

Answer = Callable[["FakeChannel", Request], Awaitable[Any]]
"""Carries out a request. An error that it raises is what the server answers."""

HELLO = HelloReply(
    server_id=b"first process...",
    version=1,
    prefix=b"",
    can_write=True,
    is_admin=False,
    session_is_new=True,
    started_revision=0,
    slots_max=4,
    requests_max=256,
)


async def nothing(_channel: FakeChannel, _request: Request) -> None:
    """Answer at once."""
    await trio.lowlevel.checkpoint()


class FakeServer:
    """A server behind one endpoint, which answers as its test says."""

    def __init__(self, nursery: trio.Nursery, clock: MockClock, sessions: set[bytes]) -> None:
        self._nursery = nursery
        self._clock = clock
        self._sessions = sessions  # that the store knows, by whichever server
        self.answer: Answer = nothing
        self.hello = HELLO
        self.dial_failure: Exception | None = None
        self.is_silent = False  # to dials
        self.dialed_s: list[float] = []
        self.channels: list[FakeChannel] = []

    def note_dial(self) -> None:
        self.dialed_s.append(self._clock.current_time())

    @property
    def open_channels(self) -> list[FakeChannel]:
        return [channel for channel in self.channels if not channel.closed.is_set()]

    def go_away(self, failure: Exception | None = None) -> None:
        """Drop all connections and refuse new ones."""
        self.dial_failure = failure or UnavailableError("connection refused")
        self.drop_connections()

    def come_back(self) -> None:
        self.dial_failure = None

    def drop_connections(self) -> None:
        for channel in self.open_channels:
            channel.close()

    def start(self, channel: FakeChannel, request: Request, reply: Reply) -> None:
        self._nursery.start_soon(self._carry_out, channel, request, reply)

    async def _carry_out(self, channel: FakeChannel, request: Request, reply: Reply) -> None:
        try:
            reply.value = await self.answer(channel, request)
        except Exception as error:  # noqa: BLE001 - handed to the caller
            reply.error = error
        reply.arrived.set()

    async def greet(self, session: bytes) -> HelloReply:
        """Return the answer to a hello, as a server with a table of sessions."""
        is_new = session not in self._sessions
        self._sessions.add(session)
        return self.hello._replace(session_is_new=is_new)


class Reply:
    """What becomes of one request."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.value: Any = None
        self.error: Exception | None = None


class FakeChannel:
    """One connection to a fake server; see :class:`aspenfs.pool.Channel`."""

    def __init__(self, server: FakeServer, hello: HelloReply, session: bytes) -> None:
        self._server = server
        self.hello = hello
        self.session = session
        self.closed = trio.Event()
        self.requests: list[Request] = []
        self.calls_in_flight = 0
        self.calls_in_flight_max = 0

    def close(self) -> None:
        self.closed.set()

    async def call(self, request: Request, deadline_s: float) -> Any:
        if self.closed.is_set():
            raise ConnectionLostError("sent on a closed connection")
        if trio.current_time() >= deadline_s:
            raise UnavailableError("the time for the call is over")
        self.requests.append(request)
        reply = Reply()
        self._server.start(self, request, reply)
        self.calls_in_flight += 1
        self.calls_in_flight_max = max(self.calls_in_flight_max, self.calls_in_flight)
        try:
            with trio.move_on_at(deadline_s):
                await self.first_of(reply.arrived, self.closed)
        finally:
            self.calls_in_flight -= 1
        if self.closed.is_set():
            raise ConnectionLostError("the connection broke")
        if not reply.arrived.is_set():
            raise ConnectionLostError("no answer came in time")
        if reply.error is not None:
            raise reply.error
        return reply.value

    @asynccontextmanager
    async def watch(self, request: OpenWatch, deadline_s: float) -> AsyncIterator[Watch]:
        yield FakeWatch(self, await self.call(request, deadline_s))

    @staticmethod
    async def first_of(*events: trio.Event) -> None:
        """Wait until one of ``events`` is set."""
        async with trio.open_nursery() as nursery:

            async def wait_for(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            for event in events:
                nursery.start_soon(wait_for, event)


class FakeWatch:
    """A watch that hands out what was put into ``events``, and ends with its channel."""

    def __init__(self, channel: FakeChannel, events: trio.MemoryReceiveChannel[Any]) -> None:
        self._channel = channel
        self._events = events
        self.revision = 0

    async def newest(self) -> Newest:
        newest: Newest = await self._channel.call(ReadNewest(1), trio.current_time() + 30)
        return newest

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self

    async def __anext__(self) -> WatchEvent:
        arrived = trio.Event()
        taken: list[WatchEvent | Exception] = []
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                taken.append(await self._events.receive())
                arrived.set()

            nursery.start_soon(take)
            await FakeChannel.first_of(arrived, self._channel.closed)
            nursery.cancel_scope.cancel()
        if not taken:
            raise ConnectionLostError("the connection broke")
        event = taken[0]
        if isinstance(event, Exception):
            raise event
        self.revision = event.revision
        return event


class Network:
    """All servers of one store."""

    def __init__(
        self,
        nursery: trio.Nursery,
        clock: MockClock,
        count: int = 1,
        server: Callable[[trio.Nursery, MockClock, set[bytes]], FakeServer] | None = None,
    ) -> None:
        make = FakeServer if server is None else server
        self.sessions: set[bytes] = set()
        self.servers = {
            Endpoint(f"server{number}", 7400): make(nursery, clock, self.sessions)
            for number in range(count)
        }

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        return tuple(self.servers)

    @property
    def server(self) -> FakeServer:
        return next(iter(self.servers.values()))

    @property
    def channels(self) -> list[FakeChannel]:
        return [each for server in self.servers.values() for each in server.channels]

    @property
    def open_channels(self) -> list[FakeChannel]:
        return [each for server in self.servers.values() for each in server.open_channels]

    def requests(self) -> list[Request]:
        """Return what was sent to any server, but for goodbyes."""
        return [
            request
            for channel in self.channels
            for request in channel.requests
            if not isinstance(request, Bye)
        ]

    @asynccontextmanager
    async def dial(
        self, endpoint: Endpoint, session: bytes, deadline_s: float, /
    ) -> AsyncIterator[FakeChannel]:
        server = self.servers[endpoint]
        server.note_dial()
        if server.is_silent:
            await trio.sleep_until(deadline_s)
            raise UnavailableError("no answer")
        await trio.lowlevel.checkpoint()
        if server.dial_failure is not None:
            raise server.dial_failure
        channel = FakeChannel(server, await server.greet(session), session)
        server.channels.append(channel)
        try:
            yield channel
        finally:
            channel.close()
