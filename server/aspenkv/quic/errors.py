"""How a stream or a connection ended. The codes are those of docs/protocol.md."""

from __future__ import annotations

from typing import Final

from aspenkv.errors import AspenKvError, ConnectionLostError

NO_ERROR: Final = 0
"""Nothing went wrong: who opened the stream or the connection no longer needs it."""
INTERNAL_ERROR: Final = 1
"""A bug at the end that sends it."""
MESSAGE_TOO_LARGE: Final = 2
"""The message is longer than its receiver takes."""
SHUTTING_DOWN: Final = 3
"""The server ends."""
WRONG_SERVER: Final = 4
"""The server is not the one that the client wants."""


class StreamResetError(AspenKvError):
    """One stream was given up; the connection goes on.

    Attributes:
        code: the application's error code.
    """

    def __init__(self, code: int) -> None:
        """Keep the code."""
        super().__init__(f"the stream was reset (code {code})")
        self.code = code


class ConnectionClosedError(ConnectionLostError):
    """The connection ended, and QUIC says why.

    Attributes:
        code: the error code, of the application or of QUIC itself.
        reason: the text that belongs to it.
        is_by_peer: whether the other end closed the connection.
    """

    def __init__(self, code: int, reason: str, *, is_by_peer: bool) -> None:
        """Keep what is known."""
        who = "the other end closed the connection" if is_by_peer else "the connection ended"
        super().__init__(f"{who}: {reason or 'no reason given'} (code {code})")
        self.code = code
        self.reason = reason
        self.is_by_peer = is_by_peer
