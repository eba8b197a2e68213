"""The baseline: aioquic driven as simply as can be, as its examples do.

One ``recvfrom`` for each wake-up, one ``sendto`` for each datagram, no thought for anything else.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio
from aioquic.buffer import Buffer  # type: ignore[attr-defined] # it re-exports it
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import pull_quic_header
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from aspenkv.identity import new_identity
from bench.net import messages
from bench.net.limits import PLAIN_DATAGRAM_BYTES
from bench.net.subject import Call, Server

_ALPN: Final = "plain"
_HOST: Final = "127.0.0.1"
_DATAGRAM_BYTES_MAX: Final = 65_535


class _Endpoint:
    """One connection: a core, a socket, and a task that waits for either."""

    def __init__(self, core: QuicConnection, sock: trio.socket.SocketType) -> None:
        self.core = core
        self.sock = sock
        self.received: dict[int, list[bytes]] = {}
        self.replies: dict[int, trio.Event] = {}
        self.established = trio.Event()
        self.dirty = trio.Event()

    def feed(self, data: bytes, address: object) -> None:
        self.core.receive_datagram(data, address, now=trio.current_time())
        while (event := self.core.next_event()) is not None:
            if isinstance(event, events.HandshakeCompleted):
                self.established.set()
            elif isinstance(event, events.StreamDataReceived):
                self.received.setdefault(event.stream_id, []).append(event.data)
                if event.end_stream:
                    self.complete(event.stream_id)
        self.dirty.set()

    def complete(self, stream_id: int) -> None:
        self.replies[stream_id].set()

    async def transmit(self) -> None:
        while True:
            for data, address in self.core.datagrams_to_send(now=trio.current_time()):
                await self.sock.sendto(data, address)
            timer = self.core.get_timer()
            with trio.move_on_at(float("inf") if timer is None else timer + 1e-6) as patience:
                await self.dirty.wait()
            self.dirty = trio.Event()
            if patience.cancelled_caught:
                self.core.handle_timer(now=trio.current_time())


class _ServerEndpoint(_Endpoint):
    def complete(self, stream_id: int) -> None:
        request = b"".join(self.received.pop(stream_id))
        self.core.send_stream_data(stream_id, messages.reply(request), end_stream=True)


async def serve(task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
    """Answer requests until cancelled."""
    identity = new_identity()
    configuration = QuicConfiguration(
        is_client=False, alpn_protocols=[_ALPN], max_datagram_size=PLAIN_DATAGRAM_BYTES
    )
    configuration.certificate = x509.load_der_x509_certificate(identity.certificate_der)
    configuration.private_key = load_der_private_key(identity.private_key_der, password=None)
    connections: dict[bytes, _Endpoint] = {}
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((_HOST, 0))
        async with trio.open_nursery() as nursery:
            task_status.started(Server(sock.getsockname()[1], identity.fingerprint))
            while True:
                data, address = await sock.recvfrom(_DATAGRAM_BYTES_MAX)
                header = pull_quic_header(
                    Buffer(data=data), host_cid_length=configuration.connection_id_length
                )
                endpoint = connections.get(header.destination_cid)
                if endpoint is None:
                    core = QuicConnection(
                        configuration=configuration,
                        original_destination_connection_id=header.destination_cid,
                    )
                    endpoint = _ServerEndpoint(core, sock)
                    connections[header.destination_cid] = endpoint
                    connections[core.host_cid] = endpoint
                    endpoint.feed(data, address)
                    nursery.start_soon(endpoint.transmit)
                else:
                    endpoint.feed(data, address)


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Call]:
    """Connect to a plain server."""
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=[_ALPN],
        max_datagram_size=PLAIN_DATAGRAM_BYTES,
        verify_mode=ssl.CERT_NONE,
    )
    address = (_HOST, server.port)
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((_HOST, 0))
        core = QuicConnection(configuration=configuration)
        core.connect(address, now=trio.current_time())
        endpoint = _Endpoint(core, sock)

        async def receive() -> None:
            while True:
                endpoint.feed(*await sock.recvfrom(_DATAGRAM_BYTES_MAX))

        async def call(request: bytes) -> bytes:
            stream_id = core.get_next_available_stream_id()
            done = endpoint.replies[stream_id] = trio.Event()
            core.send_stream_data(stream_id, request, end_stream=True)
            endpoint.dirty.set()
            await done.wait()
            del endpoint.replies[stream_id]
            return b"".join(endpoint.received.pop(stream_id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(endpoint.transmit)
            nursery.start_soon(receive)
            await endpoint.established.wait()
            yield call
            nursery.cancel_scope.cancel()
