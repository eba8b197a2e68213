"""A server reads datagrams: of strangers, of clients in their handshake, and of hostile clients."""

from __future__ import annotations

from typing import Final

import trio
from trio.testing import MockClock

from aspenkv.limits import CONNECTIONS_MAX, HANDSHAKE_TIMEOUT_S, IDLE_TIMEOUT_S, STREAMS_MAX
from aspenkv.quic import QuicConnection
from aspenkv.quic.client import ALPN
from aspenkv.quic.core import client_configuration
from aspenkv.quic.datagrams import Address
from fuzz.frames import FRAMES, STREAM_FRAMES
from fuzz.handshake import recorded
from fuzz.peer import Change, Peer, decode_change
from fuzz.quiet import quiet_log
from fuzz.steps import Step, decode_steps, encode_steps
from tests.unit.aspenkv.endpoints import HOST, PORT, Scene, open_scene

_SERVER: Final = (HOST, PORT)
_CLIENT: Final = ("192.0.2.66", 6666)
_ELSEWHERE: Final = ("192.0.2.67", 6667)
_ROUND_TRIP_S: Final = 0.005
_HANDSHAKE_ROUND_TRIPS: Final = 4
_WAIT_S_MAX: Final = 8.0
_ONLY_THE_NEIGHBOUR: Final = (1, 0)

_KINDS: Final = 8
_RAW, _TO_NEIGHBOUR, _INITIAL, _PACKET, _MOVED_PACKET, _CHANGE, _RENEW, _WAIT = range(_KINDS)

SEEDS: Final = [
    *(encode_steps([Step(_RAW, data)]) for data in recorded().by_client),
    *(encode_steps([Step(_INITIAL, frame)]) for frame in FRAMES[::4]),
    encode_steps([Step(_PACKET, frame) for frame in STREAM_FRAMES]),
    encode_steps([Step(_MOVED_PACKET, frame) for frame in STREAM_FRAMES[:3]]),
    encode_steps([Step(_TO_NEIGHBOUR, b"\x40" + 40 * b"x"), Step(_WAIT, b"\x20")]),
    *(encode_steps([Step(_PACKET, frame)]) for frame in FRAMES),
    *(encode_steps([Step(_CHANGE, bytes((epoch, 0, at, 1, 0xFF)))])
      for epoch in (0, 1) for at in (0, 1, 4, 6, 40, 80)),
    encode_steps([Step(_RENEW, b""), Step(_PACKET, FRAMES[0]), Step(_RENEW, b"")]),
]  # fmt: skip


def check(data: bytes) -> None:
    """Whatever arrives ends at most the connection that it came by.

    No error escapes and nothing is logged, a client beside goes on, and of the others nothing is
    left when their time is over.
    """
    with quiet_log():
        trio.run(_serve, data, clock=MockClock(autojump_threshold=0))


async def _serve(data: bytes) -> None:
    async with open_scene() as scene, scene.connect() as neighbour:
        await _exchange(neighbour)
        hostile = _Hostile(scene, neighbour)
        for step in decode_steps(data):
            await hostile.take(step)
            for connection in scene.server.connections:
                assert connection.statistics().streams_open <= STREAMS_MAX
        assert scene.server.statistics().connections < CONNECTIONS_MAX
        await _exchange(neighbour)
        if _left(scene) != _ONLY_THE_NEIGHBOUR:
            await trio.sleep(HANDSHAKE_TIMEOUT_S + 2 * IDLE_TIMEOUT_S)
            assert _left(scene) == _ONLY_THE_NEIGHBOUR
            await _exchange(neighbour)


def _left(scene: Scene) -> tuple[int, int]:
    statistics = scene.server.statistics()
    return statistics.connections, statistics.handshakes_pending


async def _exchange(connection: QuicConnection) -> None:
    assert await connection.exchange(b"still here", reply_bytes_max=10) == b"still here"


class _Hostile:
    """A client at one address, and whoever sends from others."""

    def __init__(self, scene: Scene, neighbour: QuicConnection) -> None:
        self._scene = scene
        self._neighbour = neighbour
        self._peer: Peer | None = None

    async def take(self, step: Step) -> None:
        """Do what a step says."""
        kind = step.kind % _KINDS
        if kind == _WAIT:
            await trio.sleep(min(sum(step.content) / 16, _WAIT_S_MAX))
        elif kind == _RAW:
            self._inject(step.content, _CLIENT)
        elif kind == _TO_NEIGHBOUR:
            self._inject(self._addressed(step.content), _ELSEWHERE)
        elif kind == _CHANGE:
            await self._connect([decode_change(step.content)], _HANDSHAKE_ROUND_TRIPS)
        elif kind == _INITIAL:
            peer = await self._connect([], 1)
            self._inject(peer.initial(step.content), _CLIENT)
        elif kind == _RENEW:
            self._peer = None
        else:
            peer = self._peer or await self._connect([], _HANDSHAKE_ROUND_TRIPS)
            source = _CLIENT if kind == _PACKET else _ELSEWHERE
            self._inject(peer.packet(step.content), source)
        await trio.sleep(_ROUND_TRIP_S)
        if self._peer is not None:
            self._peer.pump()

    async def _connect(self, changes: list[Change], round_trips: int) -> Peer:
        """Begin a new connection, and let it come so far; the Retry is the first round trip."""
        socket = self._scene.network.bind(*_CLIENT)
        peer = Peer(client_configuration(ALPN), socket, _SERVER, changes=changes)
        self._peer = peer
        peer.connect()
        for _ in range(round_trips):
            await trio.sleep(_ROUND_TRIP_S)
            peer.pump()
        return peer

    def _inject(self, data: bytes, source: Address) -> None:
        if data:
            self._scene.network.inject(data, source, _SERVER)

    def _addressed(self, data: bytes) -> bytes:
        """Return a datagram that names the neighbour's connection."""
        return data[:1] + self._neighbour._core._peer_cid.cid + data[1:]
