"""The ways in which a client reaches a server, each with what the suite must know of it.

Over a network everything is real but the wires: tickets, sessions, pool, QUIC and TLS. Time is
virtual there: a clock that jumps to the next deadline when nothing else can happen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import NamedTuple, Protocol

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs.kv import open_kv
from aspenkv.contract import KeyValue
from aspenkv.dial import dial
from aspenkv.service import Service
from tests.unit.aspenkv.ends import listening
from tests.unit.aspenkv.network import MemoryNetwork

_LOOPBACK_MTU_BYTES = 16_376
_LOSS = 0.05
_SETTLED_S = 5.0
"""Long enough for a lost datagram to be sent again, and for a watch to be told of progress."""


class Carrier(NamedTuple):
    """An engine, and how clients reach it.

    ``grain_s`` is how exactly a client can tell when something happens at the server.
    """

    engine: str
    over_quic: bool = False
    loss: float = 0.0
    grain_s: float = 0.001

    def __str__(self) -> str:
        way = ("-quic" if self.over_quic else "") + ("-lossy" if self.loss else "")
        return self.engine + way


DIRECT = (Carrier("memory"), Carrier("rocksdb"))
CARRIERS = (
    *DIRECT,
    Carrier("memory", over_quic=True, grain_s=1.0),
    Carrier("memory", over_quic=True, loss=_LOSS, grain_s=1.0),
    Carrier("rocksdb", over_quic=True, grain_s=1.0),
)


class Connect(Protocol):
    """Makes a client of its own; it lives as long as the test's server."""

    async def __call__(self, *, process_bound: bool = True) -> KeyValue:
        """``process_bound``: of a direct client; no other dies with the server's process."""


Serve = Callable[[], AbstractAsyncContextManager[Connect]]


@asynccontextmanager
async def carried(carrier: Carrier, service: Service) -> AsyncIterator[Connect]:
    """Let clients reach a service."""
    if not carrier.over_quic:

        async def connect(*, process_bound: bool = True) -> KeyValue:
            await trio.lowlevel.checkpoint()
            return service.connect(process_bound=process_bound)

        yield connect
        return
    network = MemoryNetwork()
    network.delay_s = 0.0
    network.mtu_bytes = _LOOPBACK_MTU_BYTES
    network.loss = carrier.loss
    async with listening(service, network) as host, trio.open_nursery() as clients:
        ticket = host.ticket(await host.make_ticket())
        done = trio.Event()

        async def run(task_status: trio.TaskStatus[KeyValue]) -> None:
            dialing = partial(dial, ticket=ticket, client="test", network=network)
            async with open_kv(ticket.endpoints, dialing) as kv:
                task_status.started(kv)
                await done.wait()

        async def connect_over_quic(*, process_bound: bool = True) -> KeyValue:
            del process_bound
            kv: KeyValue = await clients.start(run)
            return kv

        yield connect_over_quic
        done.set()


async def settle() -> None:
    """Let all that is on its way arrive."""
    if _clock_jumps():
        await trio.sleep(_SETTLED_S)
    await wait_all_tasks_blocked()


async def pass_time(clock: MockClock, seconds: float) -> None:
    """Let time pass, and everybody do what is due."""
    if _clock_jumps():
        await trio.sleep(seconds)
    else:
        clock.jump(seconds)
    await wait_all_tasks_blocked()


def _clock_jumps() -> bool:
    clock = trio.lowlevel.current_clock()
    return isinstance(clock, MockClock) and clock.autojump_threshold < float("inf")
