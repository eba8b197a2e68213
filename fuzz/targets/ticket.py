"""A command reads a ticket, or the address of a server. The first byte chooses which."""

from __future__ import annotations

import base64
import zlib
from typing import Final

from aspenkv.errors import TicketError
from aspenkv.tickets import Endpoint, Ticket, format_ticket, parse_endpoint, parse_ticket

_HOSTS: Final = ("localhost", "203.0.113.7", "2001:db8::1", "fe80::1%eth0")
_ENDPOINTS: Final = tuple(Endpoint(host, 7400 + index) for index, host in enumerate(_HOSTS))
_TICKET: Final = Ticket(_ENDPOINTS, bytes(range(32)), bytes(range(16)), b"secret" * 5 + b"!!")
_LINE: Final = format_ticket(_TICKET)
_FORM: Final = "aspen1."
_CHECKSUM_BYTES: Final = 4


def _payload(line: str) -> bytes:
    text = line.removeprefix(_FORM)
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _line(payload: bytes) -> str:
    """Return the text of a payload, damaged or not, whose checksum is right."""
    whole = payload + zlib.crc32(payload).to_bytes(_CHECKSUM_BYTES, "big")
    return _FORM + base64.urlsafe_b64encode(whole).rstrip(b"=").decode()


SEEDS: Final = [
    b"\0" + _LINE.encode(),
    b"\0 " + _LINE.encode() + b"\n",
    b"\0" + _LINE.replace("1", "2", 1).encode(),
    b"\1" + _payload(_LINE)[:-_CHECKSUM_BYTES],
    *(b"\2" + str(endpoint).encode() for endpoint in _ENDPOINTS),
]


def check(data: bytes) -> None:
    """Any text is refused by the error that says so, or says the same when it is written again."""
    choice, rest = data[:1], data[1:]
    if choice == b"\2":
        _check_endpoint(rest.decode("utf-8", "surrogateescape"))
    elif choice == b"\1":
        _check_ticket(_line(rest))
    else:
        _check_ticket(rest.decode("utf-8", "surrogateescape"))


def _check_ticket(text: str) -> None:
    try:
        ticket = parse_ticket(text)
    except TicketError as error:
        assert "\n" not in str(error)
        return
    assert format_ticket(ticket) == text.strip()
    assert ticket.secret.hex() not in repr(ticket)


def _check_endpoint(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert parse_endpoint(str(endpoint)) == endpoint
