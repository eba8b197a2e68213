"""Which size of datagram to send: what the kernel knows of the path, unless that gets lost."""

from __future__ import annotations

from aspenkv.limits import (
    BLACK_HOLE_LOSSES,
    DATAGRAM_BYTES_MIN,
    LARGE_DATAGRAM_RETRY_S,
    LARGE_DATAGRAM_RETRY_S_MAX,
)

_RETRY_FACTOR = 8


class PathMtu:
    """Falls back to the smallest datagrams while larger ones vanish (RFC 8899 §4.3).

    A path may carry less than the kernel knows where a router drops large packets silently. Then
    losses of large datagrams follow each other with no large one acknowledged between. After
    ``BLACK_HOLE_LOSSES`` of them small datagrams are sent for a while, then large ones are tried
    again. A plain outage looks the same, so the time to the next try grows only if small
    datagrams arrived meanwhile.

    Attributes:
        bytes_max: the largest datagram that the kernel would send.
    """

    def __init__(self) -> None:
        """Begin with the smallest size, which the handshake uses."""
        self.bytes_max = DATAGRAM_BYTES_MIN
        self._losses = 0
        self._retry_at: float | None = None
        self._retry_delay_s = LARGE_DATAGRAM_RETRY_S
        self._did_small_arrive = False

    def arrived(self, datagram_bytes: int) -> None:
        """Take note that a datagram was acknowledged."""
        if datagram_bytes > DATAGRAM_BYTES_MIN:
            self._losses = 0
            self._retry_delay_s = LARGE_DATAGRAM_RETRY_S
        else:
            self._did_small_arrive = True

    def lost(self, datagram_bytes: int) -> None:
        """Take note of a loss, or of one after another that were noticed at one time."""
        if datagram_bytes > DATAGRAM_BYTES_MIN:
            self._losses += 1

    def datagram_bytes(self, now: float) -> int:
        """Return the size to fill datagrams to.

        Args:
            now: seconds, on the clock that all calls use.
        """
        if self._retry_at is not None:
            if now < self._retry_at:
                return DATAGRAM_BYTES_MIN
            if not self._did_small_arrive:
                self._retry_delay_s = LARGE_DATAGRAM_RETRY_S
            self._retry_at = None
            self._losses = 0
        elif self._losses >= BLACK_HOLE_LOSSES:
            self._retry_at = now + self._retry_delay_s
            self._retry_delay_s = min(
                self._retry_delay_s * _RETRY_FACTOR, LARGE_DATAGRAM_RETRY_S_MAX
            )
            self._did_small_arrive = False
            return DATAGRAM_BYTES_MIN
        return self.bytes_max
