"""The pure parts of the driver: sizes of datagrams, congestion, growth of requests, rates."""

from __future__ import annotations

import pytest
from aioquic.buffer import Buffer  # type: ignore[attr-defined] # it re-exports it
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicPacketType,
    QuicProtocolVersion,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.tls import Epoch
from hypothesis import given
from hypothesis import strategies as st

from aspenkv.limits import (
    BLACK_HOLE_LOSSES,
    CONGESTION_WINDOW_BYTES_MAX,
    CONGESTION_WINDOW_BYTES_MIN,
    CONNECTION_REQUEST_BYTES_MAX,
    DATAGRAM_BYTES_MIN,
    LARGE_DATAGRAM_RETRY_S,
    LARGE_DATAGRAM_RETRY_S_MAX,
    PACING_BURST_S,
    REQUEST_BYTES_MAX,
)
from aspenkv.quic.congestion import BurstPacer, Congestion
from aspenkv.quic.growth import RequestGrowth
from aspenkv.quic.packets import encode_refusal, encode_stateless_reset
from aspenkv.quic.path import PathMtu
from aspenkv.quic.rates import TokenBucket

LARGE = 9000
GROWN_MAX = CONNECTION_REQUEST_BYTES_MAX // REQUEST_BYTES_MAX

# --- sizes of datagrams ---------------------------------------------------------------------------


def _path() -> PathMtu:
    path = PathMtu()
    path.bytes_max = LARGE
    return path


def _lose(path: PathMtu) -> None:
    for _ in range(BLACK_HOLE_LOSSES):
        path.lost(LARGE)


def test_a_path_begins_with_the_smallest_datagrams() -> None:
    assert PathMtu().datagram_bytes(0.0) == DATAGRAM_BYTES_MIN


def test_some_losses_do_not_matter() -> None:
    path = _path()
    for _ in range(10):
        path.lost(LARGE)
        path.lost(LARGE)
        path.arrived(LARGE)
        assert path.datagram_bytes(0.0) == LARGE


def test_small_losses_do_not_matter() -> None:
    path = _path()
    for _ in range(10):
        path.lost(DATAGRAM_BYTES_MIN)
    assert path.datagram_bytes(0.0) == LARGE


def test_a_black_hole_is_tried_less_and_less_often() -> None:
    path = _path()
    now, delays = 0.0, []
    for _ in range(6):
        _lose(path)
        assert path.datagram_bytes(now) == DATAGRAM_BYTES_MIN
        path.arrived(DATAGRAM_BYTES_MIN)
        began_at = now
        while path.datagram_bytes(now) == DATAGRAM_BYTES_MIN:
            now += 1.0
        delays.append(now - began_at)
    assert delays[0] == LARGE_DATAGRAM_RETRY_S
    assert delays[1] == 8 * LARGE_DATAGRAM_RETRY_S
    assert delays[-1] == LARGE_DATAGRAM_RETRY_S_MAX


def test_after_an_outage_large_datagrams_are_soon_tried_again() -> None:
    path = _path()
    now = 0.0
    for _ in range(6):
        _lose(path)
        assert path.datagram_bytes(now) == DATAGRAM_BYTES_MIN
        now += LARGE_DATAGRAM_RETRY_S
        assert path.datagram_bytes(now) == LARGE


def test_a_large_datagram_that_arrives_ends_the_suspicion() -> None:
    path = _path()
    for _ in range(2):
        _lose(path)
        assert path.datagram_bytes(0.0) == DATAGRAM_BYTES_MIN
        path.arrived(DATAGRAM_BYTES_MIN)
        assert path.datagram_bytes(LARGE_DATAGRAM_RETRY_S) == LARGE
        path.arrived(LARGE)
        assert path.datagram_bytes(LARGE_DATAGRAM_RETRY_S) == LARGE
        path._retry_at = None


# --- congestion -----------------------------------------------------------------------------------


def _packet(number: int, size: int, sent_time: float) -> QuicSentPacket:
    return QuicSentPacket(
        epoch=Epoch.ONE_RTT,
        in_flight=True,
        is_ack_eliciting=True,
        is_crypto_packet=False,
        packet_number=number,
        packet_type=QuicPacketType.ONE_RTT,
        sent_time=sent_time,
        sent_bytes=size,
    )


def test_a_window_that_is_not_used_does_not_grow() -> None:
    congestion = Congestion(max_datagram_size=1200)
    before = congestion.congestion_window
    for number in range(100):
        packet = _packet(number, 100, number)
        congestion.on_packet_sent(packet=packet)
        congestion.on_packet_acked(now=number + 0.1, packet=packet)
    assert congestion.congestion_window == before
    assert congestion.bytes_in_flight == 0


