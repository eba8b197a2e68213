"""The application error codes with which QUIC streams and connections are ended. Pure.

They only say how the transport ends (RFC 9000 §20.2). What became of a request is said by its
reply, or by none.
"""

from enum import IntEnum


class StreamCode(IntEnum):
    """Carried by RESET_STREAM and STOP_SENDING: one call or watch ends, nothing else."""

    CANCELLED = 0
    """The client no longer wants the answer."""
    DEADLINE = 1
    """The server stopped working on the request because its time was over."""
    TOO_LARGE = 2
    """The half that was being received is longer than its bound."""


class ConnectionCode(IntEnum):
    """Carried by CONNECTION_CLOSE."""

    DONE = 0
    """Nothing more is wanted of this connection."""
    GOING_AWAY = 1
    """The server is about to end: use another endpoint, or this one later."""
    PROTOCOL = 2
    """The other end broke the protocol."""
    REFUSED = 3
    """The ticket is no longer good, or no hello came in time."""
    BUSY = 4
    """The server has as many connections as it takes: come back later."""
