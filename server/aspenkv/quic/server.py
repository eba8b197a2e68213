"""The server's end: datagrams to connections, and who may become one.

Every client proves its address with a Retry before the server keeps anything of it (RFC 9000
§8.1.2). That costs a new connection one round trip, which a pool pays rarely, and makes every limit
below count clients that exist, instead of addresses that somebody made up.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import trio
from aioquic.buffer import Buffer  # type: ignore[attr-defined] # it re-exports it
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from aspenkv.errors import ConnectionLostError
from aspenkv.limits import (
    CONNECTIONS_MAX,
    DATAGRAM_BYTES_MIN,
    HANDSHAKES_PENDING_MAX,
    HANDSHAKES_PER_S,
    STATELESS_RESETS_PER_S,
)
from aspenkv.quic.client import ALPN
from aspenkv.quic.connection import QuicConnection
from aspenkv.quic.core import (
    CONNECTION_ID_BYTES,
    SUPPORTED_VERSIONS,
    Core,
    server_configuration,
)
from aspenkv.quic.datagrams import Address, DatagramSocket
from aspenkv.quic.errors import SHUTTING_DOWN, StreamResetError
from aspenkv.quic.packets import encode_refusal, encode_stateless_reset
from aspenkv.quic.rates import TokenBucket
from aspenkv.quic.stream import QuicStream

log = logging.getLogger(__name__)

_LONG_HEADER: Final = 0x80
_RESET_KEY_LABEL: Final = b"aspenkv stateless reset"


class Identity(Protocol):
    """The key of a server."""

    @property
    def certificate_der(self) -> bytes:
        """X.509, DER."""

    @property
    def private_key_der(self) -> bytes:
        """PKCS #8, DER."""


