"""The streams of a connection: one exchange, one read piece by piece, one that brings a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from aspenkv.errors import AspenKvError, RemoteProtocolError
from aspenkv.limits import (
    REPLY_WINDOW_BYTES,
    REQUEST_BYTES_MAX,
    SEND_CHUNK_BYTES,
    STREAM_WINDOW_BYTES,
)
from aspenkv.quic.errors import MESSAGE_TOO_LARGE, NO_ERROR, StreamResetError

if TYPE_CHECKING:
    from aspenkv.quic.connection import QuicConnection

_WINDOW_STEP_BYTES = REPLY_WINDOW_BYTES // 2
_REQUEST_STEP_BYTES = STREAM_WINDOW_BYTES // 8  # early, so that the client need not pause


class StreamEnd(Protocol):
    """What a connection tells of the peer's half of a stream."""

    def data_received(self, data: bytes, *, is_end: bool) -> None:
        """Take the next bytes, in order."""

    def failed(self, error: AspenKvError) -> None:
        """Nothing more will come: the peer reset a half, or the connection is gone."""


class Exchange:
    """A request whose reply is awaited by one task."""

    __slots__ = (
        "_bytes_max",
        "_connection",
        "_error",
        "_id",
        "_pieces",
        "_reply",
        "_size",
        "_task",
        "_window",
    )

    def __init__(self, connection: QuicConnection, stream_id: int, bytes_max: int) -> None:
        """Await up to ``bytes_max`` bytes on a stream."""
        self._connection = connection
        self._id = stream_id
        self._bytes_max = bytes_max
        self._reply: bytes | None = None
        self._error: AspenKvError | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._window = REPLY_WINDOW_BYTES
        self._task: trio.lowlevel.Task | None = None

    async def wait(self) -> bytes:
        """Return the reply; a cancelled wait resets the stream.

        Raises:
            StreamResetError, ConnectionLostError, RemoteProtocolError: there will be none.
        """
        if self._reply is None and self._error is None:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        if self._error is not None:
            raise self._error
        assert self._reply is not None, "woken by the one or the other"
        return self._reply

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        self._connection.abandon(self._id, NO_ERROR)
        return trio.lowlevel.Abort.SUCCEEDED

    def data_received(self, data: bytes, *, is_end: bool) -> None:
        """Collect the reply, and wake who waits when it is complete."""
        self._size += len(data)
        if self._size > self._bytes_max:
            self._connection.abandon(self._id, MESSAGE_TOO_LARGE)
            self.failed(RemoteProtocolError(f"a reply of more than {self._bytes_max} bytes"))
            return
        self._pieces.append(data)
        if is_end:
            self._reply = data if len(self._pieces) == 1 else b"".join(self._pieces)
            self._connection.finish(self._id)
            self._wake()
        elif self._window - self._size < _WINDOW_STEP_BYTES:
            self._window = min(self._size + REPLY_WINDOW_BYTES, self._bytes_max + 1)
            self._connection.allow_data(self._id, self._window)

    def failed(self, error: AspenKvError) -> None:
        """Wake who waits."""
        self._error = error
        self._pieces.clear()
        self._wake()

    def _wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


