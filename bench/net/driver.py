"""The driver alone: a bare echo over :mod:`aspenkv.quic`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from aspenkv.identity import new_identity
from aspenkv.quic import QuicConnection, QuicStream, bind_sockets, connect_quic, serve_quic
from bench.net import messages
from bench.net.limits import CONNECT_TIMEOUT_S, MESSAGE_BYTES_MAX
from bench.net.subject import Call, Server

_HOST: Final = "127.0.0.1"


class _Echo:
    def connected(self, connection: QuicConnection) -> None:
        connection.admit()

    async def handle(self, _connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
        await stream.send(messages.reply(request), end=True)

    def disconnected(self, connection: QuicConnection) -> None:
        """Do nothing."""


async def serve(task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
    """Answer requests until cancelled."""
    identity = new_identity()
    with bind_sockets(_HOST, 0) as sockets:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_quic, sockets, identity, _Echo()))
            task_status.started(Server(sockets[0].getsockname()[1], identity.fingerprint))


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Call]:
    """Connect to the server."""
    async with connect_quic(
        _HOST,
        server.port,
        fingerprint=server.fingerprint,
        connect_timeout_s=CONNECT_TIMEOUT_S,
    ) as connection:
        yield partial(connection.exchange, reply_bytes_max=MESSAGE_BYTES_MAX)