def test_a_window_that_is_used_grows_as_far_as_is_useful() -> None:
    congestion = Congestion(max_datagram_size=1200)
    congestion.on_rtt_measurement(now=0.0, rtt=0.0001)
    number = 0
    for turn in range(40):
        packets = []
        while congestion.bytes_in_flight + 1200 <= congestion.congestion_window:
            packets.append(_packet(number, 1200, float(turn)))
            congestion.on_packet_sent(packet=packets[-1])
            number += 1
        for packet in packets:
            congestion.on_packet_acked(now=turn + 0.1, packet=packet)
    window = congestion.congestion_window
    assert CONGESTION_WINDOW_BYTES_MIN <= window < CONGESTION_WINDOW_BYTES_MIN + 1200
    congestion.on_rtt_measurement(now=99.0, rtt=10.0)
    assert congestion._window_bytes_max == CONGESTION_WINDOW_BYTES_MAX


def test_a_loss_is_noticed_and_halves_the_window() -> None:
    congestion = Congestion(max_datagram_size=1200)
    packet = _packet(0, 1200, 1.0)
    congestion.on_packet_sent(packet=packet)
    before = congestion.congestion_window
    congestion.on_packets_lost(now=2.0, packets=iter([packet]))
    assert congestion.congestion_window == before // 2
    assert congestion.has_lost
    assert congestion.packets_lost == 1
    assert congestion.bytes_in_flight == 0
    congestion.resize(9000)  # after a loss the window stays
    assert congestion.congestion_window == before // 2


def test_packets_that_expire_leave_the_window_as_it_is() -> None:
    congestion = Congestion(max_datagram_size=1200)
    packet = _packet(0, 1200, 1.0)
    congestion.on_packet_sent(packet=packet)
    before = congestion.congestion_window
    congestion.on_packets_expired(packets=iter([packet]))
    assert congestion.congestion_window == before
    assert congestion.has_lost
    congestion.has_lost = False
    congestion.on_packets_expired(packets=iter([]))
    assert not congestion.has_lost


def test_larger_datagrams_begin_with_a_larger_window() -> None:
    congestion = Congestion(max_datagram_size=1200)
    congestion.resize(9000)
    assert congestion.congestion_window == 90_000


def test_a_burst_lasts_as_long_as_the_timer_can_tell() -> None:
    pacer = BurstPacer(max_datagram_size=1200)
    pacer.update_rate(congestion_window=12_000, smoothed_rtt=0.0001)
    assert pacer.bucket_max == PACING_BURST_S
    pacer.update_rate(congestion_window=12_000, smoothed_rtt=1.0)
    assert pacer.bucket_max > PACING_BURST_S


# --- growth of requests ---------------------------------------------------------------------------


def test_nothing_grows_before_the_client_is_known() -> None:
    granted: list[int] = []
    growth = RequestGrowth(granted.append)
    growth.ask(0)
    assert not granted
    growth.open()
    assert granted == [0]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=200))
def test_requests_grow_in_turn_and_never_too_many(steps: list[tuple[bool, int]]) -> None:
    granted: list[int] = []
    growth = RequestGrowth(granted.append)
    growth.open()
    asked: list[int] = []
    for asks, stream_id in steps:
        if asks:
            if stream_id not in asked:
                asked.append(stream_id)
            growth.ask(stream_id)
        else:
            if stream_id in asked:
                asked.remove(stream_id)
            growth.give_back(stream_id)
        assert growth._granted == set(asked[:GROWN_MAX])
        assert list(growth._waiting) == asked[GROWN_MAX:]


# --- rates ----------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.integers(1, 20))
def test_a_bucket_bounds_the_rate(pauses: list[float], rate_per_s: int) -> None:
    bucket = TokenBucket(float(rate_per_s), now=0.0)
    now, taken = 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
    assert taken <= rate_per_s * (1 + now) + 1e-6


# --- packets without a connection -----------------------------------------------------------------


def test_a_refusal_is_a_packet_of_the_handshake() -> None:
    refusal = encode_refusal(
        QuicProtocolVersion.VERSION_1,
        source_id=b"s" * 8,
        destination_id=b"d" * 8,
        code=QuicErrorCode.CONNECTION_REFUSED,
    )
    header = pull_quic_header(Buffer(data=refusal), host_cid_length=8)
    assert header.packet_type is QuicPacketType.INITIAL
    assert header.destination_cid == b"d" * 8


@pytest.mark.parametrize("size", [22, 30, 43, 44, 45, 1200])
def test_a_reset_is_shorter_than_what_it_answers(size: int) -> None:
    reset = encode_stateless_reset(b"key", bytes([0x40]) + bytes(size - 1))
    assert reset is not None
    assert len(reset) < size
    assert not reset[0] & 0x80
    assert reset[0] & 0x40


def test_what_is_too_short_is_not_answered() -> None:
    assert encode_stateless_reset(b"key", bytes(21)) is None
