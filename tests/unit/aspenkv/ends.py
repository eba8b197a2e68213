"""A server on a network in memory, and clients of it that keep to nothing."""

from __future__ import annotations

import itertools
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgpack
import trio

from aspenkv.access import Grant
from aspenkv.contract import CreatedTicket
from aspenkv.dial import Channel, dial
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.listen import Listener
from aspenkv.protocol import (
    VERSION,
    Hello,
    HelloReply,
    OpenWatch,
    ReadRevision,
    Request,
    WatchDecoder,
    WatchMessage,
    decode_reply,
    encode_request,
)
from aspenkv.quic import QuicConnection, QuicServer, QuicStream, connect_quic, serve_quic
from aspenkv.service import Service
from aspenkv.tickets import Endpoint, Ticket
from tests.unit.aspenkv.network import MemoryNetwork

SERVER = Endpoint("203.0.113.1", 7400)
ADMIN = Grant(b"", can_write=True, is_admin=True)
CALL_S = 30.0

_DEADLINE_MS = 30_000
_REPLY_BYTES_MAX = 1 << 25


class RawClient:
    """One connection, and whatever is to be sent on it."""

    def __init__(self, connection: QuicConnection) -> None:
        self.connection = connection
        self._ids = itertools.count(1)

    async def send(self, frame: bytes) -> bytes:
        return await self.connection.exchange(frame, reply_bytes_max=_REPLY_BYTES_MAX)

    async def ask(self, request: Request, *, deadline_ms: int = _DEADLINE_MS) -> Any:
        request_id = next(self._ids)
        reply = await self.send(encode_request(request_id, deadline_ms, request))
        return decode_reply(reply, request_id, request)

    async def ask_raw(self, frame: bytes) -> Any:
        """Send any bytes, and take the reply for that of whichever request it names."""
        reply = await self.send(frame)
        _, request_id, *_ = msgpack.unpackb(reply)
        return decode_reply(reply, request_id, ReadRevision())

    async def hello(
        self, ticket: CreatedTicket, session: bytes = b"", client: str = "raw"
    ) -> HelloReply:
        session = session or secrets.token_bytes(16)
        reply: HelloReply = await self.ask(Hello(*ticket, session, client, VERSION))
        return reply

    async def watch(
        self,
        prefix: bytes = b"",
        from_revision: int | None = None,
        *,
        values: bool = False,
        request_id: int | None = None,
    ) -> RawWatch:
        request_id = next(self._ids) if request_id is None else request_id
        request = OpenWatch(prefix, from_revision, values, skip_own=False)
        stream = await self.connection.open_stream()
        await stream.send(encode_request(request_id, _DEADLINE_MS, request), end=True)
        return RawWatch(stream, request_id)


class RawWatch:
    """A watch that may be read or not."""

    def __init__(self, stream: QuicStream, request_id: int) -> None:
        self.stream = stream
        self.request_id = request_id
        self._decoder = WatchDecoder()
        self._messages: deque[WatchMessage] = deque()

    async def read(self, count: int) -> list[WatchMessage]:
        """Return the next messages."""
        while len(self._messages) < count:
            self._messages += self._decoder.receive_data(await self.stream.receive_some())
        return [self._messages.popleft() for _ in range(count)]


class Host:
    """A service that listens."""

    def __init__(
        self,
        service: Service,
        network: MemoryNetwork,
        listener: Listener,
        server: QuicServer,
        fingerprint: bytes,
    ) -> None:
        self.service = service
        self.network = network
        self.listener = listener
        self.server = server
        self.fingerprint = fingerprint

    async def make_ticket(
        self, grant: Grant = ADMIN, *, expires_s: float | None = None
    ) -> CreatedTicket:
        return await self.service.create_ticket(grant, label="a test's", expires_s=expires_s)

    def ticket(self, created: CreatedTicket) -> Ticket:
        return Ticket((SERVER,), self.fingerprint, *created)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[RawClient]:
        """Connect, and say nothing."""
        async with connect_quic(
            *SERVER, fingerprint=self.fingerprint, connect_timeout_s=CALL_S, network=self.network
        ) as connection:
            yield RawClient(connection)

    @asynccontextmanager
    async def enter(self, grant: Grant = ADMIN) -> AsyncIterator[RawClient]:
        """Connect, and show a ticket of one's own."""
        ticket = await self.make_ticket(grant)
        async with self.connect() as client:
            await client.hello(ticket)
            yield client

    def dial(
        self, ticket: Ticket, *, timeout_s: float = CALL_S
    ) -> AbstractAsyncContextManager[Channel]:
        return dial(
            ticket.endpoints[0],
            secrets.token_bytes(16),
            trio.current_time() + timeout_s,
            ticket=ticket,
            client="dialed",
            network=self.network,
        )


@asynccontextmanager
async def listening(service: Service, network: MemoryNetwork) -> AsyncIterator[Host]:
    """Listen on a network for the clients of a service."""
    identity = await service.identity()
    listener = Listener(service)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.run)
        await nursery.start(listener.run)
        server = await nursery.start(serve_quic, [network.bind(*SERVER)], identity, listener)
        yield Host(service, network, listener, server, identity.fingerprint)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def hosted() -> AsyncIterator[Host]:
    """Serve an empty store."""
    network = MemoryNetwork()
    network.mtu_bytes = 16_376
    async with open_embedded(MemoryEngine()) as service, listening(service, network) as host:
        yield host
