"""What the echo servers are asked: a reply of a given length."""

from __future__ import annotations

import struct

_HEAD = struct.Struct(">I")
HEAD_BYTES = _HEAD.size


def request(send_bytes: int, reply_bytes: int) -> bytes:
    """Return a request of ``send_bytes`` bytes, or a little more, for so long a reply."""
    return _HEAD.pack(reply_bytes) + bytes(max(0, send_bytes - _HEAD.size))


def reply(received: bytes) -> bytes:
    """Return what a request asks for."""
    return bytes(_HEAD.unpack_from(received)[0])


def reply_bytes(received: bytes) -> int:
    """Return how long a reply a request asks for."""
    size: int = _HEAD.unpack_from(received)[0]
    return size
