"""The frames of requests: what goes in comes out, and nothing else is let in."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aspenkv import limits
from aspenkv.contract import Add, Delete, Patch, Put, RangeEmpty, RevisionIs, SlotUse
from aspenkv.errors import (
    InvalidRequestError,
    ProtocolVersionError,
    RemoteProtocolError,
)
from aspenkv.protocol import (
    BadRequestError,
    Commit,
    CreateTicket,
    Get,
    GrantLease,
    Hello,
    OpenWatch,
    ReadRevision,
    RequestFrame,
    Scan,
    decode_request,
    encode_request,
)
from aspenkv.protocol.layouts import KINDS
from tests.unit.aspenkv.protocol_strategies import REQUESTS, U64

HELLO = Hello(bytes(16), b"s" * 32, bytes(16), "client", 1)
SCAN = Scan(b"a", b"b", 10, keys_only=False, reverse=False, continuation=None)


def frame_of(*fields: Any) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


def fields_of(request: Any) -> list[Any]:
    return list(msgpack.unpackb(encode_request(7, 1000, request)))


def refused(frame: bytes) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        decode_request(frame)
    return caught.value


@given(U64, U64, REQUESTS)
def test_a_request_comes_out_as_it_went_in(request_id: int, deadline_ms: int, request: Any) -> None:
    frame = encode_request(request_id, deadline_ms, request)
    for form in (frame, bytearray(frame), memoryview(frame)):
        decoded = decode_request(form)
        assert decoded == RequestFrame(request_id, deadline_ms, request)
        assert type(decoded.request) is type(request)


def test_parts_and_values_come_out_as_their_own_types() -> None:
    put = Put(b"key", memoryview(b"value"), 3)
    commit = Commit([RevisionIs(b"key", 0), RangeEmpty(b"a", b"b")], [put, Delete(b"a")], None)
    decoded = decode_request(encode_request(1, 1, commit)).request
    assert isinstance(decoded, Commit)
    assert list(map(type, [*decoded.checks, *decoded.ops])) == [RevisionIs, RangeEmpty, Put, Delete]
    assert decoded.ops[0] == Put(b"key", b"value", 3)


def test_a_hello_does_not_show_its_secret() -> None:
    assert "ssss" not in repr(HELLO)
    assert "client='client'" in repr(HELLO)


@given(st.binary(max_size=200))
@example(b"")
def test_other_bytes_are_refused_by_the_protocol_error(data: bytes) -> None:
    with suppress(BadRequestError, ProtocolVersionError):
        decode_request(data)


@given(REQUESTS, st.data())
def test_a_damaged_request_is_refused_or_is_another_request(
    request: Any, data: st.DataObject
) -> None:
    frame = bytearray(encode_request(7, 1000, request))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        if not frame:
            break
    with suppress(BadRequestError, ProtocolVersionError):
        decode_request(bytes(frame))


@given(REQUESTS)
def test_a_request_that_is_cut_or_goes_on_is_refused(request: Any) -> None:
    frame = encode_request(7, 1000, request)
    for size in range(len(frame)):
        assert refused(frame[:size]).request_id == 0
    assert refused(frame + b"\x00").request_id == 0


@given(REQUESTS, st.data())
def test_a_field_of_a_foreign_type_is_refused(request: Any, data: st.DataObject) -> None:
    fields = fields_of(request)
    at = data.draw(st.integers(0, len(fields) - 1))
    fields[at] = data.draw(
        st.sampled_from([[], {}, msgpack.ExtType(5, b""), "\x00", float("nan"), float("inf")])
    )
    refused(frame_of(*fields))


@pytest.mark.parametrize("wrong", [True, 1.0, -1, "1", b"1", None])
@pytest.mark.parametrize("at", range(4))
def test_the_head_of_a_request_is_four_unsigned_integers(at: int, wrong: object) -> None:
    fields = fields_of(ReadRevision())
    fields[at] = wrong
    with pytest.raises((BadRequestError, ProtocolVersionError)):
        decode_request(frame_of(*fields))


@pytest.mark.parametrize("count", range(1, 4))
def test_a_request_has_a_whole_head(count: int) -> None:
    refused(frame_of(*fields_of(ReadRevision())[:count]))


def test_another_version_is_named() -> None:
    with pytest.raises(ProtocolVersionError, match="version 2 "):
        decode_request(frame_of(2, 7, "whatever comes then"))


def test_a_refusal_names_the_request_if_it_can_be_read() -> None:
    assert refused(frame_of(1, 7, 99, 1000)).request_id == 7
    assert refused(frame_of(1, 7)).request_id == 7
    assert refused(frame_of(1, 7, KINDS[ReadRevision], 1000, "more")).request_id == 7
    assert refused(frame_of(1, "7", 9, 1000)).request_id == 0
    assert refused(frame_of(1)).request_id == 0


def test_a_refusal_names_the_field() -> None:
    fields = fields_of(SCAN)
    fields[6] = -1
    assert str(refused(frame_of(*fields))) == "Scan.limit is not an unsigned integer"
    assert str(refused(frame_of(*fields[:8]))) == "Scan has 6 fields, and 4 came"


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (None, None),
        (None, None, -1),
        (None, None, True),
        (None, None, 1),  # the check is missing
        (None, None, 2**64 - 1, 1, b"key", 0),
        (None, None, 1, 3, b"key", b"", 0),  # a put among the checks
        (None, None, 0, 1, b"key", 0),  # a check among the operations
        (None, None, 0, 99),
        (None, None, 0, True, b"key", b"", 0),
        (None, None, 0, b"3", b"key", b"", 0),
        (None, None, 0, 3, b"key", b""),
        (None, None, 0, 3, b"key", "value", 0),
        (None, None, 0, 3, b"key", b"", -1),
        (None, None, 0, 4, b"key", 4),
        (None, None, 0, 6, b"key", -1, b"", None),
        (None, None, 0, 7, b"key", 2**63),
        (1, None, 0),
        (None, 1, 0),
        (-1, 1, 0),
        (1, True, 0),
    ],
)
def test_what_is_no_commit_is_refused(fields: tuple[Any, ...]) -> None:
    refused(frame_of(1, 7, KINDS[Commit], 1000, *fields))


@pytest.mark.parametrize("fields", [(), (0,), (b"key",), (True, "key"), (True, b"key", None)])
def test_what_is_no_get_is_refused(fields: tuple[Any, ...]) -> None:
    refused(frame_of(1, 7, KINDS[Get], 1000, *fields))


@pytest.mark.parametrize(
    "request_",
    [
        Commit([], [Put(b"key", b"", 2**64)], None),
        Commit([], [Patch(b"key", -1, b"")], None),
        Commit([], [Patch(b"key", 0, b"", -1)], None),
        Commit([], [Add(b"key", limits.COUNTER_MAX + 1)], None),
        Commit([], [Add(b"key", limits.COUNTER_MIN - 1)], None),
        Commit([], [Put("key", b"")], None),  # type: ignore[arg-type]
        Commit([], [], SlotUse(-1, 1)),
        Commit([], [RevisionIs(b"key", 0)], None),  # type: ignore[list-item]
        Commit([Put(b"key", b"")], [], None),  # type: ignore[list-item]
        Commit([], [Put(b"key", object())], None),  # type: ignore[arg-type]
        Get([object()], bulk=False),  # type: ignore[list-item]
        Get(["key"], bulk=False),  # type: ignore[list-item]
        Scan(b"a", b"b", -1, keys_only=False, reverse=False, continuation=None),
        OpenWatch(b"", -1, values=False, skip_own=False),
        GrantLease(float("nan")),
        HELLO._replace(client="\x1b[2J"),
        HELLO._replace(client="\ud800"),
        HELLO._replace(secret=b"short"),
        CreateTicket(b"", can_write=True, is_admin=True, expires_s=None, label="é" * 129),
    ],
)
def test_what_no_server_takes_is_not_sent(request_: Any) -> None:
    with pytest.raises(InvalidRequestError):
        encode_request(1, 1, request_)


def test_the_largest_commit_fits_a_request() -> None:
    rest = limits.COMMIT_BYTES_MAX
    checks = [RevisionIs(b"c", 2**64 - 1)] * limits.COMMIT_CHECKS_MAX
    rest -= len(checks)
    ops = [Patch(b"k", 2**64 - 1, b"d", 2**64 - 1)] * (limits.COMMIT_OPS_MAX - 1)
    rest -= 2 * len(ops) + 1
    ops.append(Patch(b"k", 2**64 - 1, bytes(rest), 2**64 - 1))
    commit = Commit(checks, ops, SlotUse(2**64 - 1, 2**64 - 1))
    assert decode_request(encode_request(2**64 - 1, 2**64 - 1, commit)).request == commit


def test_the_largest_get_fits_a_request() -> None:
    get = Get((bytes(limits.KEY_BYTES_MAX),) * limits.GET_KEYS_MAX, bulk=True)
    assert decode_request(encode_request(1, 1, get)).request == get


def test_a_request_longer_than_the_bound_is_neither_sent_nor_read() -> None:
    value = bytes(limits.REQUEST_BYTES_MAX)
    with pytest.raises(InvalidRequestError, match="use at most"):
        encode_request(1, 1, Commit([], [Put(b"key", value)], None))
    frame = frame_of(1, 7, KINDS[Commit], 1000, None, None, 0, 3, b"key", value, 0)
    assert "are allowed" in str(refused(frame))


def test_a_request_of_more_fields_than_the_bound_is_neither_sent_nor_read() -> None:
    most = limits.FRAME_FIELDS_MAX - 5  # beside version, id, kind, deadline and bulk
    decode_request(encode_request(1, 1, Get([b""] * most, bulk=False)))
    with pytest.raises(InvalidRequestError, match="use at most"):
        encode_request(1, 1, Get([b""] * (most + 1), bulk=False))
    refused(frame_of(1, 7, KINDS[Get], 1000, False, *[b""] * (most + 1)))


def test_bad_requests_are_remote_protocol_errors() -> None:
    assert isinstance(refused(b"\xc0"), RemoteProtocolError)
