"""What a server's listener sees of a client, without QUIC: a connection, and streams of it."""

from __future__ import annotations

from typing import Any, cast

import trio

from aspenkv.listen import Listener
from aspenkv.quic import QuicConnection, QuicStream, StreamResetError


class Stream:
    """Takes what is sent on it.

    Attributes:
        sent: the bytes of the reply.
        is_ended: whether it is complete.
        reset_code: with which the server gave it up, if it did.
        scope: of the task that answers.
    """

    def __init__(self) -> None:
        """Begin with nothing sent."""
        self.sent = b""
        self.is_ended = False
        self.reset_code: int | None = None
        self.scope = trio.CancelScope()

    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Take bytes of the reply."""
        await trio.lowlevel.checkpoint_if_cancelled()
        assert not self.is_ended, "nothing follows the end"
        if self.reset_code is not None:
            raise StreamResetError(self.reset_code)
        self.sent += data
        self.is_ended = end

    def reset(self, code: int) -> None:
        """Take note that there will be no more."""
        if not self.is_ended and self.reset_code is None:
            self.reset_code = code


class Connection:
    """One connection of a client that sends whole frames, and is reported to a listener."""

    def __init__(self, listener: Listener, nursery: trio.Nursery) -> None:
        """Connect."""
        self.closed = trio.Event()
        self.state: Any = None
        self.peer_address = ("192.0.2.66", 6666)
        self.is_admitted = False
        self._listener = listener
        self._nursery = nursery
        self._streams: list[Stream] = []
        listener.connected(cast(QuicConnection, self))

    def admit(self) -> None:
        """Take note that the server knows who it is."""
        self.is_admitted = True

    def close(self, _code: int = 0, _reason: str = "") -> None:
        """Hang up, from either end."""
        if not self.closed.is_set():
            self.closed.set()
            for stream in self._streams:
                stream.scope.cancel()
            self._listener.disconnected(cast(QuicConnection, self))

    def ask(self, frame: bytes) -> Stream:
        """Send a frame on a stream of its own."""
        stream = Stream()
        self._streams.append(stream)
        self._nursery.start_soon(self._handle, stream, frame)
        return stream

    async def _handle(self, stream: Stream, frame: bytes) -> None:
        """As the driver does, which would log any other error."""
        try:
            with stream.scope:
                await self._listener.handle(
                    cast(QuicConnection, self), cast(QuicStream, stream), frame
                )
        except StreamResetError:
            pass
        finally:
            stream.reset(0)
