"""The protocol as a pure core: bytes in, typed messages out, and back. No I/O and no clock.

Every call is one request frame and one reply frame; a watch is one request frame and then a stream
of messages. docs/protocol.md is the normative text.
"""

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
    Reply,
    Request,
    Revoke,
    RevokeTicket,
    Scan,
    Sync,
    WatchMessage,
    WatchOpened,
    WatchProgress,
)
from aspenkv.protocol.packing import VERSION
from aspenkv.protocol.replies import decode_reply, encode_error, encode_reply
from aspenkv.protocol.requests import (
    NO_REQUEST,
    BadRequestError,
    RequestFrame,
    decode_request,
    encode_request,
)
from aspenkv.protocol.watch_frames import WatchDecoder, encode_watch_message

__all__ = [
    "NO_REQUEST",
    "VERSION",
    "BadRequestError",
    "Bye",
    "Commit",
    "CreateTicket",
    "Get",
    "GrantLease",
    "Hello",
    "HelloReply",
    "Keepalive",
    "ListTickets",
    "OpenWatch",
    "ReadNewest",
    "ReadRevision",
    "ReadStatus",
    "Reply",
    "Request",
    "RequestFrame",
    "Revoke",
    "RevokeTicket",
    "Scan",
    "Sync",
    "WatchDecoder",
    "WatchMessage",
    "WatchOpened",
    "WatchProgress",
    "decode_reply",
    "decode_request",
    "encode_error",
    "encode_reply",
    "encode_request",
    "encode_watch_message",
]
