"""The server inside its only local user: a service with its background task, called directly."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from aspenkv.contract import Status
from aspenkv.engine import Engine
from aspenkv.service import Service

EMBEDDED_MEMBERS: Final = ("embedded",)


@asynccontextmanager
async def open_embedded(
    engine: Engine,
    *,
    members: Sequence[str] = EMBEDDED_MEMBERS,
    now_ns: Callable[[], int] = time.time_ns,
) -> AsyncIterator[Service]:
    """Serve an open engine within this process until the block ends; the engine stays open.

    Args:
        engine: where everything is stored.
        members: what ``status`` calls the processes of the server.
        now_ns: the wall clock, in nanoseconds since 1970; tickets expire by it.

    Raises:
        EngineError: the engine cannot be read or written.
    """
    service = Service(engine, members, now_ns=now_ns)
    await service.load()
    await service.start()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        try:
            yield service
        except Exception as error:  # noqa: BLE001 - the nursery would make a group of it
            failure = error
        finally:
            service.close()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def read_status(engine: Engine) -> Status:
    """Return what a server on this engine would say of itself; the engine may be read-only.

    Raises:
        EngineError: the engine cannot be read.
    """
    service = Service(engine, EMBEDDED_MEMBERS)
    await service.load()
    return service.status()
