"""A server that echoes, and a client of it, on a network in memory."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from aspenkv.identity import ServerIdentity, new_identity
from aspenkv.quic import (
    QuicConnection,
    QuicServer,
    QuicStream,
    ServerLimits,
    connect_quic,
    serve_quic,
)
from tests.unit.aspenkv.network import MemoryNetwork, MemorySocket

HOST = "203.0.113.1"
PORT = 4433
CONNECT_TIMEOUT_S = 60.0

Answer = Callable[[QuicConnection, QuicStream, bytes], Awaitable[None]]


@functools.cache
def identity() -> ServerIdentity:
    return new_identity()


async def echo(_connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
    await stream.send(request, end=True)


class Handler:
    """Answers every request in the same way, and keeps count."""

    def __init__(self, answer: Answer = echo, *, admits: bool = True) -> None:
        self.answer = answer
        self.admits = admits
        self.connections: list[QuicConnection] = []
        self.gone: list[QuicConnection] = []
        self.running = 0
        self.running_max = 0
        self.requests = 0
        self.ended = trio.Event()

    def connected(self, connection: QuicConnection) -> None:
        self.connections.append(connection)
        if self.admits:
            connection.admit()

    def disconnected(self, connection: QuicConnection) -> None:
        self.gone.append(connection)
        self.ended.set()

    async def handle(self, connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
        self.requests += 1
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        try:
            await self.answer(connection, stream, request)
        finally:
            self.running -= 1


class Scene:
    """A network with a server on it."""

    def __init__(
        self, network: MemoryNetwork, handler: Handler, server: QuicServer, socket: MemorySocket
    ) -> None:
        self.network = network
        self.handler = handler
        self.server = server
        self.socket = socket

    def connect(self, **options: Any) -> Any:
        options = {
            "fingerprint": identity().fingerprint,
            "connect_timeout_s": CONNECT_TIMEOUT_S,
            "network": self.network,
            **options,
        }
        return connect_quic(options.pop("host", HOST), PORT, **options)


@asynccontextmanager
async def open_scene(
    handler: Handler | None = None,
    *,
    network: MemoryNetwork | None = None,
    limits: ServerLimits | None = None,
    alpn: str | None = None,
) -> AsyncIterator[Scene]:
    network = network or MemoryNetwork()
    handler = handler or Handler()
    options: dict[str, Any] = {"limits": limits or ServerLimits()}
    if alpn is not None:
        options["alpn"] = alpn
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.run)
        socket = network.bind(HOST, PORT)
        server = await nursery.start(partial(serve_quic, [socket], identity(), handler, **options))
        yield Scene(network, handler, server, socket)
        nursery.cancel_scope.cancel()
