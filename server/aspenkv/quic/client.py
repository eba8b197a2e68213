"""The client's end: from a name and a fingerprint to a connection."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import AlertDescription

from aspenkv.errors import (
    AspenKvError,
    BusyError,
    ProtocolVersionError,
    ServerKeyError,
    UnavailableError,
)
from aspenkv.quic.connection import QuicConnection
from aspenkv.quic.core import Core, client_configuration
from aspenkv.quic.datagrams import Address, DatagramSocket
from aspenkv.quic.errors import ConnectionClosedError
from aspenkv.quic.stream import QuicStream
from aspenkv.quic.udp import connect_udp, resolve

ALPN: Final = "aspenkv/1"

# A server that finds no protocol in common ends the handshake with the one alert or the other.
_NO_COMMON_PROTOCOL: Final = frozenset(
    QuicErrorCode.CRYPTO_ERROR + alert
    for alert in (AlertDescription.handshake_failure, AlertDescription.no_application_protocol)
)

OpenSockets = Callable[[str, int], Awaitable[list[tuple[DatagramSocket, Address]]]]
"""Opens one socket for each address of a name, connected there, the best first.

Raises :class:`OSError` if there is no way there.
"""


async def open_udp_sockets(host: str, port: int) -> list[tuple[DatagramSocket, Address]]:
    """Open UDP sockets to a name's addresses. Raises :class:`OSError` if none can be opened."""
    opened: list[tuple[DatagramSocket, Address]] = []
    failure: OSError | None = None
    for family, address in await resolve(host, port):
        try:
            opened.append((connect_udp(family, address), address))
        except OSError as error:
            failure = error
    if not opened and failure is not None:
        raise failure
    return opened


@asynccontextmanager
async def connect_quic(
    host: str,
    port: int,
    *,
    fingerprint: bytes,
    connect_timeout_s: float,
    alpn: str = ALPN,
    open_sockets: OpenSockets = open_udp_sockets,
) -> AsyncIterator[QuicConnection]:
    """Connect to a server, and close the connection when the block ends.

    The addresses of a name are tried one after the other, all within the timeout.

    Args:
        host: name or address of the server.
        port: its UDP port.
        fingerprint: SHA-256 of the server's certificate (DER).
        connect_timeout_s: how long all this may take.
        alpn: the protocol to speak.
        open_sockets: how to reach an address.

    Raises:
        UnavailableError: nobody answers there, or not in time.
        BusyError: the server takes no more connections.
        ServerKeyError: the server has another key; it was told nothing.
        ProtocolVersionError: the server does not speak the protocol.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            connection = await _connect(
                nursery, host, port, fingerprint, connect_timeout_s, alpn, open_sockets
            )
            try:
                yield connection
            finally:
                connection.close()
        except Exception as error:  # noqa: BLE001 - the nursery would make a group of it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _connect(
    nursery: trio.Nursery,
    host: str,
    port: int,
    fingerprint: bytes,
    timeout_s: float,
    alpn: str,
    open_sockets: OpenSockets,
) -> QuicConnection:
    failure: AspenKvError = UnavailableError(f"{host} port {port} did not answer in {timeout_s} s")
    with trio.move_on_after(timeout_s):
        try:
            sockets = await open_sockets(host, port)
        except OSError as error:
            raise UnavailableError(f"{host} port {port} cannot be reached: {error}") from error
        attempts = [_Attempt(socket, address, fingerprint, alpn) for socket, address in sockets]
        try:
            for attempt in attempts:
                nursery.start_soon(attempt.run)
                try:
                    return await attempt.established()
                except UnavailableError as error:
                    failure = error
        finally:
            for attempt in attempts:
                attempt.close_if_unused()
    raise failure


class _Attempt:
    """One connection that may come about, and its two tasks; a ``ConnectionOwner``."""

    def __init__(
        self, socket: DatagramSocket, address: Address, fingerprint: bytes, alpn: str
    ) -> None:
        self._socket = socket
        self._address = address
        self._fingerprint = fingerprint
        self._refusal: AspenKvError | None = None
        core = Core(client_configuration(alpn))
        core.connect(address, now=trio.current_time())
        self._connection = QuicConnection(core, socket, self, is_client=True)
        self._is_used = False

    async def run(self) -> None:
        """Serve the connection until it ends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._connection.receive_loop)
                await self._connection.run()
                nursery.cancel_scope.cancel()
        finally:
            self._socket.close()

    async def established(self) -> QuicConnection:
        """Return the connection when it is usable. Raises what :func:`connect_quic` does."""
        connection = self._connection
        await connection.established.wait()
        if self._refusal is not None:
            raise self._refusal
        if connection.closed.is_set():
            raise self._why_closed()
        self._is_used = True
        return connection

    def _why_closed(self) -> AspenKvError:
        reason = self._connection.close_reason
        where = f"{self._address[0]} port {self._address[1]}"
        if isinstance(reason, ConnectionClosedError):
            if reason.is_by_peer and reason.code == QuicErrorCode.CONNECTION_REFUSED:
                return BusyError(f"{where} takes no more connections now")
            if reason.code in _NO_COMMON_PROTOCOL or "protocol version" in reason.reason:
                return ProtocolVersionError(f"{where} does not speak this protocol")
        return UnavailableError(f"{where}: {reason}")

    def close_if_unused(self) -> None:
        """End an attempt that failed, or was not needed."""
        if not self._is_used:
            self._connection.close()
            self._socket.close()

    def on_established(self, connection: QuicConnection) -> None:
        """Compare the server's key before anything is sent to it."""
        found = hashlib.sha256(connection.peer_certificate_der).digest()
        if not hmac.compare_digest(found, self._fingerprint):
            self._refusal = ServerKeyError(
                f"{self._address[0]} port {self._address[1]} has another key than the ticket "
                "names: ask its owner for a new ticket"
            )
            connection.close()

    def on_request(self, connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
        """Never happens: the core allows a server no streams."""
        raise NotImplementedError

    def on_connection_id(
        self, connection: QuicConnection, connection_id: bytes, *, is_new: bool
    ) -> None:
        """Do nothing: the socket belongs to one connection."""

    def on_closed(self, connection: QuicConnection) -> None:
        """Do nothing: who waits for the connection sees it."""
