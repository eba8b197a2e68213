"""The client's end: from a name and a fingerprint to a connection."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
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
from aspenkv.quic.datagrams import Address, DatagramSocket, Network
from aspenkv.quic.errors import WRONG_SERVER, ConnectionClosedError
from aspenkv.quic.stream import QuicStream
from aspenkv.quic.udp import UDP

ALPN: Final = "aspenkv/1"

# A server that finds no protocol in common ends the handshake with the one alert or the other.
_NO_COMMON_PROTOCOL: Final = frozenset(
    QuicErrorCode.CRYPTO_ERROR + alert
    for alert in (AlertDescription.handshake_failure, AlertDescription.no_application_protocol)
)


@asynccontextmanager
async def connect_quic(
    host: str,
    port: int,
    *,
    fingerprint: bytes,
    connect_timeout_s: float,
    alpn: str = ALPN,
    network: Network = UDP,
) -> AsyncIterator[QuicConnection]:
    """Connect to a server, and close the connection when the block ends.

    The addresses of a name are tried one after the other.

    Args:
        host: name or address of the server.
        port: its UDP port.
        fingerprint: SHA-256 of the server's certificate (DER).
        connect_timeout_s: how long all this may take.
        alpn: the protocol to speak.
        network: what carries the datagrams.

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
                nursery, host, port, fingerprint, connect_timeout_s, alpn, network
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
    network: Network,
) -> QuicConnection:
    deadline = trio.current_time() + timeout_s
    failure: AspenKvError = UnavailableError(f"{host} port {port} did not answer in {timeout_s} s")
    with trio.move_on_at(deadline):
        try:
            paths = await network.resolve(host, port)
        except OSError as error:
            raise UnavailableError(f"{host} port {port} cannot be reached: {error}") from error
        for index, path in enumerate(paths):
            # An address that never answers leaves the others their share of the time.
            share_s = (deadline - trio.current_time()) / (len(paths) - index)
            with trio.move_on_after(share_s):
                try:
                    attempt = _Attempt(network.connect(path), path.address, fingerprint, alpn)
                except OSError as error:
                    failure = UnavailableError(f"{host} port {port} cannot be reached: {error}")
                    continue
                nursery.start_soon(attempt.run)
                try:
                    return await attempt.established()
                except UnavailableError as error:
                    failure = error
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
        """Return the connection when it is usable; if cancelled, end it.

        Raises what :func:`connect_quic` does.
        """
        connection = self._connection
        try:
            await connection.established.wait()
        except BaseException:
            connection.close()
            raise
        if self._refusal is not None:
            raise self._refusal
        if connection.closed.is_set():
            raise self._why_closed()
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

    def on_established(self, connection: QuicConnection) -> None:
        """Compare the server's key before anything is sent to it."""
        found = hashlib.sha256(connection.peer_certificate_der).digest()
        if not hmac.compare_digest(found, self._fingerprint):
            self._refusal = ServerKeyError(
                f"{self._address[0]} port {self._address[1]} has another key than the ticket "
                "names: ask its owner for a new ticket"
            )
            connection.close(WRONG_SERVER)

    def on_request(self, connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
        """Never happens: the core allows a server no streams."""
        raise NotImplementedError

    def on_connection_id(
        self, connection: QuicConnection, connection_id: bytes, *, is_new: bool
    ) -> None:
        """Do nothing: the socket belongs to one connection."""

    def on_closed(self, connection: QuicConnection) -> None:
        """Do nothing: who waits for the connection sees it."""
