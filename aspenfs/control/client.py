"""The control socket's client: what the command line asks of a running mount."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from aspenfs import limits
from aspenfs.control.address import Peer, peer_of, socket_address
from aspenfs.control.frames import ControlProtocolError, FrameDecoder, Message, encode
from aspenfs.control.receiving import receive
from aspenfs.errors import AspenError


class NotServedError(AspenError):
    """No process serves the data directory."""


class ControlCallError(AspenError):
    """The mount answered with an error. ``kind`` is the name of its type over there."""

    def __init__(self, kind: str, message: str) -> None:
        """Take both parts of the answer."""
        super().__init__(message)
        self.kind = kind


class ControlClient:
    """One connection to a mount. Calls go one after the other. Made by :func:`connect`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        """Take a connected stream."""
        self._stream = stream
        self._decoder = FrameDecoder()
        self._lock = trio.Lock()

    @property
    def peer(self) -> Peer:
        """Who serves the mount."""
        return peer_of(self._stream)

    async def call(self, name: str, **args: object) -> Any:  # noqa: ANN401 - each call has its own
        """Make one call and return its answer.

        Raises:
            ControlCallError: the mount refused or failed.
            ControlProtocolError: the connection broke, or no answer came in CONTROL_ANSWER_S.
        """
        async with self._lock:
            return await self._ask(name, args)

    @asynccontextmanager
    async def stream(self, name: str, **args: object) -> AsyncIterator[AsyncIterator[Any]]:
        """Make a call that is answered by items; the connection is of no use afterwards.

        Raises:
            ControlCallError: the mount refused; from the iterator: it failed, or has no more.
            ControlProtocolError: as :meth:`call`; from the iterator: the mount has ended, or has
                cut off a client that took nothing for CONTROL_SEND_S.
        """
        async with self._lock:
            await self._ask(name, args)
            yield _Items(self._stream, self._decoder)

    async def _ask(self, name: str, args: Mapping[str, object]) -> Any:  # noqa: ANN401 - as above
        frame = encode({"call": name, "args": args})
        try:
            with trio.fail_after(limits.CONTROL_ANSWER_S):
                await self._stream.send_all(frame)
                answer = await receive(self._stream, self._decoder)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            raise ControlProtocolError(f"the mount gave no answer to {name!r}") from error
        if answer is None:
            raise ControlProtocolError(f"the mount ended before it answered {name!r}")
        _raise_failure(answer)
        return answer.get("ok")


class _Items:
    """Iterates over the items of a stream."""

    def __init__(self, stream: trio.SocketStream, decoder: FrameDecoder) -> None:
        self._stream = stream
        self._decoder = decoder

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401 - each call has its own
        try:
            message = await receive(self._stream, self._decoder)
        except trio.BrokenResourceError as error:
            raise ControlProtocolError("the connection to the mount is broken") from error
        if message is None:
            raise ControlProtocolError("the mount has ended, or gave up waiting for this process")
        _raise_failure(message)
        return message.get("item")


def _raise_failure(message: Message) -> None:
    if "error" in message:
        raise ControlCallError(str(message["error"]), str(message.get("message", "")))


@asynccontextmanager
async def connect(data_dir: Path) -> AsyncIterator[ControlClient]:
    """Connect to whoever serves a data directory.

    Raises:
        NotServedError: nobody does.
        PermissionError: the directory or its socket belongs to someone else.
    """
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with plain:
        plain.setblocking(False)
        asynchronous = trio.socket.from_stdlib_socket(plain)
        try:
            with socket_address(data_dir) as address:
                await asynchronous.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise NotServedError(f"no mount serves {data_dir}") from None
        async with trio.SocketStream(asynchronous) as stream:
            yield ControlClient(stream)