class QuicStream:
    """A bidirectional stream, read and written piece by piece.

    Attributes:
        id: the stream's number within its connection.
        scope: cancelled when the peer gives up the stream, or the connection is gone.
    """

    __slots__ = (
        "_can_send",
        "_connection",
        "_error",
        "_is_end_received",
        "_pieces",
        "_read",
        "_readable",
        "_window",
        "id",
        "scope",
    )

    def __init__(self, connection: QuicConnection, stream_id: int) -> None:
        """Take a stream that the connection has opened."""
        self.id = stream_id
        self.scope = trio.CancelScope()
        self._connection = connection
        self._pieces: list[bytes] = []
        self._read = 0
        self._window = REPLY_WINDOW_BYTES
        self._is_end_received = False
        self._can_send = True
        self._error: AspenKvError | None = None
        self._readable = trio.lowlevel.ParkingLot()

    @property
    def is_send_ended(self) -> bool:
        """Whether this end's half is complete or given up."""
        return not self._can_send

    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Send bytes, waiting while much is unsent on the connection.

        If cancelled, a part may be on its way: the stream is good for nothing but a reset.

        Args:
            data: the next bytes.
            end: whether they are the last.

        Raises:
            ConnectionLostError: the connection is gone.
            StreamResetError: the peer does not want the rest, or :meth:`reset` was called.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        for start in range(0, max(len(data), 1), SEND_CHUNK_BYTES):
            await self._connection.wait_for_room()
            if self._error is not None:
                raise self._error
            is_last = start + SEND_CHUNK_BYTES >= len(data)
            piece = data if is_last and not start else data[start : start + SEND_CHUNK_BYTES]
            if is_last and end:
                self._can_send = False
            self._connection.write(self.id, piece, is_end=is_last and end)
        if end and self._is_end_received:
            self._connection.finish(self.id)

    async def receive_some(self) -> bytes:
        """Return the next bytes that arrived, or b"" after the last.

        Raises:
            ConnectionLostError: the connection is gone.
            StreamResetError: the peer gave up its half, or :meth:`reset` was called.
        """
        while not self._pieces:
            if self._is_end_received:
                await trio.lowlevel.checkpoint()
                return b""
            if self._error is not None:
                raise self._error
            await self._readable.park()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._read += len(data)
        if not self._is_end_received and self._window - self._read < _WINDOW_STEP_BYTES:
            self._window = self._read + REPLY_WINDOW_BYTES
            self._connection.allow_data(self.id, self._window)
        return data

    async def receive_all(self, bytes_max: int) -> bytes:
        """Return all that the peer sends.

        Raises:
            RemoteProtocolError: it is more than ``bytes_max``; the stream is reset.
            ConnectionLostError: the connection is gone.
            StreamResetError: the peer gave up its half, or :meth:`reset` was called.
        """
        pieces: list[bytes] = []
        size = 0
        while data := await self.receive_some():
            pieces.append(data)
            size += len(data)
            if size > bytes_max:
                self.reset(MESSAGE_TOO_LARGE)
                raise RemoteProtocolError(f"a message of more than {bytes_max} bytes")
        return b"".join(pieces)

    def reset(self, code: int) -> None:
        """Give up both halves; nothing happens to a half that is complete."""
        if self._error is None and (self._can_send or not self._is_end_received):
            self._connection.abandon(self.id, code)
            self._fail(StreamResetError(code))

    def data_received(self, data: bytes, *, is_end: bool) -> None:
        """Keep what arrived until it is read; the stream's window bounds it."""
        if data:
            self._pieces.append(data)
        if is_end:
            self._is_end_received = True
            if not self._can_send:
                self._connection.finish(self.id)
        self._readable.unpark_all()

    def failed(self, error: AspenKvError) -> None:
        """Let who reads or writes fail, and who answers it end."""
        self._fail(error)
        self.scope.cancel()

    def _fail(self, error: AspenKvError) -> None:
        self._can_send = False
        self._error = error
        self._pieces.clear()
        self._readable.unpark_all()


class Request:
    """The half of a peer's stream that brings a request, while it arrives."""

    __slots__ = ("_connection", "_pieces", "_size", "_stream")

    def __init__(self, connection: QuicConnection, stream_id: int) -> None:
        """Collect up to ``REQUEST_BYTES_MAX`` bytes."""
        self._connection = connection
        self._stream = QuicStream(connection, stream_id)
        self._pieces: list[bytes] = []
        self._size = 0

    def data_received(self, data: bytes, *, is_end: bool) -> None:
        """Collect the request, and hand it over when it is complete."""
        self._size += len(data)
        if self._size > REQUEST_BYTES_MAX:
            self._pieces.clear()
            self._connection.abandon(self._stream.id, MESSAGE_TOO_LARGE)
            return
        self._pieces.append(data)
        if is_end:
            request = data if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self._stream.data_received(b"", is_end=True)
            self._connection.request_received(self._stream, request)
        elif self._size >= _REQUEST_STEP_BYTES:
            self._connection.request_grows(self._stream.id)

    def failed(self, _error: AspenKvError) -> None:
        """Forget what has arrived of it."""
        self._pieces.clear()


class Abandoned:
    """A peer's stream that was given up, until the peer agrees."""

    __slots__ = ("_connection", "_id")

    def __init__(self, connection: QuicConnection, stream_id: int) -> None:
        """Ignore what still comes by a stream."""
        self._connection = connection
        self._id = stream_id

    def data_received(self, data: bytes, *, is_end: bool) -> None:  # noqa: ARG002 - an interface
        """Ignore it."""
        if is_end:
            self._connection.finish(self._id)

    def failed(self, _error: AspenKvError) -> None:
        """Nothing is lost."""
