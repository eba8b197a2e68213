"""The server as a process of its own: from its first look at the data to its last request."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from aspenkv.embedded import open_embedded
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.hosting import Hosted, open_listener
from aspenkv.tickets import Endpoint

log = logging.getLogger(__name__)

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_DATA_MODE: Final = 0o700


async def run_server(
    data_dir: Path,
    listen: Endpoint,
    advertise: Sequence[Endpoint],
    *,
    on_ready: Callable[[Hosted], None],
) -> None:
    """Serve a data directory until a signal says to stop; then let requests under way end.

    Args:
        data_dir: made if it is absent.
        listen: the address to listen on.
        advertise: how clients reach it, if not by that.
        on_ready: called once clients can connect.

    Raises:
        EngineError: the data directory is locked, damaged or cannot be written.
        OSError: the address, or the directory, cannot be used.
    """
    _make_directory(data_dir)
    async with AsyncExitStack() as stack:
        stop_asked = await stack.enter_async_context(_stop_signals())
        engine = await stack.enter_async_context(RocksdbEngine.open(data_dir))
        service = await stack.enter_async_context(open_embedded(engine))
        hosted = await stack.enter_async_context(
            open_listener(service, data_dir, listen, advertise)
        )
        log.info("serving %s on %s", data_dir, ", ".join(map(str, hosted.endpoints)))
        on_ready(hosted)
        notify_service_manager("READY=1")
        await stop_asked.wait()
        notify_service_manager("STOPPING=1")
        log.info("stopping: requests under way end first")
    log.info("stopped")


def _make_directory(data_dir: Path) -> None:
    data_dir.mkdir(mode=_DATA_MODE, parents=True, exist_ok=True)


def notify_service_manager(state: str) -> None:
    """Tell systemd, if it started this process and wants to know; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # of the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), address)
    except OSError as error:
        log.warning("the service manager cannot be told %r: %s", state, error)


@asynccontextmanager
async def _stop_signals() -> AsyncIterator[trio.Event]:
    """Yield an event that the first signal to stop sets; all further ones change nothing."""
    asked = trio.Event()
    failure: Exception | None = None

    async def receive(signals: AsyncIterator[int]) -> None:
        async for number in signals:
            log.info("%s", signal.Signals(number).name)
            asked.set()

    with trio.open_signal_receiver(*_STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, signals)
            try:
                yield asked
            except Exception as error:  # noqa: BLE001 - the nursery would make a group of it
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
