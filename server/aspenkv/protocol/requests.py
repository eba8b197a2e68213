"""The frame of a request: ``[version, request id, kind, ms left, fields ...]``. Pure.

Nothing in it is trusted. The contract's own limits are not checked here: the service does that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from aspenkv.errors import InvalidRequestError, RemoteProtocolError
from aspenkv.limits import FRAME_FIELDS_MAX, REQUEST_BYTES_MAX
from aspenkv.protocol import commit_parts
from aspenkv.protocol.fields import U64, Row
from aspenkv.protocol.layouts import COMMIT, GET, KINDS, REQUEST_ROWS
from aspenkv.protocol.messages import Commit, Get, Request
from aspenkv.protocol.packing import pack, unpack

NO_REQUEST: Final = 0
"""The request id of the answer to a frame whose own could not be read."""


class _Head(NamedTuple):
    request_id: int
    kind: int
    deadline_ms: int


_HEAD: Final = Row(_Head, request_id=U64, kind=U64, deadline_ms=U64)


class RequestFrame(NamedTuple):
    """A decoded request. ``deadline_ms`` is how long its client waits for the answer."""

    request_id: int
    deadline_ms: int
    request: Request


class BadRequestError(RemoteProtocolError):
    """A frame is no request. It is answered under ``request_id``."""

    def __init__(self, message: str, request_id: int) -> None:
        """Say what is wrong with the request of this number, or of NO_REQUEST."""
        super().__init__(message)
        self.request_id = request_id


def encode_request(request_id: int, deadline_ms: int, request: Request) -> bytes:
    """Return the frame of a request.

    Args:
        request_id: its number, from 1, unique on its connection.
        deadline_ms: how long the client waits for the answer, in milliseconds.
        request: what is asked for.

    Raises:
        InvalidRequestError: no frame can hold it, or it holds what no server takes.
    """
    kind = KINDS[type(request)]
    fields: Iterable[object]
    try:
        if isinstance(request, Commit):
            fields = commit_parts.to_fields(request)
        elif isinstance(request, Get):
            fields = (request.bulk, *request.keys)
            _get(fields)
        else:
            REQUEST_ROWS[kind].check(request)
            fields = request
        row = (request_id, kind, deadline_ms, *fields)
        frame = pack(row)
    except (OverflowError, RemoteProtocolError, TypeError, ValueError) as error:
        raise InvalidRequestError(f"no frame can hold this request: {error}") from error
    if len(frame) > REQUEST_BYTES_MAX or len(row) >= FRAME_FIELDS_MAX:
        raise InvalidRequestError(
            f"a request of {len(frame)} bytes and {len(row)} fields: use at most "
            f"{REQUEST_BYTES_MAX} and {FRAME_FIELDS_MAX}"
        )
    return frame


def decode_request(frame: bytes | bytearray | memoryview) -> RequestFrame:
    """Return what a client's half of a stream asks for.

    The keys of a get are a tuple, the parts of a commit lists.

    Raises:
        BadRequestError: it is no request.
        ProtocolVersionError: it is of another version; answered under NO_REQUEST.
    """
    request_id = NO_REQUEST
    try:
        fields = unpack(frame, REQUEST_BYTES_MAX)
        request_id = _request_id(fields)
        _, kind, deadline_ms = _HEAD.read(fields[: _HEAD.width])
        return RequestFrame(request_id, deadline_ms, _request(kind, fields[_HEAD.width :]))
    except RemoteProtocolError as error:
        raise BadRequestError(str(error), request_id) from error


def _request_id(fields: tuple[Any, ...]) -> int:
    """Return the number of a request whose other fields may be wrong, NO_REQUEST if it has none."""
    return fields[0] if fields and U64.allows(fields[0]) else NO_REQUEST


def _request(kind: int, fields: tuple[Any, ...]) -> Request:
    if kind == COMMIT:
        return commit_parts.from_fields(fields)
    if kind == GET:
        return _get(fields)
    row = REQUEST_ROWS.get(kind)
    if row is None:
        raise RemoteProtocolError(f"kind {kind} of request is unknown")
    request: Request = row.read(fields)
    return request


def _get(fields: tuple[Any, ...]) -> Get:
    if not fields or type(fields[0]) is not bool:
        raise RemoteProtocolError("Get.bulk is not a boolean")
    keys = fields[1:]
    if not {bytes}.issuperset(map(type, keys)):
        raise RemoteProtocolError("a key of a get is not a byte string")
    return Get(keys, fields[0])
