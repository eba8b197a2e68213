"""What a connection asks of the network: datagrams in, datagrams out, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

Address = tuple[Any, ...]
"""Host and port, and for IPv6 flow information and scope, as the socket module has them."""

Datagram = tuple[bytes, Address]
"""Content, and whom it comes from or goes to."""


class DatagramSocket(Protocol):
    """A socket for datagrams that never blocks; who uses it waits for it."""

    def receive(self) -> list[Datagram]:
        """Return what has arrived, up to ``RECEIVE_BATCH_BYTES_MAX``; an empty list if nothing.

        Raises:
            ConnectionRefusedError: nobody listens where datagrams were sent.
        """

    def send(self, datagrams: Sequence[Datagram]) -> int:
        """Send datagrams in order, and return how many there was room for.

        Raises:
            OSError: the next datagram cannot be sent: EMSGSIZE if it is too large for the path.
        """

    def datagram_bytes_max(self, address: Address) -> int:
        """Return the largest datagram that the path there carries, as far as is known."""

    async def wait_readable(self) -> None:
        """Return when :meth:`receive` may have something."""

    async def wait_writable(self) -> None:
        """Return when :meth:`send` may have room."""

    def close(self) -> None:
        """Close the socket. Who waits for it gets :class:`trio.ClosedResourceError`."""


class Path(NamedTuple):
    """One way to a server: a family of addresses of the socket module, and an address of it."""

    family: int
    address: Address


class Network(Protocol):
    """What carries datagrams from here to a server."""

    async def resolve(self, host: str, port: int) -> Sequence[Path]:
        """Return the ways to a name, the best first. Raises :class:`OSError` if it has none."""

    def connect(self, path: Path) -> DatagramSocket:
        """Open a socket to exchange datagrams with one address.

        Raises:
            OSError: there is no way there.
        """
