"""A server reads a request."""

from __future__ import annotations

from typing import Final

from aspenkv.errors import ProtocolVersionError
from aspenkv.protocol import BadRequestError, decode_request, encode_request
from fuzz.examples import examples

SEEDS: Final = examples("request")


def check(data: bytes) -> None:
    """Any bytes are refused by the protocol's errors, or are a request that can be sent again."""
    try:
        decoded = decode_request(data)
    except (BadRequestError, ProtocolVersionError):
        return
    assert decode_request(encode_request(*decoded)) == decoded
