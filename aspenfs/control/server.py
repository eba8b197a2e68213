"""The control socket's server: who may connect, one request at a time, everything bounded.

It runs in the process that serves the mount, so no fault of a client may end more than its own
connection.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from aspenfs import limits
from aspenfs.control.address import SOCKET_NAME, peer_of, socket_address
from aspenfs.control.frames import ControlProtocolError, FrameDecoder, Message, encode
from aspenfs.control.receiving import receive
from aspenfs.errors import AspenError
from aspenkv.errors import AspenKvError

log = logging.getLogger(__name__)

Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Takes a request's arguments, returns what msgpack can carry."""

Handlers = Mapping[str, Handler]

_SOCKET_MODE: Final = 0o600


@asynccontextmanager
async def open_control(data_dir: Path) -> AsyncIterator[trio.SocketListener]:
    """Listen on the control socket of a data directory; remove it on exit.

    The caller holds the directory's lock: a socket that is there is a dead one.

    Raises:
        OSError: the directory cannot be written.
    """
    path = data_dir / SOCKET_NAME
    path.unlink(missing_ok=True)
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(plain.fileno(), _SOCKET_MODE)  # before bind, so that it never was wider
        with socket_address(data_dir) as address:
            plain.bind(address)
        plain.listen(limits.CONTROL_BACKLOG)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(plain))
    except BaseException:
        plain.close()
        raise
    try:
        yield listener
    finally:
        listener.socket.close()
        path.unlink(missing_ok=True)


async def serve_control(
    listener: trio.SocketListener, handlers_of_client: Callable[[], Handlers]
) -> None:
    """Serve until cancelled.

    Args:
        listener: from :func:`open_control`.
        handlers_of_client: called for each connection, for whatever a client has of its own.
    """
    slots = trio.CapacityLimiter(limits.CONTROL_CONNECTIONS_MAX)

    async def serve_one(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await _serve_client(stream, handlers_of_client, slots)
            except (trio.BrokenResourceError, trio.TooSlowError) as error:
                log.debug("a control client went away: %r", error)
            except ControlProtocolError as error:
                log.info("a control client is not ours: %s", error)

    await trio.serve_listeners(serve_one, [listener])


async def _serve_client(
    stream: trio.SocketStream,
    handlers_of_client: Callable[[], Handlers],
    slots: trio.CapacityLimiter,
) -> None:
    peer = peer_of(stream)
    if peer.uid not in {0, os.geteuid()}:
        log.info("refused a control client of user %d (process %d)", peer.uid, peer.pid)
        await _send(stream, _failure("forbidden", "this mount belongs to another user"))
        return
    try:
        slots.acquire_nowait()
    except trio.WouldBlock:
        await _send(stream, _failure("busy", "too many control connections: try again"))
        return
    try:
        await _answer_requests(stream, handlers_of_client())
    finally:
        slots.release()


async def _answer_requests(stream: trio.SocketStream, handlers: Handlers) -> None:
    decoder = FrameDecoder()
    while True:
        with trio.fail_after(limits.CONTROL_IDLE_S):
            request = await receive(stream, decoder)
        if request is None:
            return
        await _send(stream, await _answer(request, handlers))


async def _answer(request: Message, handlers: Handlers) -> Message:
    call, args = request.get("call"), request.get("args", {})
    handler = handlers.get(call) if isinstance(call, str) else None
    if handler is None or not isinstance(args, dict):
        return _failure("unknown", f"this aspenfs has no control call {call!r}")
    try:
        return {"ok": await handler(args)}
    except (AspenError, AspenKvError) as error:
        return _failure(type(error).__name__, str(error))
    except (KeyError, TypeError, ValueError) as error:
        return _failure("arguments", f"the arguments of {call!r} do not fit: {error!r}")
    except Exception as error:
        log.exception("control call %r failed", call)
        return _failure("internal", f"{type(error).__name__}; the log of the mount says more")


async def _send(stream: trio.SocketStream, message: Message) -> None:
    try:
        frame = encode(message)
    except ControlProtocolError as error:
        frame = encode(_failure("too large", str(error)))
    with trio.fail_after(limits.CONTROL_SEND_S):
        await stream.send_all(frame)


def _failure(kind: str, message: str) -> Message:
    return {"error": kind, "message": message}
