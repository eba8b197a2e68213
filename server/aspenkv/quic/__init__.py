"""QUIC connections for trio, over aioquic's core without I/O. The only importer of aioquic.

``connect_quic`` and ``serve_quic`` are the two ends, ``bind_sockets`` gives a server its sockets.
One stream carries one request and its reply.
"""

from aspenkv.quic.client import ALPN, connect_quic
from aspenkv.quic.connection import ConnectionStatistics, QuicConnection
from aspenkv.quic.errors import ConnectionClosedError, StreamResetError
from aspenkv.quic.server import (
    QuicServer,
    RequestHandler,
    ServerLimits,
    ServerStatistics,
    serve_quic,
)
from aspenkv.quic.stream import QuicStream
from aspenkv.quic.udp import UdpSocket, bind_sockets

__all__ = [
    "ALPN",
    "ConnectionClosedError",
    "ConnectionStatistics",
    "QuicConnection",
    "QuicServer",
    "QuicStream",
    "RequestHandler",
    "ServerLimits",
    "ServerStatistics",
    "StreamResetError",
    "UdpSocket",
    "bind_sockets",
    "connect_quic",
    "serve_quic",
]
