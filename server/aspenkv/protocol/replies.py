"""The frame of a reply: ``[version, request id, 0, fields ...]``, or a code and a message. Pure.

A client trusts nothing in it either: a server may be broken, or another than it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from aspenkv.contract import (
    ABSENT,
    CommitResult,
    Newest,
    Record,
    ScanPage,
    Status,
    TicketInfo,
    Versioned,
)
from aspenkv.errors import (
    AspenKvError,
    InvalidRequestError,
    LocalProtocolError,
    ProtocolVersionError,
    RemoteProtocolError,
)
from aspenkv.limits import FRAME_FIELDS_MAX, REPLY_BYTES_MAX
from aspenkv.protocol.error_codes import code_of, error_of, message_of
from aspenkv.protocol.fields import ERROR_TEXT, OPTIONAL_BYTES, TEXT, U64, Row
from aspenkv.protocol.layouts import (
    COMMIT_RESULT,
    CREATED_TICKET,
    FOUND,
    HELLO_REPLY,
    NEWEST,
    RECORD,
    SESSION_STATUS,
    TICKET_INFO,
)
from aspenkv.protocol.messages import (
    Bye,
    Commit,
    CreateTicket,
    Get,
    GrantLease,
    Hello,
    HelloReply,
    Keepalive,
    ListTickets,
    ReadNewest,
    ReadRevision,
    ReadStatus,
    Reply,
    Request,
    Revoke,
    RevokeTicket,
    Scan,
    Sync,
)
from aspenkv.protocol.packing import pack, unpack
from aspenkv.protocol.requests import NO_REQUEST

_GOOD: Final = 0
_ABSENT: Final = (None, ABSENT)

_Fields = Sequence[Any]


class _Head(NamedTuple):
    request_id: int
    code: int


class _Number(NamedTuple):
    number: int


class _Continuation(NamedTuple):
    key: bytes | None


class _StatusHead(NamedTuple):
    engine: str
    revision: int
    used_bytes: int
    capacity_bytes: int
    available_bytes: int
    leases: int
    watches: int
    member_count: int


class _Member(NamedTuple):
    name: str


class _Error(NamedTuple):
    message: str


_HEAD: Final = Row(_Head, request_id=U64, code=U64)
_NUMBER: Final = Row(_Number, number=U64)
_CONTINUATION: Final = Row(_Continuation, key=OPTIONAL_BYTES)
_STATUS_HEAD: Final = Row(
    _StatusHead,
    engine=TEXT,
    revision=U64,
    used_bytes=U64,
    capacity_bytes=U64,
    available_bytes=U64,
    leases=U64,
    watches=U64,
    member_count=U64,
)
_MEMBER: Final = Row(_Member, name=TEXT)
_ERROR: Final = Row(_Error, message=ERROR_TEXT)


def encode_reply(request_id: int, request: Request, reply: object) -> bytes:
    """Return the frame that answers ``request`` with ``reply``, of the type that it asks for.

    Raises:
        InvalidRequestError: the reply is longer than a frame may be; nothing may be sent but that.
        LocalProtocolError: it is no single frame that answers this request.
    """
    to_fields, _ = _codec(request)
    fields = (request_id, _GOOD, *to_fields(reply))
    frame = pack(fields)
    if len(frame) > REPLY_BYTES_MAX or len(fields) >= FRAME_FIELDS_MAX:
        raise _too_large(len(frame))
    return frame


def encode_error(request_id: int, error: AspenKvError) -> bytes:
    """Return the frame that answers a request with an error; NO_REQUEST if it has no number."""
    return pack((request_id, code_of(error), message_of(error)))


def decode_reply(frame: bytes | bytearray | memoryview, request_id: int, request: Request) -> Reply:
    """Return the reply to a request.

    Raises:
        AspenKvError: what the server answered instead.
        RemoteProtocolError: it is no reply to this request.
        ProtocolVersionError: it is of another version.
        LocalProtocolError: it is no single frame that answers this request; or the server says
            that our request broke the protocol.
    """
    _, from_fields = _codec(request)
    fields = unpack(frame, REPLY_BYTES_MAX)
    answered_id, code = _HEAD.read(fields[: _HEAD.width])
    rest = fields[_HEAD.width :]
    if answered_id != request_id and (answered_id != NO_REQUEST or code == _GOOD):
        raise RemoteProtocolError(f"a reply to request {answered_id} in place of {request_id}")
    if code != _GOOD:
        raise error_of(code, _ERROR.read(rest).message)
    return from_fields(rest, request)


class _Codec(NamedTuple):
    to_fields: Callable[[Any], Iterable[object]]
    from_fields: Callable[[_Fields, Any], Reply]


def _codec(request: Request) -> _Codec:
    codec = _CODECS.get(type(request))
    if codec is None:
        raise LocalProtocolError(f"{type(request).__name__} is not answered by one frame")
    return codec


def _too_large(size_bytes: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"the reply would have {size_bytes} bytes, and {REPLY_BYTES_MAX} and {FRAME_FIELDS_MAX} "
        "fields are the most: ask for less at once"
    )


def _itself(reply: Iterable[object]) -> Iterable[object]:
    return reply


def _number_to_fields(reply: int) -> Iterable[object]:
    return (reply,)


def _number_from_fields(fields: _Fields, _request: Request) -> int:
    return _NUMBER.read(fields).number


def _nothing_to_fields(_reply: None) -> Iterable[object]:
    return ()


def _nothing_from_fields(fields: _Fields, _request: Request) -> None:
    if fields:
        raise RemoteProtocolError(f"a reply with {len(fields)} fields in place of none")


def _hello_from_fields(fields: _Fields, request: Hello) -> HelloReply:
    reply = HELLO_REPLY.read(fields)
    if not 1 <= reply.version <= request.version_max:
        raise ProtocolVersionError(
            f"the server chose version {reply.version} of the protocol: this client speaks 1 to "
            f"{request.version_max}"
        )
    return reply


def _get_to_fields(reply: Sequence[Versioned | None]) -> Iterable[object]:
    size_bytes = sum(len(found.value) for found in reply if found is not None)
    if size_bytes > REPLY_BYTES_MAX:  # before as much again is allocated for the frame
        raise _too_large(size_bytes)
    return chain.from_iterable(_ABSENT if found is None else found for found in reply)


def _get_from_fields(fields: _Fields, request: Get) -> list[Versioned | None]:
    rows = FOUND.read_many(fields)
    if len(rows) != len(request.keys):
        raise RemoteProtocolError(f"a reply of {len(rows)} values to {len(request.keys)} keys")
    if any((row.value is None) != (row.revision == ABSENT) for row in rows):
        raise RemoteProtocolError("a value without revision, or a revision without value")
    return [None if row.revision == ABSENT else row for row in rows]


def _scan_to_fields(reply: ScanPage) -> Iterable[object]:
    return (reply.continuation, *chain.from_iterable(reply.records))


def _scan_from_fields(fields: _Fields, _request: Scan) -> ScanPage:
    continuation = _CONTINUATION.read(fields[:1]).key
    records: list[Record] = RECORD.read_many(fields[1:])
    return ScanPage(records, continuation)


def _commit_from_fields(fields: _Fields, request: Commit) -> CommitResult:
    result = COMMIT_RESULT.read(fields)
    if result.failed_check is not None and result.failed_check >= len(request.checks):
        raise RemoteProtocolError(f"the failed check {result.failed_check} was not asked for")
    return result


def _status_to_fields(reply: Status) -> Iterable[object]:
    head = _StatusHead(
        engine=reply.engine,
        revision=reply.revision,
        used_bytes=reply.used_bytes,
        capacity_bytes=reply.capacity_bytes,
        available_bytes=reply.available_bytes,
        leases=reply.leases,
        watches=reply.watches,
        member_count=len(reply.members),
    )
    return (*head, *reply.members, *chain.from_iterable(reply.sessions))


def _status_from_fields(fields: _Fields, _request: ReadStatus) -> Status:
    head = _STATUS_HEAD.read(fields[: _STATUS_HEAD.width])
    sessions_at = _STATUS_HEAD.width + head.member_count
    members = _MEMBER.read_many(fields[_STATUS_HEAD.width : sessions_at])
    if len(members) != head.member_count:
        raise RemoteProtocolError("a status with fewer members than it says")
    return Status(
        engine=head.engine,
        members=tuple(member.name for member in members),
        revision=head.revision,
        used_bytes=head.used_bytes,
        capacity_bytes=head.capacity_bytes,
        available_bytes=head.available_bytes,
        leases=head.leases,
        watches=head.watches,
        sessions=tuple(SESSION_STATUS.read_many(fields[sessions_at:])),
    )


def _created_from_fields(fields: _Fields, _request: CreateTicket) -> Reply:
    return CREATED_TICKET.read(fields)


def _newest_from_fields(fields: _Fields, _request: ReadNewest) -> Newest:
    return NEWEST.read(fields)


def _tickets_to_fields(reply: Sequence[TicketInfo]) -> Iterable[object]:
    return chain.from_iterable(reply)


def _tickets_from_fields(fields: _Fields, _request: ListTickets) -> list[TicketInfo]:
    return TICKET_INFO.read_many(fields)


_NOTHING: Final = _Codec(_nothing_to_fields, _nothing_from_fields)
_ONE_NUMBER: Final = _Codec(_number_to_fields, _number_from_fields)

_CODECS: Final[dict[type, _Codec]] = {
    Hello: _Codec(_itself, _hello_from_fields),
    Get: _Codec(_get_to_fields, _get_from_fields),
    Scan: _Codec(_scan_to_fields, _scan_from_fields),
    Commit: _Codec(_itself, _commit_from_fields),
    GrantLease: _ONE_NUMBER,
    Keepalive: _NOTHING,
    Revoke: _NOTHING,
    ReadRevision: _ONE_NUMBER,
    Sync: _NOTHING,
    ReadStatus: _Codec(_status_to_fields, _status_from_fields),
    Bye: _NOTHING,
    CreateTicket: _Codec(_itself, _created_from_fields),
    ListTickets: _Codec(_tickets_to_fields, _tickets_from_fields),
    RevokeTicket: _NOTHING,
    ReadNewest: _Codec(_itself, _newest_from_fields),
}
