"""The packets that a server sends without keeping anything of whom it sends them to."""

from __future__ import annotations

import os
from typing import Final

from aioquic.quic.connection import TRANSPORT_CLOSE_FRAME_CAPACITY
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from aspenkv.limits import DATAGRAM_BYTES_MIN
from aspenkv.quic.core import CONNECTION_ID_BYTES, RESET_TOKEN_BYTES, reset_token

# A first byte as of a packet of a connection, bytes that look encrypted, the token.
_RESET_BYTES: Final = 43
_RESET_BYTES_MIN: Final = 5 + RESET_TOKEN_BYTES  # RFC 9000 §10.3
_SHORT_HEADER: Final = 0x40
_RANDOM_BITS: Final = 0x3F


def encode_refusal(
    version: int, *, source_id: bytes, destination_id: bytes, code: QuicErrorCode
) -> bytes:
    """Return an Initial packet that refuses a connection (RFC 9000 §10.2.3).

    Args:
        version: of QUIC, as the client's packet has it.
        source_id: the destination connection id of the client's packet; its keys follow from it.
        destination_id: the source connection id of the client's packet.
        code: why.
    """
    crypto = CryptoPair()
    crypto.setup_initial(cid=source_id, is_client=False, version=version)
    builder = QuicPacketBuilder(
        host_cid=source_id,
        is_client=False,
        max_datagram_size=DATAGRAM_BYTES_MIN,
        peer_cid=destination_id,
        version=version,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    frame = builder.start_frame(
        QuicFrameType.TRANSPORT_CLOSE, capacity=TRANSPORT_CLOSE_FRAME_CAPACITY
    )
    frame.push_uint_var(code)
    frame.push_uint_var(QuicFrameType.PADDING)
    frame.push_uint_var(0)
    datagrams, _ = builder.flush()
    return datagrams[0]


def encode_stateless_reset(reset_key: bytes, datagram: bytes) -> bytes | None:
    """Return what tells a client that its connection is not known (RFC 9000 §10.3).

    Args:
        reset_key: secret of the server.
        datagram: the client's, with a short header.

    Returns:
        None if the datagram is too short for an answer that is shorter, without which two servers
        could answer each other for ever.
    """
    size = min(_RESET_BYTES, len(datagram) - 1)
    if size < _RESET_BYTES_MIN:
        return None
    connection_id = datagram[1 : 1 + CONNECTION_ID_BYTES]
    noise = os.urandom(size - RESET_TOKEN_BYTES)
    first = bytes([_SHORT_HEADER | noise[0] & _RANDOM_BITS])
    return first + noise[1:] + reset_token(reset_key, connection_id)
