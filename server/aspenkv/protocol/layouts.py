"""Which number and which fields each request, and each reply, has in a frame. Pure.

docs/protocol.md shows the same as tables.
"""

from __future__ import annotations

from typing import Any, Final

from aspenkv.contract import (
    CommitResult,
    CreatedTicket,
    Newest,
    Record,
    SessionStatus,
    TicketInfo,
    Versioned,
)
from aspenkv.protocol.fields import (
    BOOL,
    BYTES,
    BYTES_16,
    BYTES_32,
    OPTIONAL_BYTES,
    OPTIONAL_REAL,
    OPTIONAL_U64,
    REAL,
    SPAN_S,
    TEXT,
    U64,
    Row,
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
    OpenWatch,
    ReadNewest,
    ReadRevision,
    ReadStatus,
    Revoke,
    RevokeTicket,
    Scan,
    Sync,
)

GET: Final = 2
COMMIT: Final = 4

KINDS: Final[dict[type, int]] = {
    Hello: 1,
    Get: GET,
    Scan: 3,
    Commit: COMMIT,
    OpenWatch: 5,
    GrantLease: 6,
    Keepalive: 7,
    Revoke: 8,
    ReadRevision: 9,
    Sync: 10,
    ReadStatus: 11,
    Bye: 12,
    CreateTicket: 13,
    ListTickets: 14,
    RevokeTicket: 15,
    ReadNewest: 16,
}

# All requests but those whose number of fields varies: Get and Commit.
REQUEST_ROWS: Final[dict[int, Row[Any]]] = {
    KINDS[Hello]: Row(
        Hello, ticket_id=BYTES_16, secret=BYTES_32, session=BYTES_16, client=TEXT, version_max=U64
    ),
    KINDS[Scan]: Row(
        Scan,
        start=BYTES,
        end=BYTES,
        limit=U64,
        keys_only=BOOL,
        reverse=BOOL,
        continuation=OPTIONAL_BYTES,
    ),
    KINDS[OpenWatch]: Row(
        OpenWatch, prefix=BYTES, from_revision=OPTIONAL_U64, values=BOOL, skip_own=BOOL
    ),
    KINDS[GrantLease]: Row(GrantLease, ttl_s=REAL),
    KINDS[Keepalive]: Row(Keepalive, lease=U64),
    KINDS[Revoke]: Row(Revoke, lease=U64),
    KINDS[ReadRevision]: Row(ReadRevision),
    KINDS[Sync]: Row(Sync),
    KINDS[ReadStatus]: Row(ReadStatus),
    KINDS[Bye]: Row(Bye),
    KINDS[CreateTicket]: Row(
        CreateTicket,
        prefix=BYTES,
        can_write=BOOL,
        is_admin=BOOL,
        expires_s=OPTIONAL_REAL,
        label=TEXT,
    ),
    KINDS[ListTickets]: Row(ListTickets),
    KINDS[RevokeTicket]: Row(RevokeTicket, ticket_id=BYTES_16),
    KINDS[ReadNewest]: Row(ReadNewest, watch=U64),
}

HELLO_REPLY: Final = Row(
    HelloReply,
    server_id=BYTES_16,
    version=U64,
    prefix=BYTES,
    can_write=BOOL,
    is_admin=BOOL,
    session_is_new=BOOL,
    started_revision=U64,
    slots_max=U64,
    requests_max=U64,
)
FOUND: Final = Row(Versioned, value=OPTIONAL_BYTES, revision=U64)
RECORD: Final = Row(Record, key=BYTES, value=BYTES, revision=U64)
COMMIT_RESULT: Final = Row(CommitResult, revision=U64, failed_check=OPTIONAL_U64)
NEWEST: Final = Row(Newest, revision=U64, alone_s=SPAN_S)
SESSION_STATUS: Final = Row(
    SessionStatus, client=TEXT, address=TEXT, connections=U64, can_write=BOOL
)
CREATED_TICKET: Final = Row(CreatedTicket, ticket_id=BYTES_16, secret=BYTES_32)
TICKET_INFO: Final = Row(
    TicketInfo,
    ticket_id=BYTES_16,
    label=TEXT,
    prefix=BYTES,
    can_write=BOOL,
    is_admin=BOOL,
    created_s=U64,
    expires_s=OPTIONAL_U64,
)
