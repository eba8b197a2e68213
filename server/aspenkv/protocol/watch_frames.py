"""The messages of an open watch: each a length (u32, big-endian) and that many bytes. Pure.

    opened      [version, 1, revision]
    event       [version, 2, revision, key, end, value, ...]    one triple per change
    progress    [version, 3, revision]
    error       [version, 4, code, message]                     the last one

The server's half of the stream begins with ``opened``, or is one ``error``. Every watch ends with
an error, if only the one that the server was closed.
"""

from __future__ import annotations

import struct
from itertools import chain
from typing import Any, Final, NamedTuple

from aspenkv.contract import Change, WatchEvent
from aspenkv.errors import (
    AspenKvError,
    RemoteProtocolError,
    WatchGapError,
)
from aspenkv.limits import FRAME_FIELDS_MAX, WATCH_FRAME_BYTES_MAX
from aspenkv.protocol.error_codes import code_of, error_of, message_of
from aspenkv.protocol.fields import BYTES, ERROR_TEXT, OPTIONAL_BYTES, U64, Row
from aspenkv.protocol.messages import WatchMessage, WatchOpened, WatchProgress
from aspenkv.protocol.packing import pack, unpack

_OPENED: Final = 1
_EVENT: Final = 2
_PROGRESS: Final = 3
_ERROR: Final = 4

_LENGTH: Final = struct.Struct(">I")


class _Kind(NamedTuple):
    kind: int


class _Carried(NamedTuple):
    code: int
    message: str


class _Numbered(NamedTuple):
    revision: int


_CHANGE: Final = Row(Change, key=BYTES, end=OPTIONAL_BYTES, value=OPTIONAL_BYTES)
_CARRIED: Final = Row(_Carried, code=U64, message=ERROR_TEXT)
_KIND: Final = Row(_Kind, kind=U64)
_REVISION: Final = Row(_Numbered, revision=U64)


def encode_watch_message(message: WatchMessage | AspenKvError) -> bytes:
    """Return a message with its length before it; an error ends the watch.

    Raises:
        WatchGapError: an event has more changes or bytes than a message may: end the watch with
            this error. No commit of a client has as many, but the end of leases may.
    """
    row: tuple[object, ...]
    if isinstance(message, AspenKvError):
        row = (_ERROR, code_of(message), message_of(message))
    elif isinstance(message, WatchEvent):
        changes = chain.from_iterable(message.changes)
        row = (_EVENT, message.revision, *changes)
    else:
        kind = _OPENED if isinstance(message, WatchOpened) else _PROGRESS
        row = (kind, message.revision)
    frame = pack(row)
    if len(row) >= FRAME_FIELDS_MAX or len(frame) > WATCH_FRAME_BYTES_MAX:
        raise WatchGapError("one commit changed more than a watch can tell: read anew")
    return _LENGTH.pack(len(frame)) + frame


class WatchDecoder:
    """The server's half of a watch: bytes in, messages out.

    Holds one unfinished message at most. After the first failure it takes nothing more.
    """

    def __init__(self) -> None:
        """Start with nothing received."""
        self._buffer = bytearray()
        self._revision: int | None = None
        self._failure: AspenKvError | None = None

    def receive_data(self, data: bytes) -> list[WatchMessage]:
        """Return the messages that ``data`` completes; ``b""`` says that the stream has ended.

        An error that follows messages in the same data is raised by the next call, and by all
        after it.

        Raises:
            AspenKvError: the watch ended, with this error.
            RemoteProtocolError: the bytes are no watch, or end without an error.
            ProtocolVersionError: they are of another version.
        """
        messages: list[WatchMessage] = []
        if self._failure is None:
            try:
                self._receive(data, messages)
            except AspenKvError as error:
                self._failure = error
                self._buffer.clear()
        if self._failure is not None and not messages:
            raise self._failure
        return messages

    def _receive(self, data: bytes, messages: list[WatchMessage]) -> None:
        if not data:
            raise RemoteProtocolError("a watch ended without saying why")
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if length > WATCH_FRAME_BYTES_MAX:
                    raise RemoteProtocolError(f"a watch message of {length} bytes")
                end = start + _LENGTH.size + length
                if end > len(buffer):
                    break
                messages.append(self._message(bytes(buffer[start + _LENGTH.size : end])))
                start = end
        finally:
            del buffer[:start]

    def _message(self, frame: bytes) -> WatchMessage:
        fields = unpack(frame, WATCH_FRAME_BYTES_MAX)
        kind = _KIND.read(fields[:1]).kind
        if kind == _ERROR:
            raise error_of(*_CARRIED.read(fields[1:]))
        revision = _REVISION.read(fields[1:2]).revision
        message = _of_kind(kind, revision, fields[2:])
        self._follow(message)
        return message

    def _follow(self, message: WatchMessage) -> None:
        """Check that a message may come now: first the opening, then ever higher revisions."""
        if isinstance(message, WatchOpened):
            is_in_order = self._revision is None
        elif self._revision is None:
            is_in_order = False
        elif isinstance(message, WatchEvent):
            is_in_order = message.revision > self._revision
        else:
            is_in_order = message.revision >= self._revision
        if not is_in_order:
            raise RemoteProtocolError("a watch message out of order")
        self._revision = message.revision


def _of_kind(kind: int, revision: int, rest: tuple[Any, ...]) -> WatchMessage:
    if kind == _EVENT:
        return WatchEvent(revision, tuple(_CHANGE.read_many(rest)))
    if rest or kind not in {_OPENED, _PROGRESS}:
        raise RemoteProtocolError("a watch message of no known kind")
    return WatchOpened(revision) if kind == _OPENED else WatchProgress(revision)
