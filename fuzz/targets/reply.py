"""A client reads a reply. The first byte chooses what it asked for."""

from __future__ import annotations

from typing import Final

from aspenkv.contract import RevisionIs
from aspenkv.errors import AspenKvError
from aspenkv.protocol import (
    Commit,
    CreateTicket,
    Get,
    Hello,
    ListTickets,
    ReadRevision,
    ReadStatus,
    Request,
    Scan,
    Sync,
    decode_reply,
    encode_reply,
)
from fuzz.examples import examples

_REQUESTS: Final[tuple[Request, ...]] = (
    Hello(bytes(16), bytes(32), bytes(16), "client", 1),
    Get((b"a", b"b"), bulk=False),
    Scan(b"a", b"b", 10, keys_only=False, reverse=False, continuation=None),
    Commit((RevisionIs(b"a", 0), RevisionIs(b"b", 0)), (), None),
    ReadRevision(),
    Sync(),
    ReadStatus(),
    CreateTicket(b"", can_write=True, is_admin=True, expires_s=None, label=""),
    ListTickets(),
)
_REQUEST_ID: Final = 7

SEEDS: Final = [
    bytes((choice,)) + frame
    for choice in range(len(_REQUESTS))
    for frame in examples("reply", "error")
]


def check(data: bytes) -> None:
    """Any bytes are refused by an error of the tree, or are a reply that can be sent again."""
    if not data:
        return
    request = _REQUESTS[data[0] % len(_REQUESTS)]
    try:
        reply = decode_reply(data[1:], _REQUEST_ID, request)
    except AspenKvError:
        return
    assert decode_reply(encode_reply(_REQUEST_ID, request, reply), _REQUEST_ID, request) == reply
