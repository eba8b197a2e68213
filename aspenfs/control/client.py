"""The control socket's client: what the command line asks of a running mount."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from aspenfs import limits
from aspenfs.control.address import Peer, peer_of, socket_address
from aspenfs.control.frames import ControlProtocolError, FrameDecoder, encode
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
        frame = encode({"call": name, "args": args})
        async with self._lock:
            try:
                with trio.fail_after(limits.CONTROL_ANSWER_S):
                    await self._stream.send_all(frame)
                    answer = await receive(self._stream, self._decoder)
            except (trio.BrokenResourceError, trio.TooSlowError) as error:
                raise ControlProtocolError(f"the mount gave no answer to {name!r}") from error
        if answer is None:
            raise ControlProtocolError(f"the mount ended before it answered {name!r}")
        if "error" in answer:
            raise ControlCallError(str(answer["error"]), str(answer.get("message", "")))
        return answer.get("ok")


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
