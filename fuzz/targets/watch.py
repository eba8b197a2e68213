"""A client reads what a watch is told. The first byte says how the bytes are cut."""

from __future__ import annotations

from typing import Final

from aspenkv.errors import AspenKvError
from aspenkv.protocol import WatchDecoder, WatchMessage
from fuzz.examples import examples

_MESSAGES: Final = examples("watch")

SEEDS: Final = [
    bytes((size,)) + wire for size in (1, 7, 255) for wire in (*_MESSAGES, b"".join(_MESSAGES))
]


def check(data: bytes) -> None:
    """However the bytes are cut, the same messages come out, and then the same failure."""
    if not data:
        return
    size, wire = max(1, data[0]), data[1:]
    cut = [wire[start : start + size] for start in range(0, len(wire), size)]
    assert _received(cut) == _received([wire] if wire else [])


def _received(pieces: list[bytes]) -> tuple[list[WatchMessage], str]:
    decoder = WatchDecoder()
    messages: list[WatchMessage] = []
    try:
        for piece in (*pieces, b""):
            messages += decoder.receive_data(piece)
        decoder.receive_data(b"")
    except AspenKvError as error:
        return messages, repr(error)
    raise AssertionError("a watch that has ended raises")
