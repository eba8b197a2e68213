"""The kinds of call that are measured."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import trio

from bench.net import messages
from bench.net.limits import BULK_BYTES, BULK_IN_FLIGHT, CALLS_IN_FLIGHT, SMALL_BYTES
from bench.net.subject import Call

_MIB: Final = 1024 * 1024


class Row(NamedTuple):
    """A kind of call.

    Attributes:
        name: what the table calls it.
        unit: of the rate.
        send_bytes: of each request.
        reply_bytes: of each reply.
        in_flight: calls at the same time.
        amount: of the unit, that one call is.
    """

    name: str
    unit: str
    send_bytes: int
    reply_bytes: int
    in_flight: int
    amount: float


SEQUENTIAL: Final = Row("small calls, one at a time", "calls/s", SMALL_BYTES, SMALL_BYTES, 1, 1.0)
IN_FLIGHT: Final = Row(
    f"small calls, {CALLS_IN_FLIGHT} in flight",
    "calls/s",
    SMALL_BYTES,
    SMALL_BYTES,
    CALLS_IN_FLIGHT,
    1.0,
)
BULK_PUT: Final = Row(
    "256 KiB to the server", "MiB/s", BULK_BYTES, SMALL_BYTES, BULK_IN_FLIGHT, BULK_BYTES / _MIB
)
BULK_GET: Final = Row(
    "256 KiB from the server", "MiB/s", SMALL_BYTES, BULK_BYTES, BULK_IN_FLIGHT, BULK_BYTES / _MIB
)
ROWS: Final = (SEQUENTIAL, IN_FLIGHT, BULK_PUT, BULK_GET)


async def measure(row: Row, call: Call, duration_s: float) -> float:
    """Make calls for a while, and return the rate in the row's unit."""
    request = messages.request(row.send_bytes, row.reply_bytes)
    await call(request)  # the first call of a kind finds windows that have not grown yet
    done = 0
    began_at = time.perf_counter()
    until = began_at + duration_s

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < until:
            reply = await call(request)
            assert len(reply) == row.reply_bytes, "an echo server answers as asked"
            done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(row.in_flight):
            nursery.start_soon(work)
    return done * row.amount / (time.perf_counter() - began_at)
