"""What the driver takes from inside aioquic: another version that changes it must fail here."""

from __future__ import annotations

import hashlib
import logging

import pytest
from aioquic.quic import events
from aioquic.quic.connection import Limit, QuicConnectionError
from aioquic.quic.packet import QuicStreamFrame
from aioquic.quic.rangeset import RangeSet
from aioquic.tls import Epoch

from aspenkv.limits import (
    ACK_DELAY_S,
    CRYPTO_RANGES_MAX,
    DATAGRAM_BYTES_MIN,
    REPLY_WINDOW_BYTES,
    STREAM_RANGES_MAX,
    STREAM_WINDOW_BYTES,
    STREAMS_UNADMITTED_MAX,
)
from aspenkv.quic.congestion import BurstPacer, Congestion
from aspenkv.quic.core import (
    Core,
    GrantedWindow,
    client_configuration,
    reset_token,
    server_configuration,
)
from aspenkv.quic.packets import encode_stateless_reset
from tests.unit.aspenkv.endpoints import identity

CLIENT = ("198.51.100.7", 50_000)
SERVER = ("203.0.113.1", 4433)
RESET_KEY = b"k" * 32


class Pair:
    """A client's and a server's core, and what passes between them, without any network."""

    def __init__(self) -> None:
        self.now = 100.0
        self.client = Core(client_configuration("test"))
        self.server = Core(
            server_configuration("test", identity().certificate_der, identity().private_key_der),
            reset_key=RESET_KEY,
            original_destination_connection_id=self.client.original_destination_connection_id,
        )
        self.client.connect(SERVER, now=self.now)
        self.events: dict[Core, list[events.QuicEvent]] = {self.client: [], self.server: []}

    def exchange(self) -> None:
        """Let both ends say all that they have to say, and acknowledge it."""
        quiet_at = self.now + 2 * ACK_DELAY_S
        while self.now < quiet_at:
            for sender, receiver, address in (
                (self.client, self.server, CLIENT),
                (self.server, self.client, SERVER),
            ):
                self.now += 0.001
                if sender.peer_address is None:
                    continue
                datagrams, _ = sender.next_burst(self.now)
                for data, _ in datagrams:
                    quiet_at = self.now + 2 * ACK_DELAY_S
                    receiver.receive_datagram(data, address, self.now)
                while (event := receiver.next_event()) is not None:
                    self.events[receiver].append(event)


@pytest.fixture
def pair() -> Pair:
    made = Pair()
    made.exchange()
    assert made.client.is_confirmed
    assert made.server.is_confirmed
    return made


def test_the_cores_agree_on_what_was_set(pair: Pair) -> None:
    assert pair.client._remote_max_streams_bidi == STREAMS_UNADMITTED_MAX
    assert pair.server._remote_max_streams_bidi == 0
    assert pair.client._remote_max_streams_uni == pair.server._remote_max_streams_uni == 0
    assert pair.client._remote_max_stream_data_bidi_remote == STREAM_WINDOW_BYTES
    assert pair.server._remote_max_stream_data_bidi_local == REPLY_WINDOW_BYTES
    assert isinstance(pair.client._loss._pacer, BurstPacer)
    assert isinstance(pair.client.congestion, Congestion)
    assert pair.client.congestion is pair.client._loss._cc
    assert pair.client.round_trip_s > 0


def test_the_certificate_is_the_one_that_was_shown(pair: Pair) -> None:
    shown = hashlib.sha256(pair.client.peer_certificate_der).digest()
    assert shown == identity().fingerprint
    assert not pair.server.peer_certificate_der


def test_a_window_grows_only_when_it_is_granted(pair: Pair) -> None:
    pair.client.send_stream_data(0, bytes(3 * STREAM_WINDOW_BYTES))
    pair.exchange()
    stream = pair.server._streams[0]
    assert isinstance(stream.max_stream_data_local, GrantedWindow)
    assert stream.max_stream_data_local == stream.receiver.highest_offset == STREAM_WINDOW_BYTES
    assert pair.client.unsent_bytes(0) == 2 * STREAM_WINDOW_BYTES
    assert not pair.client.is_all_sent(0)
    pair.server.allow_stream_data(0, 4 * STREAM_WINDOW_BYTES)
    pair.server.allow_stream_data(0, 1)  # it never shrinks
    pair.exchange()
    assert stream.receiver.highest_offset == 3 * STREAM_WINDOW_BYTES
    assert stream.max_stream_data_local == 4 * STREAM_WINDOW_BYTES
    assert pair.client.is_all_sent(0)
    assert pair.client.unsent_bytes(0) == 0


def test_the_window_of_the_connection_does_not_bind(pair: Pair) -> None:
    limit = pair.server._local_max_data
    assert isinstance(limit, Limit)
    assert limit.value == 1 << 60


def test_more_streams_are_announced(pair: Pair) -> None:
    pair.server.allow_streams(10)
    pair.exchange()
    assert pair.client._remote_max_streams_bidi == STREAMS_UNADMITTED_MAX + 10


def test_an_acknowledgement_waits_and_rides(pair: Pair) -> None:
    pair.now += 1.0
    pair.client.send_stream_data(0, b"x")
    [(request, _)], has_more = pair.client.next_burst(pair.now)
    assert not has_more
    had_ack_pending = pair.server.has_ack_pending
    pair.server.receive_datagram(request, CLIENT, pair.now)
    assert pair.server.has_ack_pending > had_ack_pending
    assert pair.server.next_burst(pair.now) == ([], False)
    timer = pair.server.get_timer()
    assert timer == pytest.approx(pair.now + ACK_DELAY_S)
    pair.server.ack_at(pair.now)
    [(ack, _)], _ = pair.server.next_burst(pair.now)
    assert not pair.server.has_ack_pending
    in_flight = pair.client.congestion.bytes_in_flight
    pair.client.receive_datagram(ack, SERVER, pair.now)
    assert pair.client.congestion.bytes_in_flight < in_flight


