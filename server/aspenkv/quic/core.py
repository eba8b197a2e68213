"""One connection of aioquic, with the few changes that need its private attributes.

No other module touches what aioquic does not document. ``tests/unit/aspenkv/test_quic_core.py``
checks each attribute used here, so that another version of aioquic fails there and not in use.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import Final, NamedTuple, Self

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection as AioquicConnection
from aioquic.quic.connection import QuicConnectionAdapter, QuicConnectionState
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import CipherSuite, Epoch
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key

from aspenkv.limits import (
    ACK_DELAY_S,
    CRYPTO_RANGES_MAX,
    DATAGRAM_BYTES_MIN,
    IDLE_TIMEOUT_S,
    REPLY_WINDOW_BYTES,
    SEND_BURST_BYTES_MAX,
    SEND_BURST_DATAGRAMS_MAX,
    STREAM_RANGES_MAX,
    STREAM_WINDOW_BYTES,
    STREAMS_UNADMITTED_MAX,
)
from aspenkv.quic.congestion import CONGESTION_CONTROL, BurstPacer, Congestion
from aspenkv.quic.datagrams import Address, Datagram
from aspenkv.quic.received import ReceivedRanges

CONNECTION_ID_BYTES: Final = 8
RESET_TOKEN_BYTES: Final = 16
SUPPORTED_VERSIONS: Final[list[int]] = [QuicProtocolVersion.VERSION_1]

# The bound on a whole connection is that on its streams; see Core.
_CONNECTION_WINDOW_BYTES: Final = 1 << 60
_NO_VERIFICATION: Final = 0  # ssl.CERT_NONE: the driver compares the certificate itself


class GrantedWindow(int):
    """A limit on what may arrive that only the driver raises.

    aioquic doubles a limit (``limit *= 2``) when half of it has *arrived*, read or not, so that a
    peer decides how much is buffered. Here doubling does nothing.
    """

    __slots__ = ()

    def __imul__(self, _factor: int) -> Self:
        """Stay as granted."""
        return self


class _Silence(QuicConnectionAdapter):
    """A logger for aioquic, which logs as a warning what a peer did wrong.

    Anyone can do wrong, as often as they like; and for each packet it logs how it fares.
    """

    def debug(self, msg: object, *args: object, **kwargs: object) -> None:
        """Say nothing."""

    info = warning = error = debug


_SILENCE: Final = _Silence(logging.getLogger(__name__), {})


class Ending(NamedTuple):
    """Why a connection ended: a code of QUIC or of the application, a text, and whose doing."""

    code: int
    reason: str
    is_by_peer: bool


class Core(AioquicConnection):
    """The state of one connection, without a socket or a clock.

    What a peer may send is bounded for each stream, and the number of its streams is; so no window
    of the whole connection is needed.
    """

    def __init__(
        self,
        configuration: QuicConfiguration,
        *,
        reset_key: bytes = b"",
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
    ) -> None:
        """Begin a connection.

        Args:
            configuration: of :func:`client_configuration` or :func:`server_configuration`.
            reset_key: secret from which a server makes its stateless reset tokens.
            original_destination_connection_id: server: what the client chose first.
            retry_source_connection_id: server: what its Retry made of it.
        """
        self._reset_key = reset_key
        self._data_space: QuicPacketSpace | None = None  # once the handshake is confirmed
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self._logger = self._loss._logger = _SILENCE
        streams_max = 0 if configuration.is_client else STREAMS_UNADMITTED_MAX
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = streams_max
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 0
        self._local_max_stream_data_bidi_local = GrantedWindow(REPLY_WINDOW_BYTES)
        self._local_max_stream_data_bidi_remote = GrantedWindow(STREAM_WINDOW_BYTES)
        self._ack_delay = ACK_DELAY_S
        self._loss._pacer = BurstPacer(max_datagram_size=DATAGRAM_BYTES_MIN)
        congestion = self._loss._cc
        assert isinstance(congestion, Congestion), "named in the configuration"
        self.congestion: Final = congestion
        self._set_reset_tokens()

    @property
    def peer_address(self) -> Address | None:
        """Where the other end is now; None before anything came from it."""
        address: Address | None = self.get_peer_address()
        return address

    @property
    def is_confirmed(self) -> bool:
        """Whether the handshake is confirmed (RFC 9001 §4.1.2)."""
        return self._handshake_confirmed

    @property
    def ending(self) -> Ending | None:
        """Why the connection ends or has ended; None while it goes on."""
        event = self._close_event
        if event is None:
            return None
        is_by_peer = self._state is QuicConnectionState.DRAINING
        return Ending(event.error_code, event.reason_phrase, is_by_peer)

    @property
    def streams_left(self) -> int:
        """How many more streams the peer lets this end open now.

        The core would take more and keep them back, but not what resets them, which the peer could
        not but take for a breach of the protocol.
        """
        return self._remote_max_streams_bidi - self._local_next_stream_id_bidi // 4

    @property
    def has_ack_pending(self) -> bool:
        """Whether something that arrived by streams is still to be acknowledged."""
        space = self._data_space
        return space is not None and space.ack_at is not None

    @property
    def round_trip_s(self) -> float:
        """The smoothed round-trip time; 0.0 before the first was measured."""
        return self._loss._rtt_smoothed

    @property
    def datagram_bytes(self) -> int:
        """The size that datagrams are filled to."""
        return self._max_datagram_size

    @property
    def peer_certificate_der(self) -> bytes:
        """The certificate that the other end has proved to hold the key of; b"" if none."""
        certificate = self.tls._peer_certificate
        return b"" if certificate is None else certificate.public_bytes(Encoding.DER)

    def ack_at(self, now: float) -> None:
        """Let what is to be acknowledged ride on the packet that is sent next."""
        space = self._data_space
        if space is not None and space.ack_at is not None:
            space.ack_at = min(space.ack_at, now)

    def ask_for_a_sign(self) -> None:
        """Send something that the peer acknowledges, even if the congestion window is full."""
        self._send_probe()

    def forget_silence(self) -> None:
        """Probe at once for what was sent while nothing was heard.

        The probe timeout doubles each time that nothing comes back (RFC 9002 §6.2.1). When the path
        works again, that could mean to wait for as long as it was broken.
        """
        self._loss._pto_count = 0

    def next_burst(self, now: float) -> tuple[list[Datagram], bool]:
        """Return datagrams to send, and whether there may be more of them at once.

        The core alone would encrypt all that the congestion window allows before the first of it
        could leave.
        """
        congestion = self.congestion
        window = congestion.congestion_window
        burst = min(SEND_BURST_BYTES_MAX, SEND_BURST_DATAGRAMS_MAX * self._max_datagram_size)
        in_flight = congestion.bytes_in_flight
        congestion.congestion_window = min(window, in_flight + burst)
        try:
            datagrams = self.datagrams_to_send(now)
        finally:
            congestion.congestion_window = window
        sent = congestion.bytes_in_flight - in_flight
        return datagrams, sent + self._max_datagram_size > burst

    def fill_datagrams_to(self, datagram_bytes: int) -> None:
        """Send datagrams of up to this size from now on."""
        if datagram_bytes != self._max_datagram_size:
            self._max_datagram_size = datagram_bytes
            self._loss._pacer._max_datagram_size = datagram_bytes
            self.congestion.resize(datagram_bytes)

    def allow_streams(self, count_more: int) -> None:
        """Let the peer have more streams open at a time."""
        self._local_max_streams_bidi.value += count_more

    def allow_stream_data(self, stream_id: int, offset_max: int) -> None:
        """Let the peer send up to an offset of a stream; nothing if the stream is finished."""
        stream = self._streams.get(stream_id)
        if stream is not None and offset_max > stream.max_stream_data_local:
            stream.max_stream_data_local = GrantedWindow(offset_max)

    def unsent_bytes(self, stream_id: int) -> int:
        """Return how much of a stream waits to be sent for the first time."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.sender.buffer_is_empty:
            return 0
        return stream.sender._buffer_stop - stream.sender.highest_offset

    def is_all_sent(self, stream_id: int) -> bool:
        """Tell whether nothing of a stream waits to be sent, or sent again."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.sender.buffer_is_empty

    def give_up(self, stream_id: int, code: int) -> bool:
        """Reset our half of a stream, and ask the peer to reset its own.

        Returns:
            Whether something may still arrive by the stream.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        stream.sender.reset(code)
        if stream.receiver.is_finished:
            return False
        stream.receiver.stop(code)
        return True

    def is_stateless_reset(self, datagram: bytes) -> bool:
        """Tell whether a datagram says that the server has forgotten the connection.

        See RFC 9000 §10.3.1.
        """
        token = self._peer_cid.stateless_reset_token
        return bool(token) and hmac.compare_digest(datagram[-RESET_TOKEN_BYTES:], token)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        for stream in self._crypto_streams.values():
            _bound_ranges(stream, CRYPTO_RANGES_MAX)

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> QuicStream:
        stream: QuicStream = super()._get_or_create_stream(frame_type, stream_id)
        if type(stream.receiver._ranges) is RangeSet:  # this is the first frame that came by it
            _bound_ranges(stream, STREAM_RANGES_MAX)
        return stream

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        self._data_space = self._spaces[Epoch.ONE_RTT]

    def _replenish_connection_ids(self) -> None:
        known = self._host_cid_seq
        super()._replenish_connection_ids()
        if self._host_cid_seq != known:  # a peer may retire the same one as often as it likes
            self._set_reset_tokens()

    def _set_reset_tokens(self) -> None:
        if self._reset_key:
            for connection_id in self._host_cids:
                connection_id.stateless_reset_token = reset_token(
                    self._reset_key, connection_id.cid
                )


