"""Datagrams that nobody should send, of which some look like QUIC at first sight."""

from __future__ import annotations

import random
from collections.abc import Iterator

_SIZES = (0, 1, 7, 20, 100, 1200, 1452, 9000)
_VERSION = (1).to_bytes(4, "big")


def noise(count: int, seed: int) -> Iterator[bytes]:
    """Yield random datagrams."""
    dice = random.Random(seed)
    for _ in range(count):
        body = dice.randbytes(dice.choice(_SIZES))
        ids = b"\x08" + dice.randbytes(8) + b"\x08" + dice.randbytes(8)
        yield dice.choice(
            (
                body,
                b"\x40" + body,  # a short header: of which connection?
                b"\xc0" + _VERSION + ids + body,  # the first of a client
                b"\xc0" + _VERSION + ids + b"\x10" + body,  # with a token
                b"\xe0" + _VERSION + ids + body,  # of a handshake
                b"\xf0" + _VERSION + ids + body,  # a retry
                b"\xc0" + dice.randbytes(4) + ids + body,  # of another version
                b"\x80" + bytes(4) + ids + body,  # version negotiation
                b"\xc0" + _VERSION + b"\xff" + body,  # with an id that is too long
            )
        )
