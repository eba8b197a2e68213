"""Frames of QUIC (RFC 9000 §19) to begin with: of each type one that could come, or nearly."""

from __future__ import annotations

from typing import Final

_TOKEN: Final = bytes(16)


def _number(value: int) -> bytes:
    """Return a variable-length integer of eight bytes (RFC 9000 §16)."""
    return (value | 3 << 62).to_bytes(8, "big")


STREAM_FRAMES: Final = [
    b"\x0b\x00\x05hello",  # the whole of stream 0
    b"\x0a\x04\x05hello",  # stream 4, not its end
    b"\x0f\x04\x05\x02zz",  # its end, twice, at one offset and another
    b"\x0f\x04\x09\x02zz",
    b"\x0e\x08" + _number(2**61) + b"\x01x",  # far beyond the window
    b"\x0a\x01\x01x",  # streams that a client may not open, and too many
    b"\x0a\x02\x01x",
    b"\x0a\x43\xfc\x01x",
    b"\x04\x00\x00" + _number(2**62 - 1),
    b"\x04\x04\x07\x00",
    b"\x05\x00\x07",
    b"\x05\x08\x07",
    b"\x11\x00" + _number(2**62 - 1),
    b"\x15\x00\x00",
]

CONTROL_FRAMES: Final = [
    b"\x00",
    b"\x01",
    b"\x02\x00\x00\x00\x00",
    b"\x02" + _number(2**40) + b"\x00\x00\x00",
    b"\x02\x09\x00\x02\x01\x01\x00\x01\x00",
    b"\x03\x01\x00\x00\x01\x01\x01\x01",
    b"\x06\x00\x04\x01\x00\x00\x00",
    b"\x06" + _number(2**61) + b"\x01x",
    b"\x07\x03abc",
    b"\x10" + _number(2**62 - 1),
    b"\x12" + _number(2**60),
    b"\x13\x00",
    b"\x14\x00",
    b"\x16\x00",
    b"\x17\x00",
    b"\x18\x01\x00\x08idididid" + _TOKEN,
    b"\x18\x09\x09\x08idididid" + _TOKEN,
    b"\x19\x00",
    b"\x19\x01",
    b"\x19\x40\x63",
    b"\x1a12345678",
    b"\x1b12345678",
    b"\x1c\x01\x00\x03bye",
    b"\x1d\x01\x03bye",
    b"\x1e",
    b"\x30datagram",
    b"\x40\xff",
]

FRAMES: Final = STREAM_FRAMES + CONTROL_FRAMES
