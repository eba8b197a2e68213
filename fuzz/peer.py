"""One end of a QUIC connection that keeps to nothing: it changes and makes up what it sends."""

from __future__ import annotations

from typing import Final, NamedTuple

import trio
from aioquic.buffer import Buffer  # type: ignore[attr-defined] # it re-exports it
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import QuicPacketType, QuicProtocolVersion
from aioquic.tls import Epoch

from aspenkv.limits import DATAGRAM_BYTES_MIN
from aspenkv.quic.core import Core
from aspenkv.quic.datagrams import Address
from fuzz.steps import Source
from tests.unit.aspenkv.network import MemorySocket

_EPOCHS: Final = (Epoch.INITIAL, Epoch.HANDSHAKE, Epoch.ONE_RTT)
_LONG_HEADER: Final = 0xC0
_SHORT_HEADER: Final = 0x40
_KEY_PHASE: Final = 0x04
_NUMBER_BYTES: Final = 2
_TAG_BYTES: Final = 16
_PAYLOAD_BYTES_MIN: Final = 4  # which header protection samples (RFC 9001 §5.4.2)
_CRYPTO_BYTES_MAX: Final = 4096  # aioquic's buffer for handshake messages


class Change(NamedTuple):
    """What becomes of the handshake messages of one epoch: ``size`` bytes replaced by others."""

    epoch: Epoch
    offset: int
    size: int
    content: bytes

    def apply(self, messages: bytes) -> bytes:
        """Return the messages as they are sent."""
        start = min(self.offset, len(messages))
        changed = messages[:start] + self.content + messages[start + self.size :]
        return changed[:_CRYPTO_BYTES_MAX]


def decode_change(data: bytes) -> Change:
    """Read a change; any bytes are one."""
    source = Source(data)
    return Change(source.choose(_EPOCHS), source.number(2), source.byte(), source.rest())


class _ChangingCore(Core):
    """Changes its handshake messages before they are encrypted."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        changes: list[Change],
        original_id: bytes | None,
        retry_id: bytes | None,
    ) -> None:
        self._changes = changes
        super().__init__(
            configuration,
            original_destination_connection_id=original_id,
            retry_source_connection_id=retry_id,
        )

    def _push_crypto_data(self) -> None:
        for change in self._changes:
            buffer = self._crypto_buffers[change.epoch]
            if buffer.data:
                changed = change.apply(buffer.data)
                buffer.seek(0)
                buffer.push_bytes(changed)
        super()._push_crypto_data()


class Peer:
    """A core without the driver, moved on by hand. As a server it echoes what comes on streams."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        socket: MemorySocket,
        to: Address,
        *,
        changes: list[Change],
        original_id: bytes | None = None,
        retry_id: bytes | None = None,
    ) -> None:
        """Begin a connection.

        Args:
            configuration: of a client, which then calls :meth:`connect`, or of a server.
            socket: by which datagrams come and go.
            to: where they go.
            changes: of the handshake messages.
            original_id: server: the destination connection id of the client's first packet.
            retry_id: server: the one that its Retry chose, if there was one.
        """
        self._core = _ChangingCore(configuration, changes, original_id, retry_id)
        self._socket = socket
        self._to = to

    @property
    def is_established(self) -> bool:
        """Whether there are keys for packets with a short header."""
        return bool(self._core._cryptos) and self._core._cryptos[Epoch.ONE_RTT].send.is_valid()

    def connect(self) -> None:
        """Send the first packet of a client."""
        self._core.connect(self._to, now=trio.current_time())
        self.pump()

    def take(self, data: bytes) -> None:
        """Take a datagram of the other end."""
        self._core.receive_datagram(data, self._to, trio.current_time())

    def pump(self) -> None:
        """Take what has arrived, and send what follows from it."""
        core, now = self._core, trio.current_time()
        for data, _ in self._socket.receive():
            self.take(data)
        while (event := core.next_event()) is not None:
            if isinstance(event, StreamDataReceived) and not core._is_client:
                core.send_stream_data(event.stream_id, event.data, event.end_stream)
        if core.peer_address is not None:  # a server that has heard nothing has nothing to say
            self.send(*(data for data, _ in core.datagrams_to_send(now)))

    def send(self, *datagrams: bytes) -> None:
        """Send datagrams to the other end."""
        self._socket.send([(data, self._to) for data in datagrams if data])

    def packet(self, payload: bytes) -> bytes:
        """Return a packet with a short header and any payload; b"" if there are no keys."""
        if not self.is_established:
            return b""
        crypto = self._core._cryptos[Epoch.ONE_RTT]
        first = _SHORT_HEADER | _KEY_PHASE * crypto.key_phase | _NUMBER_BYTES - 1
        number = self._next_number()
        header = bytes((first,)) + self._core._peer_cid.cid + _truncated(number)
        sealed: bytes = crypto.encrypt_packet(header, _padded(payload), number)
        return sealed

    def initial(self, payload: bytes) -> bytes:
        """Return an Initial packet with any payload, alone in its datagram; b"" if too late."""
        core = self._core
        if not core._cryptos_initial:
            return b""
        crypto = core._cryptos_initial[QuicProtocolVersion.VERSION_1]
        if not crypto.send.is_valid():
            return b""
        number = self._next_number()
        header = Buffer(capacity=DATAGRAM_BYTES_MIN)
        header.push_uint8(_LONG_HEADER | QuicPacketType.INITIAL.value << 4 | _NUMBER_BYTES - 1)
        header.push_uint32(QuicProtocolVersion.VERSION_1)
        for connection_id in (core._peer_cid.cid, core.host_cid):
            header.push_uint8(len(connection_id))
            header.push_bytes(connection_id)
        header.push_uint_var(len(core._peer_token))
        header.push_bytes(core._peer_token)
        padded = _padded(payload)
        room = DATAGRAM_BYTES_MIN - header.tell() - 2 - _NUMBER_BYTES - _TAG_BYTES
        padded = padded[:room].ljust(room, b"\0")
        header.push_uint_var(_NUMBER_BYTES + len(padded) + _TAG_BYTES)
        header.push_bytes(_truncated(number))
        sealed: bytes = crypto.encrypt_packet(header.data, padded, number)
        return sealed

    def _next_number(self) -> int:
        number = self._core._packet_number
        self._core._packet_number += 1
        return number


def _truncated(number: int) -> bytes:
    return (number & 0xFFFF).to_bytes(_NUMBER_BYTES, "big")


def _padded(payload: bytes) -> bytes:
    return payload.ljust(_PAYLOAD_BYTES_MIN, b"\0")
