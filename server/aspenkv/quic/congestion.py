"""Congestion control: NewReno, with the bounds that a process in Python can use."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final

from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketPacer

from aspenkv.limits import (
    CONGESTION_WINDOW_BYTES_MAX,
    CONGESTION_WINDOW_BYTES_MIN,
    PACING_BURST_S,
    SEND_BYTES_PER_S_MAX,
    SHORTEST_ROUND_TRIP_AGE_S_MAX,
)
from aspenkv.quic.path import PathMtu

CONGESTION_CONTROL: Final = "aspenkv"
_INITIAL_WINDOW_DATAGRAMS: Final = 10  # RFC 9002 §7.2


class Congestion(RenoCongestionControl):
    """NewReno (RFC 9002 §7) that grows only when its window was used, and not without end.

    A window that grows with every acknowledged small call would let the first bulk transfer
    overflow every buffer on its way (RFC 9002 §7.8).

    Attributes:
        path: what is known of the sizes of datagram that arrive.
        has_lost: whether a loss was noticed since the driver set it to False.
        packets_lost: since the connection began.
    """

    def __init__(self, *, max_datagram_size: int) -> None:
        """Begin with the initial window for datagrams of this size, in bytes."""
        super().__init__(max_datagram_size=max_datagram_size)
        self.path = PathMtu()
        self.has_lost = False
        self.packets_lost = 0
        self._window_bytes_max = CONGESTION_WINDOW_BYTES_MIN
        self._round_trip_s = inf  # the least of this period
        self._period_end = 0.0

    def resize(self, datagram_bytes: int) -> None:
        """Count in datagrams of another size (RFC 9002 §7.2)."""
        self._max_datagram_size = datagram_bytes
        if self.ssthresh is None:
            self.congestion_window = max(
                self.congestion_window, _INITIAL_WINDOW_DATAGRAMS * datagram_bytes
            )

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """Let the window grow if it was what held the sender back."""
        self.path.arrived(packet.sent_bytes)
        is_in_use = self.bytes_in_flight * 2 >= self.congestion_window
        if is_in_use and self.congestion_window < self._window_bytes_max:
            super().on_packet_acked(now=now, packet=packet)
        else:
            self.bytes_in_flight -= packet.sent_bytes

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """Shrink the window."""
        packets = list(packets)
        super().on_packets_lost(now=now, packets=packets)
        self._note_loss(packets)

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        """Take note of packets that a probe timeout sends again, or that no longer matter."""
        packets = list(packets)
        super().on_packets_expired(packets=packets)
        self._note_loss(packets)

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """Bound the window by what this process can send in a round trip.

        In the shortest one: what waits in queues makes round trips longer, and a window that
        followed them would make the queues longer still.
        """
        super().on_rtt_measurement(now=now, rtt=rtt)
        if now >= self._period_end:
            self._round_trip_s = inf
            self._period_end = now + SHORTEST_ROUND_TRIP_AGE_S_MAX
        if rtt < self._round_trip_s:
            self._round_trip_s = rtt
            self._window_bytes_max = min(
                max(int(rtt * SEND_BYTES_PER_S_MAX), CONGESTION_WINDOW_BYTES_MIN),
                CONGESTION_WINDOW_BYTES_MAX,
            )

    def _note_loss(self, packets: list[QuicSentPacket]) -> None:
        if packets:
            self.has_lost = True
            self.packets_lost += len(packets)
            self.path.lost(max(packet.sent_bytes for packet in packets))


class BurstPacer(QuicPacketPacer):
    """A pacer whose bursts last as long as the event loop's timer can tell apart.

    A timer of a millisecond cannot space packets by microseconds; on a short path the sender
    would sleep longer than the whole window takes.
    """

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Follow the window, in bytes, and the round-trip time, in seconds."""
        super().update_rate(congestion_window, smoothed_rtt)
        self.bucket_max = max(self.bucket_max, PACING_BURST_S)


register_congestion_control(CONGESTION_CONTROL, Congestion)
