"""The datagrams of a real handshake, and of one exchange after it."""

from __future__ import annotations

import functools
from typing import NamedTuple

import trio
from trio.testing import MockClock

from aspenkv.quic.datagrams import Address
from tests.unit.aspenkv.endpoints import HOST, PORT, open_scene


class Recording(NamedTuple):
    """What each end has sent, in order."""

    by_client: list[bytes]
    by_server: list[bytes]


@functools.cache
def recorded() -> Recording:
    """Record them on a network in memory."""
    recording = Recording([], [])

    def spy(data: bytes, to: Address) -> bool:
        (recording.by_client if to == (HOST, PORT) else recording.by_server).append(data)
        return True

    async def exchange() -> None:
        async with open_scene() as scene:
            scene.network.spy = spy
            async with scene.connect() as connection:
                await connection.exchange(b"request", reply_bytes_max=100)

    trio.run(exchange, clock=MockClock(autojump_threshold=0))
    return recording
