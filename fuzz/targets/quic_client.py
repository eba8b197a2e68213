"""A client reads what a hostile server sends, while it connects and afterwards."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio
from aioquic.buffer import Buffer  # type: ignore[attr-defined] # it re-exports it
from aioquic.quic.packet import encode_quic_retry, encode_quic_version_negotiation, pull_quic_header
from trio.testing import MockClock

from aspenkv.errors import AspenKvError
from aspenkv.quic import QuicConnection, connect_quic
from aspenkv.quic.client import ALPN
from aspenkv.quic.core import CONNECTION_ID_BYTES, server_configuration
from fuzz.frames import CONTROL_FRAMES, FRAMES
from fuzz.handshake import recorded
from fuzz.peer import Peer, decode_change
from fuzz.quiet import quiet_log
from fuzz.steps import Step, decode_steps, encode_steps
from tests.unit.aspenkv.endpoints import HOST, PORT, identity
from tests.unit.aspenkv.network import MemoryNetwork, MemorySocket

_ROUND_TRIP_S: Final = 0.005
_CONNECT_TIMEOUT_S: Final = 5.0
_CALL_TIMEOUT_S: Final = 30.0
_WAIT_S_MAX: Final = 8.0
_VERSION: Final = 1
_RETRY_ID: Final = b"retried!"
_REPLY_BYTES_MAX: Final = 1000

_KINDS: Final = 8
_PACKET, _RAW, _TO_CLIENT, _CHANGE, _INITIAL, _RETRY, _VERSIONS, _WAIT = range(_KINDS)
_BEFORE: Final = frozenset({_INITIAL, _RETRY, _VERSIONS})

SEEDS: Final = [
    encode_steps([]),
    *(encode_steps([Step(_PACKET, frame)]) for frame in FRAMES),
    encode_steps([Step(_PACKET, frame) for frame in CONTROL_FRAMES[-9:]]),
    encode_steps([Step(_PACKET, frame) for frame in (b"\x0a\x00\x05hello", b"\x0d\x00\x05\x01z")]),
    *(encode_steps([Step(_RAW, data)]) for data in recorded().by_server),
    encode_steps([Step(_TO_CLIENT, b"\x40" + 40 * b"x"), Step(_WAIT, b"\x20")]),
    *(encode_steps([Step(_INITIAL, frame)]) for frame in CONTROL_FRAMES[::3]),
    encode_steps([Step(_RETRY, b"token"), Step(_RETRY, b"again")]),
    encode_steps([Step(_VERSIONS, b"\0\0\0\2")]),
    encode_steps([Step(_VERSIONS, b"\0\0\0\1")]),
    *(encode_steps([Step(_CHANGE, bytes((epoch, 0, at, 1, 0xFF)))])
      for epoch in (0, 1) for at in (0, 1, 4, 6, 40, 80, 100, 200)),
]  # fmt: skip


def check(data: bytes) -> None:
    """Whatever a server sends, the client has an answer or an error of the tree, and in time."""
    with quiet_log():
        trio.run(_use, data, clock=MockClock(autojump_threshold=0))


async def _use(data: bytes) -> None:
    network = MemoryNetwork()
    steps = [Step(kind % _KINDS, content) for kind, content in decode_steps(data)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.run)
        server = _HostileServer(network.bind(HOST, PORT), steps)
        nursery.start_soon(server.run)
        began_at = trio.current_time()
        with suppress(AspenKvError):
            async with connect_quic(
                HOST,
                PORT,
                fingerprint=identity().fingerprint,
                connect_timeout_s=_CONNECT_TIMEOUT_S,
                network=network,
            ) as connection:
                assert trio.current_time() <= began_at + _CONNECT_TIMEOUT_S
                await _call(connection, server)
        assert trio.current_time() <= began_at + _CONNECT_TIMEOUT_S + 3 * _CALL_TIMEOUT_S
        nursery.cancel_scope.cancel()


async def _call(connection: QuicConnection, server: _HostileServer) -> None:
    """Call while the server misbehaves, and again afterwards."""
    for is_last in (False, True):
        with trio.move_on_after(_CALL_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                if not is_last:
                    nursery.start_soon(server.misbehave)
                with suppress(AspenKvError):
                    await connection.exchange(b"call", reply_bytes_max=_REPLY_BYTES_MAX)
        assert connection.statistics().streams_open == 0
    stream = await connection.open_stream()
    with trio.move_on_after(_CALL_TIMEOUT_S):
        await stream.send(b"read piece by piece", end=True)
        await stream.receive_all(_REPLY_BYTES_MAX)
    stream.reset(0)


class _HostileServer:
    """Does some steps in place of its first answer, and the others when the client is in."""

    def __init__(self, socket: MemorySocket, steps: list[Step]) -> None:
        self._socket = socket
        self._changes = [decode_change(each.content) for each in steps if each.kind == _CHANGE]
        self._before = [each for each in steps if each.kind in _BEFORE]
        self._after = [each for each in steps if each.kind not in {*_BEFORE, _CHANGE}]
        self._peer: Peer | None = None
        self._client_id = b""

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._socket.wait_readable()
            if self._peer is None:
                self._begin()
            else:
                self._peer.pump()

    async def misbehave(self) -> None:
        """Do the steps for a client that is connected."""
        for step in self._after:
            if step.kind == _WAIT:
                await trio.sleep(min(sum(step.content) / 16, _WAIT_S_MAX))
            elif self._peer is not None:
                self._peer.send(self._datagram(self._peer, step))
                await trio.sleep(_ROUND_TRIP_S)

    def _begin(self) -> None:
        """Take the first datagram of a client."""
        received = self._socket.receive()
        if not received:
            return
        data, address = received[0]
        header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_BYTES)
        self._client_id = header.source_cid
        first_id = header.destination_cid
        has_retry = any(step.kind == _RETRY for step in self._before)
        self._peer = peer = Peer(
            server_configuration(ALPN, identity().certificate_der, identity().private_key_der),
            self._socket,
            address,
            changes=self._changes,
            original_id=first_id,
            retry_id=_RETRY_ID if has_retry else None,
        )
        if not has_retry:
            peer.take(data)
        for step in self._before:
            if step.kind == _INITIAL:
                peer.send(peer.initial(step.content))
            elif step.kind == _RETRY:
                peer.send(self._retry(step.content, first_id))
            else:
                peer.send(self._versions(step.content, first_id))
        peer.pump()

    def _datagram(self, peer: Peer, step: Step) -> bytes:
        if step.kind == _PACKET:
            return peer.packet(step.content)
        if step.kind == _TO_CLIENT:
            return step.content[:1] + self._client_id + step.content[1:]
        return step.content

    def _retry(self, token: bytes, first_id: bytes) -> bytes:
        return encode_quic_retry(
            version=_VERSION,
            source_cid=_RETRY_ID,
            destination_cid=self._client_id,
            original_destination_cid=first_id,
            retry_token=token,
        )

    def _versions(self, content: bytes, first_id: bytes) -> bytes:
        versions = [int.from_bytes(content[at : at + 4], "big") for at in range(0, len(content), 4)]
        return encode_quic_version_negotiation(
            source_cid=first_id, destination_cid=self._client_id, supported_versions=versions
        )
