"""The control socket's server: who may connect, one request at a time, everything bounded.

A request is answered once, or by a stream of items that ends only with the connection.

It runs in the process that serves the mount, so no fault of a client may end more than its own
connection.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

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


class StreamHandler(NamedTuple):
    """Answers a request with any number of items, until it fails or the client hangs up.

    ``open`` takes the request's arguments and yields an iterator over what msgpack can carry.
    """

    open: Callable[[Mapping[str, Any]], AbstractAsyncContextManager[AsyncIterator[Any]]]


Handlers = Mapping[str, Handler | StreamHandler]

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
    slots = _Slots(
        trio.CapacityLimiter(limits.CONTROL_CONNECTIONS_MAX),
        trio.CapacityLimiter(limits.CONTROL_STREAMS_MAX),
    )

    async def serve_one(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await _serve_client(stream, handlers_of_client, slots)
            except (trio.BrokenResourceError, trio.TooSlowError) as error:
                log.debug("a control client went away: %r", error)
            except ControlProtocolError as error:
                log.info("a control client is not ours: %s", error)

    await trio.serve_listeners(serve_one, [listener])


class _Slots(NamedTuple):
    """How many clients are served at once, and how many of them get items without end."""

    connections: trio.CapacityLimiter
    streams: trio.CapacityLimiter


async def _serve_client(
    stream: trio.SocketStream, handlers_of_client: Callable[[], Handlers], slots: _Slots
) -> None:
    peer = peer_of(stream)
    if peer.uid not in {0, os.geteuid()}:
        log.info("refused a control client of user %d (process %d)", peer.uid, peer.pid)
        await _send(stream, _failure("forbidden", "this mount belongs to another user"))
        return
    try:
        slots.connections.acquire_nowait()
    except trio.WouldBlock:
        await _send(stream, _failure("busy", "too many control connections: try again"))
        return
    try:
        await _answer_requests(stream, handlers_of_client(), slots.streams)
    finally:
        slots.connections.release()


async def _answer_requests(
    stream: trio.SocketStream, handlers: Handlers, streams: trio.CapacityLimiter
) -> None:
    decoder = FrameDecoder()
    while True:
        with trio.fail_after(limits.CONTROL_IDLE_S):
            request = await receive(stream, decoder)
        if request is None:
            return
        call, args = request.get("call"), request.get("args", {})
        handler = handlers.get(call) if isinstance(call, str) else None
        if handler is None or not isinstance(args, dict):
            await _send(stream, _failure("unknown", f"this aspenfs has no control call {call!r}"))
        elif isinstance(handler, StreamHandler):
            await _stream(stream, handler, str(call), args, streams)
            return
        else:
            await _send(stream, await _answer(handler, str(call), args))


async def _answer(handler: Handler, call: str, args: Message) -> Message:
    try:
        return {"ok": await handler(args)}
    except Exception as error:  # noqa: BLE001 - no fault of a call may end the mount
        return _failure_of(call, error)


async def _stream(
    stream: trio.SocketStream,
    handler: StreamHandler,
    call: str,
    args: Message,
    streams: trio.CapacityLimiter,
) -> None:
    """Send items until there are no more, or the client has hung up; then the connection ends."""
    try:
        streams.acquire_nowait()
    except trio.WouldBlock:
        await _send(stream, _failure("busy", f"too many use {call!r} of this mount: end one"))
        return
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_hang_up, stream, nursery.cancel_scope)
            failure = await _send_items(stream, handler, call, args)
            if failure is not None:
                with suppress(trio.BrokenResourceError, trio.TooSlowError):
                    await _send(stream, failure)
            nursery.cancel_scope.cancel()
    finally:
        streams.release()


async def _send_items(
    stream: trio.SocketStream, handler: StreamHandler, call: str, args: Message
) -> Message | None:
    """Return why no more items come; None: the client is gone, or too slow."""
    try:
        async with handler.open(args) as items:
            await _send(stream, {"ok": None})
            async for item in items:
                await _send(stream, {"item": item})
    except (trio.BrokenResourceError, trio.TooSlowError) as error:
        log.debug("a control client was cut off: %r", error)
        return None
    except Exception as error:  # noqa: BLE001 - as above
        return _failure_of(call, error)
    return _failure("ended", f"{call!r} has no more to send")


async def _cancel_at_hang_up(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Wait for the client to hang up: it has nothing more to say."""
    with suppress(trio.BrokenResourceError):
        await stream.receive_some(1)
    scope.cancel()


async def _send(stream: trio.SocketStream, message: Message) -> None:
    try:
        frame = encode(message)
    except ControlProtocolError as error:
        frame = encode(_failure("too large", str(error)))
    with trio.fail_after(limits.CONTROL_SEND_S):
        await stream.send_all(frame)


def _failure_of(call: str, error: Exception) -> Message:
    """Return what a client is told of an exception; one of no known kind is a bug and logged."""
    if isinstance(error, (AspenError, AspenKvError)):
        return _failure(type(error).__name__, str(error))
    if isinstance(error, (KeyError, TypeError, ValueError)):
        return _failure("arguments", f"the arguments of {call!r} do not fit: {error!r}")
    log.error("control call %r failed", call, exc_info=error)
    return _failure("internal", f"{type(error).__name__}; the log of the mount says more")


def _failure(kind: str, message: str) -> Message:
    return {"error": kind, "message": message}