class RequestHandler(Protocol):
    """Answers what the clients of a server ask."""

    def connected(self, connection: QuicConnection) -> None:
        """A client's handshake is complete; ``connection.state`` is free to use."""

    async def handle(self, connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
        """Answer a request on its stream, in a task of its own.

        The task is cancelled when the client resets the stream or the connection is gone. If it
        ends without having ended the stream, the stream is reset.
        """

    def disconnected(self, connection: QuicConnection) -> None:
        """A connection that was reported as connected is gone."""


class ServerLimits(NamedTuple):
    """What a server allows its clients together; see :mod:`aspenkv.limits`."""

    connections_max: int = CONNECTIONS_MAX
    handshakes_pending_max: int = HANDSHAKES_PENDING_MAX
    handshakes_per_s: float = HANDSHAKES_PER_S
    stateless_resets_per_s: float = STATELESS_RESETS_PER_S


class ServerStatistics(NamedTuple):
    """What a server has seen since it began."""

    connections: int
    handshakes_pending: int
    accepted: int
    refused: int
    retries: int
    stateless_resets: int
    ignored_datagrams: int


_DEFAULT_LIMITS: Final = ServerLimits()


async def serve_quic(
    sockets: Sequence[DatagramSocket],
    identity: Identity,
    handler: RequestHandler,
    *,
    alpn: str = ALPN,
    limits: ServerLimits = _DEFAULT_LIMITS,
    task_status: trio.TaskStatus[QuicServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve connections until cancelled; then close them all.

    Args:
        sockets: bound; they stay open.
        identity: the key whose fingerprint clients know.
        handler: what answers.
        alpn: the protocol to speak.
        limits: on all clients together.
        task_status: told of the server when it answers.
    """
    async with trio.open_nursery() as nursery:
        server = QuicServer(identity, handler, nursery, alpn, limits)
        try:
            for socket in sockets:
                nursery.start_soon(server.receive_loop, socket)
            task_status.started(server)
            await trio.sleep_forever()
        finally:
            server.close()


class QuicServer:
    """All connections of a server; the owner of each."""

    def __init__(
        self,
        identity: Identity,
        handler: RequestHandler,
        nursery: trio.Nursery,
        alpn: str,
        limits: ServerLimits,
    ) -> None:
        """Begin without any connection; see :func:`serve_quic`."""
        now = trio.current_time()
        self._handler = handler
        self._nursery = nursery
        self._limits = limits
        self._configuration = server_configuration(
            alpn, identity.certificate_der, identity.private_key_der
        )
        # Outlives the process, as the private key does.
        self._reset_key = hmac.digest(identity.private_key_der, _RESET_KEY_LABEL, hashlib.sha256)
        self._retry = QuicRetryTokenHandler()
        self._by_id: dict[bytes, QuicConnection] = {}
        self._ids: dict[QuicConnection, set[bytes]] = {}
        self._pending: set[QuicConnection] = set()
        self._handshakes = TokenBucket(limits.handshakes_per_s, now)
        self._resets = TokenBucket(limits.stateless_resets_per_s, now)
        self._is_accepting = True
        self._accepted = self._refused = self._retries = 0
        self._stateless_resets = self._ignored = 0

    @property
    def connections(self) -> list[QuicConnection]:
        """The connections whose handshake is complete."""
        return [each for each in self._ids if each not in self._pending]

    def statistics(self) -> ServerStatistics:
        """Return what the server has seen so far."""
        return ServerStatistics(
            connections=len(self._ids) - len(self._pending),
            handshakes_pending=len(self._pending),
            accepted=self._accepted,
            refused=self._refused,
            retries=self._retries,
            stateless_resets=self._stateless_resets,
            ignored_datagrams=self._ignored,
        )

    def stop_accepting(self) -> None:
        """Refuse new connections from now on; those that are open go on."""
        self._is_accepting = False

    def close(self) -> None:
        """Close all connections."""
        self.stop_accepting()
        for connection in list(self._ids):
            connection.close(SHUTTING_DOWN, "the server ends")

    async def receive_loop(self, socket: DatagramSocket) -> None:
        """Read a socket until cancelled."""
        while True:
            await socket.wait_readable()
            try:
                datagrams = socket.receive()
            except OSError as error:
                log.debug("reading a socket: %s", error)
                continue
            now = trio.current_time()
            touched: dict[QuicConnection, None] = {}
            for data, address in datagrams:
                connection = self._connection_of(data, address, socket, now)
                if connection is not None:
                    connection.feed(data, address, now)
                    touched[connection] = None
            for connection in touched:
                connection.received(now)

    # --- datagrams to connections ----------------------------------------------------------------

    def _connection_of(
        self, data: bytes, address: Address, socket: DatagramSocket, now: float
    ) -> QuicConnection | None:
        """Find or make the connection that a datagram belongs to; answer if there is none."""
        if data and not data[0] & _LONG_HEADER:
            connection = self._by_id.get(data[1 : 1 + CONNECTION_ID_BYTES])
            if connection is None:
                self._reset_unknown(data, address, socket, now)
            return connection
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_BYTES)
        except ValueError:
            self._ignored += 1
            return None
        connection = self._by_id.get(header.destination_cid)
        if connection is None:
            return self._welcome(header, data, address, socket, now)
        return connection

    def _welcome(
        self, header: QuicHeader, data: bytes, address: Address, socket: DatagramSocket, now: float
    ) -> QuicConnection | None:
        """Begin a connection for a client that has proved its address; else ask it to."""
        is_answer = header.packet_type is QuicPacketType.VERSION_NEGOTIATION
        if is_answer or len(data) < DATAGRAM_BYTES_MIN:  # which is longer than any answer
            self._ignored += 1
        elif header.version not in SUPPORTED_VERSIONS:
            answer = encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=SUPPORTED_VERSIONS,
            )
            self._answer(answer, address, socket)
        elif header.packet_type is not QuicPacketType.INITIAL:
            self._ignored += 1
        elif not header.token:
            self._ask_for_proof(header, address, socket, now)
        else:
            return self._begin(header, address, socket, now)
        return None

    def _ask_for_proof(
        self, header: QuicHeader, address: Address, socket: DatagramSocket, now: float
    ) -> None:
        assert header.version is not None, "a long header has one"
        self._retries += 1
        source_id = os.urandom(CONNECTION_ID_BYTES)
        token = self._retry.create_token(
            address=address,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source_id,
            now=now,
        )
        retry = encode_quic_retry(
            version=header.version,
            source_cid=source_id,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )
        self._answer(retry, address, socket)

    def _begin(
        self, header: QuicHeader, address: Address, socket: DatagramSocket, now: float
    ) -> QuicConnection | None:
        try:
            original_id = self._retry.validate_token(
                address=address,
                destination_cid=header.destination_cid,
                token=header.token,
                now=now,
            )
        except ValueError:
            self._refuse(header, address, socket, QuicErrorCode.INVALID_TOKEN)
            return None
        if not self._is_accepting or len(self._ids) >= self._limits.connections_max:
            self._refuse(header, address, socket, QuicErrorCode.CONNECTION_REFUSED)
            return None
        if len(self._pending) >= self._limits.handshakes_pending_max or not self._handshakes.take(
            now
        ):
            self._ignored += 1  # the client asks again, later and later
            return None
        core = Core(
            self._configuration,
            reset_key=self._reset_key,
            original_destination_connection_id=original_id,
            retry_source_connection_id=header.destination_cid,
        )
        connection = QuicConnection(core, socket, self, is_client=False)
        self._ids[connection] = set()
        self._pending.add(connection)
        for connection_id in (header.destination_cid, core.host_cid):
            self.on_connection_id(connection, connection_id, is_new=True)
        self._nursery.start_soon(connection.run)
        return connection

    def _refuse(
        self, header: QuicHeader, address: Address, socket: DatagramSocket, code: QuicErrorCode
    ) -> None:
        assert header.version is not None, "a long header has one"
        self._refused += 1
        refusal = encode_refusal(
            header.version,
            source_id=header.destination_cid,
            destination_id=header.source_cid,
            code=code,
        )
        self._answer(refusal, address, socket)

    def _reset_unknown(
        self, data: bytes, address: Address, socket: DatagramSocket, now: float
    ) -> None:
        reset = encode_stateless_reset(self._reset_key, data)
        if reset is None or not self._resets.take(now):
            self._ignored += 1
        else:
            self._stateless_resets += 1
            self._answer(reset, address, socket)

    @staticmethod
    def _answer(datagram: bytes, address: Address, socket: DatagramSocket) -> None:
        """Send an answer if there is room; who needs it asks again."""
        try:
            socket.send([(datagram, address)])
        except OSError as error:
            log.debug("answering %s: %s", address, error)

    # --- what happens to connections -------------------------------------------------------------

    def on_established(self, connection: QuicConnection) -> None:
        """Take a client whose handshake is complete."""
        self._pending.discard(connection)
        self._accepted += 1
        self._handler.connected(connection)

    def on_request(self, connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
        """Have a request answered by a task of its own."""
        self._nursery.start_soon(self._handle, connection, stream, request)

    async def _handle(self, connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
        try:
            with stream.scope:
                await self._handler.handle(connection, stream, request)
        except (ConnectionLostError, StreamResetError):
            pass  # the client does not want the answer any more
        except Exception:
            log.exception("a request was not answered")
        finally:
            connection.handled(stream)

    def on_connection_id(
        self, connection: QuicConnection, connection_id: bytes, *, is_new: bool
    ) -> None:
        """Know a connection by one more id, or one less."""
        ids = self._ids[connection]
        if is_new:
            ids.add(connection_id)
            self._by_id[connection_id] = connection
        elif connection_id in ids:
            ids.discard(connection_id)
            del self._by_id[connection_id]

    def on_closed(self, connection: QuicConnection) -> None:
        """Forget a connection; what still comes for it is answered with a stateless reset."""
        for connection_id in self._ids.pop(connection):
            del self._by_id[connection_id]
        if connection in self._pending:
            self._pending.discard(connection)
        else:
            self._handler.disconnected(connection)