def _bound_ranges(stream: QuicStream, count_max: int) -> None:
    """Let few holes be in what a stream receives, before any of it has come."""
    bounded = ReceivedRanges(count_max)
    stream.receiver._ranges = bounded  # type: ignore[assignment] # as much of one as it uses


def reset_token(reset_key: bytes, connection_id: bytes) -> bytes:
    """Return what a server proves with that it once gave out a connection id.

    It follows from a secret that outlives the process, so that after a restart clients of the old
    one learn at once that it is gone (RFC 9000 §10.3.2).
    """
    return hmac.digest(reset_key, connection_id, hashlib.sha256)[:RESET_TOKEN_BYTES]


def _configuration(alpn: str, *, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        alpn_protocols=[alpn],
        # In the order of preference: the first is done in hardware nearly everywhere.
        cipher_suites=[CipherSuite.AES_128_GCM_SHA256, CipherSuite.CHACHA20_POLY1305_SHA256],
        congestion_control_algorithm=CONGESTION_CONTROL,
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=IDLE_TIMEOUT_S,
        is_client=is_client,
        max_data=_CONNECTION_WINDOW_BYTES,
        max_datagram_size=DATAGRAM_BYTES_MIN,
        supported_versions=list(SUPPORTED_VERSIONS),
        verify_mode=_NO_VERIFICATION,
    )


def client_configuration(alpn: str) -> QuicConfiguration:
    """Return what a client's connection begins with; whom it reached is checked by the driver."""
    return _configuration(alpn, is_client=True)


def server_configuration(
    alpn: str, certificate_der: bytes, private_key_der: bytes
) -> QuicConfiguration:
    """Return what a server's connections begin with.

    Args:
        alpn: the protocol that it speaks.
        certificate_der: X.509, DER.
        private_key_der: PKCS #8, DER.
    """
    configuration = _configuration(alpn, is_client=False)
    configuration.certificate = x509.load_der_x509_certificate(certificate_der)
    configuration.private_key = load_der_private_key(private_key_der, password=None)
    return configuration
