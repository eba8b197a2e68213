"""The frames of replies: what goes in comes out, and nothing else is let in."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aspenkv import limits
from aspenkv.contract import (
    CommitResult,
    Record,
    RevisionIs,
    ScanPage,
    SessionStatus,
    Status,
    TicketInfo,
    Versioned,
)
from aspenkv.errors import (
    AspenKvError,
    BusyError,
    InvalidRequestError,
    LocalProtocolError,
    ProtocolVersionError,
    RemoteProtocolError,
)
from aspenkv.protocol import (
    Commit,
    Get,
    Hello,
    HelloReply,
    ListTickets,
    OpenWatch,
    ReadRevision,
    ReadStatus,
    Scan,
    Sync,
    decode_reply,
    encode_error,
    encode_reply,
)
from tests.unit.aspenkv.protocol_strategies import CALLS, U64

SCAN = Scan(b"a", b"b", 10, keys_only=False, reverse=False, continuation=None)
HELLO = Hello(bytes(16), bytes(32), bytes(16), "client", 3)
COMMIT = Commit([RevisionIs(b"key", 0)], [], None)
STATUS = Status("memory", ("a", "b"), 1, 2, 3, 4, 5, 6, ())
LONG_KEY = bytes(limits.KEY_BYTES_MAX)
LONG_TEXT = "x" * limits.TEXT_BYTES_MAX


def frame_of(*fields: Any) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


def hello_reply(version: int) -> HelloReply:
    return HelloReply(
        server_id=bytes(16),
        version=version,
        prefix=b"",
        can_write=True,
        is_admin=True,
        session_is_new=True,
        started_revision=0,
        slots_max=1,
        requests_max=1,
    )


@given(U64, CALLS)
def test_a_reply_comes_out_as_it_went_in(request_id: int, call: tuple[Any, Any]) -> None:
    request, reply = call
    frame = encode_reply(request_id, request, reply)
    for form in (frame, bytearray(frame), memoryview(frame)):
        decoded = decode_reply(form, request_id, request)
        assert decoded == reply
        assert type(decoded) is type(reply)


@given(CALLS, st.binary(max_size=200))
@example((Sync(), None), b"")
def test_other_bytes_are_refused_by_the_protocol_error(call: tuple[Any, Any], data: bytes) -> None:
    with suppress(RemoteProtocolError, ProtocolVersionError):
        decode_reply(data, 7, call[0])


@given(CALLS, st.data())
def test_a_damaged_reply_is_refused_or_is_another_reply(
    call: tuple[Any, Any], data: st.DataObject
) -> None:
    request, reply = call
    frame = bytearray(encode_reply(7, request, reply))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        if not frame:
            break
    with suppress(AspenKvError):
        decode_reply(bytes(frame), 7, request)


@given(CALLS)
def test_a_reply_that_is_cut_or_goes_on_is_refused(call: tuple[Any, Any]) -> None:
    request, reply = call
    frame = encode_reply(7, request, reply)
    for damaged in (*(frame[:size] for size in range(len(frame))), frame + b"\x00"):
        with pytest.raises(RemoteProtocolError):
            decode_reply(damaged, 7, request)


def test_a_reply_of_another_version_is_named() -> None:
    with pytest.raises(ProtocolVersionError, match="version 2 "):
        decode_reply(frame_of(2, 7, 0, "whatever comes then"), 7, Sync())


@pytest.mark.parametrize(
    "fields",
    [(), (7,), (7, 0, None), ("7", 0), (7, None), (7, False), (7, -1), (7, 1.0), (None, 0)],
)
def test_what_is_no_reply_is_refused(fields: tuple[Any, ...]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_reply(frame_of(1, *fields), 7, Sync())


@pytest.mark.parametrize("request_id", [0, 6, 8])
def test_the_reply_to_another_request_is_refused(request_id: int) -> None:
    frame = encode_reply(request_id, Sync(), None)
    with pytest.raises(RemoteProtocolError, match=f"to request {request_id} in place of 7"):
        decode_reply(frame, 7, Sync())


def test_an_error_may_come_for_a_request_whose_number_could_not_be_read() -> None:
    with pytest.raises(BusyError, match="later"):
        decode_reply(encode_error(0, BusyError("later")), 7, Sync())
    with pytest.raises(RemoteProtocolError):
        decode_reply(encode_error(6, BusyError("later")), 7, Sync())


@pytest.mark.parametrize("message", [None, 1, b"text", "x" * (limits.ERROR_MESSAGE_BYTES_MAX + 1)])
def test_an_error_has_a_short_text(message: object) -> None:
    with pytest.raises(RemoteProtocolError, match="message is not"):
        decode_reply(frame_of(1, 7, 3, message), 7, Sync())


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (ReadRevision(), ()),
        (ReadRevision(), (-1,)),
        (ReadRevision(), (1, 2)),
        (Get((b"key",), bulk=False), ()),
        (Get((b"key",), bulk=False), (b"value",)),
        (Get((b"key",), bulk=False), (b"value", 1, b"value", 1)),
        (Get((b"key",), bulk=False), (b"value", 0)),
        (Get((b"key",), bulk=False), (None, 1)),
        (Get((b"key",), bulk=False), ("value", 1)),
        (Get((b"key",), bulk=False), (b"value", True)),
        (Get((b"key",), bulk=False), (b"value", -1)),
        (SCAN, ()),
        (SCAN, (1,)),
        (SCAN, (None, b"key", b"value")),
        (SCAN, (None, b"key", b"value", -1)),
        (SCAN, (None, b"key", None, 1)),
        (COMMIT, (1,)),
        (COMMIT, (1, 1)),
        (COMMIT, (1, -1)),
        (COMMIT, (None, None)),
        (HELLO, hello_reply(1)[:-1]),
        (HELLO, hello_reply(1)._replace(server_id=bytes(15))),
        (ReadStatus(), ("memory", 1, 2, 3, 4, 5, 6)),
        (ReadStatus(), ("memory", 1, 2, 3, 4, 5, 6, 1)),
        (ReadStatus(), ("memory", 1, 2, 3, 4, 5, 6, 1, 7)),
        (ReadStatus(), ("memory", 1, 2, 3, 4, 5, 6, 2**64 - 1, "a")),
        (ReadStatus(), ("memory", 1, 2, 3, 4, 5, 6, 0, "client", "address", 1)),
        (ReadStatus(), ("memory", 1, 2, 3, 4, 5, 6, 0, "client", "\x07", 1, True)),
    ],
)
def test_a_reply_that_does_not_fit_its_request_is_refused(
    request_: Any, fields: tuple[Any, ...]
) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_reply(frame_of(1, 7, 0, *fields), 7, request_)


@pytest.mark.parametrize("version", [0, 4])
def test_a_version_that_the_client_did_not_offer_is_refused(version: int) -> None:
    frame = encode_reply(7, HELLO, hello_reply(version))
    with pytest.raises(ProtocolVersionError, match=f"version {version} .* 1 to 3"):
        decode_reply(frame, 7, HELLO)


def test_a_watch_is_not_answered_by_one_frame() -> None:
    watch = OpenWatch(b"", None, values=False, skip_own=False)
    with pytest.raises(LocalProtocolError, match="OpenWatch"):
        encode_reply(7, watch, None)
    with pytest.raises(LocalProtocolError, match="OpenWatch"):
        decode_reply(encode_reply(7, Sync(), None), 7, watch)


def test_values_of_any_size_fit_a_reply_to_as_many_keys_as_promised() -> None:
    found = Versioned(bytes(limits.VALUE_BYTES_MAX), 2**64 - 1)
    get = Get([LONG_KEY] * limits.BULK_GET_KEYS_MAX, bulk=True)
    values = [found] * limits.BULK_GET_KEYS_MAX
    assert decode_reply(encode_reply(7, get, values), 7, get) == values


def test_a_get_whose_values_do_not_fit_a_reply_is_an_invalid_request() -> None:
    found = Versioned(bytes(limits.VALUE_BYTES_MAX), 1)
    count = limits.BULK_GET_KEYS_MAX + 1
    with pytest.raises(InvalidRequestError, match="ask for less"):
        encode_reply(7, Get([b"key"] * count, bulk=True), [found] * count)


def test_a_get_whose_values_fit_but_not_their_revisions_is_an_invalid_request() -> None:
    values = [Versioned(bytes(limits.REPLY_BYTES_MAX - 1), 1)]
    with pytest.raises(InvalidRequestError, match="ask for less"):
        encode_reply(7, Get([b"key"], bulk=True), values)


def test_the_largest_page_fits_a_reply() -> None:
    small = Record(LONG_KEY, b"", 2**64 - 1)
    large = Record(LONG_KEY, bytes(limits.VALUE_BYTES_MAX), 2**64 - 1)
    page = ScanPage([*[small] * (limits.SCAN_ENTRIES_MAX - 1), large], LONG_KEY + b"\0")
    assert decode_reply(encode_reply(7, SCAN, page), 7, SCAN) == page


def test_the_longest_lists_fit_a_reply() -> None:
    ticket = TicketInfo(
        bytes(16), LONG_TEXT, LONG_KEY, can_write=True, is_admin=True, created_s=0, expires_s=None
    )
    tickets = [ticket] * limits.TICKETS_MAX
    assert decode_reply(encode_reply(7, ListTickets(), tickets), 7, ListTickets()) == tickets
    session = SessionStatus(LONG_TEXT, LONG_TEXT, 8, can_write=True)
    status = STATUS._replace(sessions=(session,) * limits.SESSIONS_MAX)
    assert decode_reply(encode_reply(7, ReadStatus(), status), 7, ReadStatus()) == status


def test_a_list_of_too_many_fields_is_refused() -> None:
    page = ScanPage([Record(b"", b"", 1)] * (limits.FRAME_FIELDS_MAX // 3), None)
    with pytest.raises(InvalidRequestError, match="ask for less"):
        encode_reply(7, SCAN, page)


def test_a_commit_tells_which_check_failed() -> None:
    result = CommitResult(9, 0)
    assert decode_reply(encode_reply(7, COMMIT, result), 7, COMMIT) == result
