"""The messages of a watch: any cutting, their order, and how it ends."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenkv import limits
from aspenkv.contract import Change, WatchEvent
from aspenkv.errors import (
    AspenKvError,
    BusyError,
    ClosedError,
    ProtocolVersionError,
    RemoteProtocolError,
    WatchGapError,
)
from aspenkv.protocol import WatchDecoder, WatchOpened, WatchProgress, encode_watch_message
from tests.unit.aspenkv.protocol_strategies import FOLLOWED

EVENT = WatchEvent(5, (Change(b"key", None, None),))
OPENED = encode_watch_message(WatchOpened(4))
CLOSED = encode_watch_message(ClosedError("the server ends"))


def message_of(*fields: Any) -> bytes:
    frame: bytes = msgpack.packb(fields)
    return struct.pack(">I", len(frame)) + frame


@given(FOLLOWED, st.integers(1, 64))
def test_messages_survive_any_cutting_of_their_bytes(followed: list[Any], size: int) -> None:
    messages = [WatchOpened(0), *followed]
    wire = b"".join(map(encode_watch_message, messages)) + CLOSED
    decoder = WatchDecoder()
    received: list[Any] = []
    with suppress(ClosedError):
        for start in range(0, len(wire), size):
            received += decoder.receive_data(wire[start : start + size])
    with pytest.raises(ClosedError, match="the server ends"):
        decoder.receive_data(b"")
    assert received == messages
    assert list(map(type, received)) == list(map(type, messages))


def test_an_error_is_raised_after_the_messages_before_it_and_ever_after() -> None:
    decoder = WatchDecoder()
    received = decoder.receive_data(OPENED + encode_watch_message(EVENT) + CLOSED + OPENED)
    assert received == [WatchOpened(4), EVENT]
    for data in (b"", OPENED, b"anything"):
        with pytest.raises(ClosedError, match="the server ends"):
            decoder.receive_data(data)


def test_an_error_may_stand_in_place_of_the_opening() -> None:
    with pytest.raises(BusyError, match="later"):
        WatchDecoder().receive_data(encode_watch_message(BusyError("later")))


def test_a_watch_does_not_end_without_an_error() -> None:
    for wire in (b"\0", OPENED, OPENED + CLOSED[:-1]):
        decoder = WatchDecoder()
        decoder.receive_data(wire)
        with pytest.raises(RemoteProtocolError, match="without saying why"):
            decoder.receive_data(b"")


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_other_bytes_are_refused_by_the_protocol_error(pieces: list[bytes]) -> None:
    decoder = WatchDecoder()
    with suppress(RemoteProtocolError, ProtocolVersionError):
        for piece in pieces:
            decoder.receive_data(piece)


@given(FOLLOWED, st.data())
def test_damaged_messages_are_refused_or_are_others(
    followed: list[Any], data: st.DataObject
) -> None:
    wire = bytearray(b"".join(map(encode_watch_message, [WatchOpened(0), *followed])) + CLOSED)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(wire) - 1))
        wire[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    decoder = WatchDecoder()
    with suppress(AspenKvError):
        decoder.receive_data(bytes(wire))


def test_a_message_that_claims_to_be_huge_is_refused_before_it_comes() -> None:
    with pytest.raises(RemoteProtocolError, match="of 2097153 bytes"):
        WatchDecoder().receive_data(struct.pack(">I", limits.WATCH_FRAME_BYTES_MAX + 1))


def test_a_message_of_another_version_is_named() -> None:
    with pytest.raises(ProtocolVersionError, match="version 2 "):
        WatchDecoder().receive_data(message_of(2, "whatever comes then"))


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (3,),
        (3, -1),
        (3, True),
        (3, "5"),
        (3, 5, 5),
        (0, 5),
        (5, 5),
        (True, 5),
        (None, 5),
        (2, 5, b"key", None),
        (2, 5, "key", None, None),
        (2, 5, b"key", 1, None),
        (4, 3),
        (4, 3, b"message"),
        (4, "3", "message"),
    ],
)
def test_what_is_no_message_is_refused(fields: tuple[Any, ...]) -> None:
    decoder = WatchDecoder()
    decoder.receive_data(OPENED)
    with pytest.raises(RemoteProtocolError):
        decoder.receive_data(message_of(1, *fields))


@pytest.mark.parametrize(
    "messages",
    [
        (EVENT,),
        (WatchProgress(4),),
        (WatchOpened(4), WatchOpened(5)),
        (WatchOpened(4), WatchEvent(4, ())),
        (WatchOpened(4), WatchProgress(3)),
        (WatchOpened(4), EVENT, EVENT),
        (WatchOpened(4), WatchProgress(5), EVENT),
    ],
)
def test_a_message_out_of_order_is_refused(messages: tuple[Any, ...]) -> None:
    decoder = WatchDecoder()
    *in_order, late = messages
    for message in in_order:
        decoder.receive_data(encode_watch_message(message))
    with pytest.raises(RemoteProtocolError, match="out of order"):
        decoder.receive_data(encode_watch_message(late))


def test_the_largest_event_of_a_commit_fits_a_message() -> None:
    bound = bytes(limits.RANGE_BOUND_BYTES_MAX)
    rest = limits.COMMIT_BYTES_MAX // limits.COMMIT_OPS_MAX
    changes = (Change(bound, bound, bytes(rest)),) * limits.COMMIT_OPS_MAX
    event = WatchEvent(2**64 - 1, changes)
    decoder = WatchDecoder()
    assert decoder.receive_data(OPENED + encode_watch_message(event)) == [WatchOpened(4), event]


@pytest.mark.parametrize(
    "changes",
    [
        (Change(b"key", None, bytes(limits.WATCH_FRAME_BYTES_MAX)),),
        (Change(b"key", None, None),) * (limits.FRAME_FIELDS_MAX // 3),
    ],
    ids=["bytes", "fields"],
)
def test_an_event_that_no_message_can_tell_is_a_gap(changes: tuple[Change, ...]) -> None:
    with pytest.raises(WatchGapError, match="read anew"):
        encode_watch_message(WatchEvent(5, changes))
