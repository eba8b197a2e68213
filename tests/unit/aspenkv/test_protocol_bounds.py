"""A hostile frame makes a decoder allocate in proportion to its own length, whatever it claims."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from aspenkv import limits
from aspenkv.errors import AspenKvError
from aspenkv.protocol import (
    Commit,
    Get,
    ListTickets,
    ReadStatus,
    Scan,
    WatchDecoder,
    WatchOpened,
    WatchProgress,
    decode_reply,
    decode_request,
    encode_watch_message,
)
from aspenkv.protocol.layouts import KINDS

SCAN = Scan(b"a", b"b", 10, keys_only=False, reverse=False, continuation=None)
REQUEST_HEADS = [bytes((1, 7, KINDS[kind], 1)) for kind in (Get, Commit, Scan)]
MANY = 30_000


def with_header(count: int, rest: bytes) -> bytes:
    return b"\xdd" + struct.pack(">I", count) + rest


def bombs() -> dict[str, bytes]:
    """Return what may follow the version: each by its name."""
    return {
        "nested arrays": b"\xdc\x7f\xff" * 2000,
        "nested short arrays": b"\x9f" * 6000,
        "nested huge arrays": b"\xdd\x7f\xff\xff\xff" * 2000,
        "nested maps": b"\xdf\x7f\xff\xff\xff\x01" * 1000,
        "a huge map": b"\xdf\xff\xff\xff\xff",
        "a huge byte string": b"\xc6\xff\xff\xff\xff" + b"x" * 100,
        "a huge text": b"\xdb\xff\xff\xff\xff" + b"x" * 100,
        "a huge extension": b"\xc9\xff\xff\xff\xff\x01" + b"x" * 100,
        "many nils": b"\xc0" * MANY,
        "many empty arrays": b"\x90" * MANY,
        "many empty maps": b"\x80" * MANY,
        "many short strings": b"\xc4\x02ab" * MANY,
        "many short texts": b"\xa2ab" * MANY,
        "many integers": b"\xcd\xff\xff" * MANY,
        "many floats": b"\xca\x3f\x80\x00\x00" * MANY,
        "many empty extensions": b"\xc7\x00\x05" * MANY,
    }


def peak_bytes(decode: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        with suppress(AspenKvError):
            decode()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def allowed_bytes(frame: bytes) -> int:
    """Return a decoder's own state, copies of the frame, and objects and places of its fields."""
    return 64 * 1024 + 3 * len(frame) + 128 * min(len(frame), limits.FRAME_FIELDS_MAX)


@pytest.mark.parametrize("name", bombs())
def test_a_request_allocates_in_proportion_to_its_length(name: str) -> None:
    bomb = bombs()[name]
    for head in REQUEST_HEADS:
        for count in (MANY + 4, 2**32 - 1):
            frame = with_header(count, head + bomb)
            assert peak_bytes(partial(decode_request, frame)) < allowed_bytes(frame)


@pytest.mark.parametrize("name", bombs())
@pytest.mark.parametrize(
    "request_",
    [Get([b""] * MANY, bulk=False), SCAN, Commit([], [], None), ReadStatus(), ListTickets()],
)
def test_a_reply_allocates_in_proportion_to_its_length(name: str, request_: Any) -> None:
    bomb = bombs()[name]
    for count in (MANY + 3, 2**32 - 1):
        frame = with_header(count, b"\x01\x07\x00" + bomb)
        used = peak_bytes(partial(decode_reply, frame, 7, request_))
        assert used < allowed_bytes(frame)


@pytest.mark.parametrize("name", bombs())
def test_a_watch_allocates_in_proportion_to_its_length(name: str) -> None:
    bomb = bombs()[name]
    for count in (MANY + 3, 2**32 - 1):
        frame = with_header(count, b"\x01\x02\x07" + bomb)
        wire = struct.pack(">I", len(frame)) + frame
        assert peak_bytes(partial(WatchDecoder().receive_data, wire)) < allowed_bytes(wire)


def test_a_watch_keeps_no_more_than_one_unfinished_message() -> None:
    decoder = WatchDecoder()
    progress = encode_watch_message(WatchProgress(1))
    wire = encode_watch_message(WatchOpened(1)) + 100 * progress
    assert len(decoder.receive_data(wire[:-1])) == 100
    assert decoder._buffer == progress[:-1]
    assert len(decoder.receive_data(wire[-1:])) == 1
    assert not decoder._buffer
