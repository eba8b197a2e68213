"""The ticket: one line of text with which a client finds a server, knows it, and is let in. Pure.

    ``aspen1.`` + base64url without padding (RFC 4648 §5) of

    ticket id       16 bytes
    secret          32 bytes
    fingerprint     32 bytes, the SHA-256 of the server's certificate (DER)
    count           u8, of endpoints, each:
                        u8 length of the host, the host in ASCII, u16 port, big-endian
    checksum        u32, the CRC-32 of all before it, big-endian

The checksum is against accidents of copying. Whoever holds the line holds the rights, so no error
and no ``repr`` ever shows it.
"""

from __future__ import annotations

import binascii
import re
import struct
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final, NamedTuple

from aspenkv.errors import TicketDamagedError, TicketError
from aspenkv.limits import (
    HOST_BYTES_MAX,
    TICKET_ENDPOINTS_MAX,
    TICKET_TEXT_BYTES_MAX,
)

TICKET_ID_BYTES: Final = 16
SECRET_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 32

_VERSION: Final = 1
_FORM: Final = re.compile(r"aspen(?P<version>[1-9][0-9]{0,3})\.(?P<payload>[A-Za-z0-9_-]*)")
_HEAD: Final = struct.Struct(f">{TICKET_ID_BYTES}s{SECRET_BYTES}s{FINGERPRINT_BYTES}sB")
_PORT: Final = struct.Struct(">H")
_CHECKSUM: Final = struct.Struct(">I")
_PORT_MAX: Final = 2**16 - 1
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+")
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?")
_ENDPOINT: Final = re.compile(
    r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<host>[^\[\]:]*)):(?P<port>[0-9]{1,5})"
)


class Endpoint(NamedTuple):
    """Where a server listens: a host name or address, and a UDP port; port 0 lets it choose."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return what :func:`parse_endpoint` takes."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Ticket(NamedTuple):
    """What a ticket says: where the server is, how to know it, and with what to get in."""

    endpoints: tuple[Endpoint, ...]
    fingerprint: bytes
    ticket_id: bytes
    secret: bytes

    def __repr__(self) -> str:
        """Return the ticket without its secret: what is printed may end up in a log."""
        places = ", ".join(map(str, self.endpoints))
        return f"Ticket({places}, ticket_id={self.ticket_id.hex()}, secret=<hidden>)"


def parse_endpoint(text: str) -> Endpoint:
    """Read ``host:port``, or ``[address]:port`` for IPv6.

    Raises:
        ValueError: it is neither; the message says what to write.
    """
    found = _ENDPOINT.fullmatch(text)
    if found is not None:
        endpoint = Endpoint(found["ipv6"] or found["host"] or "", int(found["port"]))
        if _is_host(endpoint.host) and endpoint.port <= _PORT_MAX:
            return endpoint
    raise ValueError(f"{text[:HOST_BYTES_MAX]!r} is no address: write HOST:PORT or [IPV6]:PORT")


def format_ticket(ticket: Ticket) -> str:
    """Return a ticket as one line of text.

    Raises:
        ValueError: a part has the wrong length, or there are no or too many endpoints.
    """
    if not 0 < len(ticket.endpoints) <= TICKET_ENDPOINTS_MAX:
        raise ValueError(f"{len(ticket.endpoints)} endpoints: use 1 to {TICKET_ENDPOINTS_MAX}")
    sizes = tuple(map(len, (ticket.ticket_id, ticket.secret, ticket.fingerprint)))
    if sizes != (TICKET_ID_BYTES, SECRET_BYTES, FINGERPRINT_BYTES):
        raise ValueError(f"a ticket whose parts have {sizes} bytes")
    parts = [_HEAD.pack(ticket.ticket_id, ticket.secret, ticket.fingerprint, len(ticket.endpoints))]
    for endpoint in ticket.endpoints:
        if not _is_connectable(endpoint):
            raise ValueError(f"a ticket cannot name {endpoint}")
        host = endpoint.host.encode("ascii")
        parts += (bytes((len(host),)), host, _PORT.pack(endpoint.port))
    payload = b"".join(parts)
    payload += _CHECKSUM.pack(zlib.crc32(payload))
    return f"aspen{_VERSION}." + urlsafe_b64encode(payload).rstrip(b"=").decode("ascii")


def parse_ticket(text: str) -> Ticket:
    """Read a ticket, with white space around it.

    Raises:
        TicketDamagedError: it is empty, no ticket, or damaged.
        TicketError: a newer version made it.
    """
    if len(text) > TICKET_TEXT_BYTES_MAX:
        raise TicketDamagedError(
            f"more than {TICKET_TEXT_BYTES_MAX} characters are no ticket: it is one line that "
            "starts with aspen1."
        )
    line = text.strip()
    if not line:
        raise TicketDamagedError("the ticket is empty: ask for a new one")
    form = _FORM.fullmatch(line)
    if form is None:
        raise TicketDamagedError("this is no ticket: a ticket is one line that starts with aspen1.")
    if int(form["version"]) != _VERSION:
        raise TicketError("the ticket is of a newer version of aspenfs: install that version")
    ticket = _decoded(form["payload"])
    # One text for each ticket: also catches the bits that base64 leaves over.
    if ticket is None or format_ticket(ticket) != line:
        raise TicketDamagedError("the ticket is damaged or cut off: copy the whole line again")
    return ticket


def _decoded(text: str) -> Ticket | None:
    """Return what a payload says, None if it is damaged."""
    try:
        payload = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return None
    end = len(payload) - _CHECKSUM.size
    if end < _HEAD.size or _CHECKSUM.unpack_from(payload, end)[0] != zlib.crc32(payload[:end]):
        return None
    ticket_id, secret, fingerprint, count = _HEAD.unpack_from(payload)
    endpoints = _decoded_endpoints(payload[_HEAD.size : end])
    if endpoints is None or len(endpoints) != count or not 0 < count <= TICKET_ENDPOINTS_MAX:
        return None
    return Ticket(endpoints, fingerprint, ticket_id, secret)


def _decoded_endpoints(data: bytes) -> tuple[Endpoint, ...] | None:
    endpoints: list[Endpoint] = []
    at = 0
    while at < len(data):
        port_at = at + 1 + data[at]
        if port_at + _PORT.size > len(data):
            return None
        host = data[at + 1 : port_at].decode("ascii", "replace")
        endpoint = Endpoint(host, _PORT.unpack_from(data, port_at)[0])
        if not _is_connectable(endpoint):
            return None
        endpoints.append(endpoint)
        at = port_at + _PORT.size
    return tuple(endpoints)


def _is_host(host: str) -> bool:
    fits = 0 < len(host) <= HOST_BYTES_MAX
    return fits and (_IPV6 if ":" in host else _HOST).fullmatch(host) is not None


def _is_connectable(endpoint: Endpoint) -> bool:
    return _is_host(endpoint.host) and 0 < endpoint.port <= _PORT_MAX
