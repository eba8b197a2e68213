"""The bytes on the control socket: a length, then a msgpack map. Pure.

A frame is a big-endian u32, the length of what follows, and at most CONTROL_FRAME_BYTES_MAX bytes
of msgpack. A request is ``{"call": name, "args": {...}}``, its answer ``{"ok": value}`` or
``{"error": kind, "message": text}``. One request at a time on a connection. After the answer to one
that asks for a stream come ``{"item": value}``, any number of them, then an error and nothing more.
Text carries what is no UTF-8 in paths as :func:`os.fsdecode` does.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

from aspenfs.errors import AspenError
from aspenfs.limits import CONTROL_FRAME_BYTES_MAX

_LENGTH: Final = struct.Struct(">I")

Message = dict[str, Any]


class ControlProtocolError(AspenError):
    """The bytes that came in are no frame of this protocol; the connection is of no more use."""


def encode(message: Message) -> bytes:
    """Return the frame of a message.

    Raises:
        ControlProtocolError: it would be longer than CONTROL_FRAME_BYTES_MAX.
    """
    body = msgpack.packb(message, unicode_errors="surrogateescape")
    if len(body) > CONTROL_FRAME_BYTES_MAX:
        raise ControlProtocolError(
            f"a message of {len(body)} bytes: at most {CONTROL_FRAME_BYTES_MAX} fit a frame"
        )
    return _LENGTH.pack(len(body)) + bytes(body)


class FrameDecoder:
    """Bytes in, messages out. Holds one unfinished frame at most, and never trusts its length."""

    def __init__(self) -> None:
        """Start with nothing received."""
        self._buffer = bytearray()

    @property
    def is_empty(self) -> bool:
        """Whether no frame has begun, so that the other end may close."""
        return not self._buffer

    def feed(self, data: bytes | bytearray) -> None:
        """Take what was received."""
        self._buffer += data

    def next_message(self) -> Message | None:
        """Return the next whole message; None: more bytes are needed.

        Raises:
            ControlProtocolError: the frame is too long, or no msgpack map with text keys.
        """
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > CONTROL_FRAME_BYTES_MAX:
            raise ControlProtocolError(f"a frame of {length} bytes is longer than allowed")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return _decode(body)


def _decode(body: bytes) -> Message:
    try:
        message = msgpack.unpackb(body, unicode_errors="surrogateescape")
    # msgpack documents these, and ValueError as the base of its own exceptions.
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ControlProtocolError(f"a frame is no msgpack: {error}") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise ControlProtocolError("a message is no map with text keys")
    return message
