from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenfs.control.frames import ControlProtocolError, FrameDecoder, Message, encode
from aspenfs.limits import CONTROL_FRAME_BYTES_MAX

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text()
MESSAGES = st.dictionaries(
    st.text(max_size=8),
    st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
    max_size=4,
)


def messages_of(decoder: FrameDecoder) -> Iterator[Message]:
    while (message := decoder.next_message()) is not None:
        yield message


@given(st.lists(MESSAGES, max_size=4), st.integers(1, 64))
def test_messages_survive_any_cutting_of_their_bytes(messages: list[Message], size: int) -> None:
    wire = b"".join(map(encode, messages))
    decoder = FrameDecoder()
    received: list[Message] = []
    for start in range(0, len(wire), size):
        decoder.feed(wire[start : start + size])
        received += messages_of(decoder)
    assert received == messages
    assert decoder.is_empty


@given(st.binary(max_size=200))
def test_other_bytes_give_messages_or_the_protocol_error(data: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(data)
    with suppress(ControlProtocolError):
        list(messages_of(decoder))


def test_paths_that_are_no_utf8_pass() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode({"path": "/\udcff"}))
    assert decoder.next_message() == {"path": "/\udcff"}


def test_a_frame_that_claims_to_be_huge_is_refused_before_it_comes() -> None:
    decoder = FrameDecoder()
    decoder.feed(struct.pack(">I", CONTROL_FRAME_BYTES_MAX + 1))
    with pytest.raises(ControlProtocolError, match="longer than allowed"):
        decoder.next_message()


def test_a_message_that_fits_no_frame_is_not_sent() -> None:
    with pytest.raises(ControlProtocolError, match="fit a frame"):
        encode({"value": bytes(CONTROL_FRAME_BYTES_MAX)})


@pytest.mark.parametrize("value", [b"bytes", [1], 7, {1: 2}, None])
def test_only_maps_with_text_keys_are_messages(value: object) -> None:
    body = msgpack.packb(value)
    decoder = FrameDecoder()
    decoder.feed(struct.pack(">I", len(body)) + body)
    with pytest.raises(ControlProtocolError):
        decoder.next_message()


def test_bytes_after_a_message_in_its_frame_are_refused() -> None:
    body = msgpack.packb({}) * 2
    decoder = FrameDecoder()
    decoder.feed(struct.pack(">I", len(body)) + body)
    with pytest.raises(ControlProtocolError):
        decoder.next_message()


def test_a_frame_nested_beyond_reason_is_refused() -> None:
    body = b"\x91" * 100_000
    decoder = FrameDecoder()
    decoder.feed(struct.pack(">I", len(body)) + body)
    with pytest.raises(ControlProtocolError):
        decoder.next_message()
