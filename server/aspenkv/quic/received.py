"""Which bytes of a stream have arrived, with holes between them (RFC 9000 §21.7).

aioquic looks through all ranges for each frame. A peer that sends every second byte makes as many
ranges as it likes, and each of its bytes costs more than the one before.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from aioquic.quic.connection import QuicConnectionError
from aioquic.quic.packet import QuicErrorCode, QuicFrameType


class ReceivedRanges:
    """As much of aioquic's ``RangeSet`` as the receiving part of a stream uses, and bounded."""

    __slots__ = ("_count_max", "_starts", "_stops")

    def __init__(self, count_max: int) -> None:
        """Begin with nothing received; at most ``count_max`` ranges may be apart."""
        self._count_max = count_max
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self._starts)

    def __getitem__(self, index: int) -> range:
        """Return a range, counted from the lowest. Raises :class:`IndexError`."""
        return range(self._starts[index], self._stops[index])

    def add(self, start: int, stop: int) -> None:
        """Add a range, and merge it with those that it touches.

        Raises:
            QuicConnectionError: there are too many; the connection must end.
        """
        first = bisect_left(self._stops, start)
        after = bisect_right(self._starts, stop)
        if first < after:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[after - 1])
        elif len(self._starts) >= self._count_max:
            raise QuicConnectionError(
                error_code=QuicErrorCode.INTERNAL_ERROR,
                frame_type=QuicFrameType.PADDING,
                reason_phrase="Too many holes in a stream",
            )
        self._starts[first:after] = [start]
        self._stops[first:after] = [stop]

    def shift(self) -> range:
        """Remove and return the lowest range."""
        return range(self._starts.pop(0), self._stops.pop(0))