def test_datagrams_can_be_made_larger(pair: Pair) -> None:
    assert pair.client.datagram_bytes == DATAGRAM_BYTES_MIN
    pair.client.fill_datagrams_to(9000)
    pair.client.send_stream_data(0, bytes(50_000))
    datagrams, _ = pair.client.next_burst(pair.now)
    assert max(len(data) for data, _ in datagrams) == 9000
    assert pair.client._loss._pacer._max_datagram_size == 9000


def test_a_burst_is_a_part_of_the_window(pair: Pair) -> None:
    pair.client.congestion.congestion_window = 1_000_000
    pair.client._loss._pacer.update_rate(congestion_window=1_000_000, smoothed_rtt=0.001)
    pair.now += 1.0
    pair.client.send_stream_data(0, bytes(500_000))
    pair.client._streams[0].max_stream_data_remote = 500_000
    datagrams, has_more = pair.client.next_burst(pair.now)
    assert has_more
    assert len(datagrams) <= 17
    assert pair.client.congestion.congestion_window == 1_000_000


def test_a_stream_is_given_up_at_both_ends(pair: Pair) -> None:
    pair.client.send_stream_data(0, b"x")
    pair.exchange()
    assert pair.client.give_up(0, 7)
    assert not pair.client.give_up(4, 7)
    pair.exchange()
    kinds = [type(event) for event in pair.events[pair.server]]
    assert events.StreamReset in kinds
    assert events.StopSendingReceived in kinds
    assert not pair.server.give_up(0, 7)
    pair.now += 1.0
    pair.client.handle_timer(pair.now)
    pair.exchange()
    assert 0 not in pair.client._streams


def test_a_sign_of_life_may_exceed_the_window(pair: Pair) -> None:
    pair.client.congestion.congestion_window = 0
    pair.client.ask_for_a_sign()
    datagrams, _ = pair.client.next_burst(pair.now)
    assert datagrams


def test_a_silence_is_forgotten(pair: Pair) -> None:
    pair.client.send_stream_data(0, b"x")
    pair.client.next_burst(pair.now)
    for _ in range(5):
        timer = pair.client.get_timer()
        assert timer is not None
        pair.now = timer
        pair.client.handle_timer(pair.now)
        pair.client.next_burst(pair.now)
    late = pair.client.get_timer()
    pair.client.forget_silence()
    early = pair.client.get_timer()
    assert late is not None
    assert early is not None
    assert early - pair.now < (late - pair.now) / 10


def test_the_tokens_of_a_server_follow_from_its_key(pair: Pair) -> None:
    for connection_id in pair.server._host_cids:
        assert connection_id.stateless_reset_token == reset_token(RESET_KEY, connection_id.cid)
    assert len(pair.server._host_cids) > 1
    pair.client.send_stream_data(0, bytes(100))
    [(data, _)], _ = pair.client.next_burst(pair.now)
    reset = encode_stateless_reset(RESET_KEY, data)
    assert reset is not None
    assert pair.client.is_stateless_reset(reset)
    assert not pair.client.is_stateless_reset(reset[:-1] + bytes([reset[-1] ^ 1]))
    assert not pair.server.is_stateless_reset(reset)
    other = encode_stateless_reset(b"other", data)
    assert other is not None
    assert not pair.client.is_stateless_reset(other)


def test_an_ending_says_whose_it_is(pair: Pair) -> None:
    before = pair.client.ending
    assert before is None
    pair.client.close(error_code=9, reason_phrase="enough")
    pair.exchange()
    assert pair.client.ending == (9, "enough", False)
    assert pair.server.ending == (9, "enough", True)


def test_the_first_cipher_is_the_fast_one(pair: Pair) -> None:
    suite = pair.client._cryptos[Epoch.ONE_RTT].send.cipher_suite
    assert suite is not None
    assert suite.name == "AES_128_GCM_SHA256"


def test_what_a_peer_does_wrong_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pair = Pair()
    pair.exchange()
    pair.server._local_max_streams_bidi.value = 0
    pair.client.send_stream_data(0, b"x")
    pair.exchange()
    assert pair.client.ending is not None
    assert not caplog.records


def test_a_peer_that_leaves_holes_in_a_stream_is_hung_up_on(pair: Pair) -> None:
    pair.client.send_stream_data(0, b"")
    sender = pair.client._streams[0].sender
    for index in range(1, STREAM_RANGES_MAX + 2):
        sender._buffer_start = sender._buffer_stop = sender.highest_offset = 2 * index
        sender._pending = RangeSet()
        sender._buffer.clear()
        sender.write(b"x")
        pair.exchange()
    assert pair.server.ending is not None
    assert "holes" in pair.server.ending.reason


def test_a_peer_that_leaves_holes_in_its_handshake_is_hung_up_on(pair: Pair) -> None:
    receiver = pair.server._crypto_streams[Epoch.ONE_RTT].receiver
    for index in range(1, CRYPTO_RANGES_MAX + 1):
        receiver.handle_frame(QuicStreamFrame(data=b"x", offset=2 * index))
    with pytest.raises(QuicConnectionError):
        receiver.handle_frame(QuicStreamFrame(data=b"x", offset=1_000_000))
