"""The one line of text that a ticket is: what it says, and how each damage is told."""

from __future__ import annotations

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenkv import limits
from aspenkv.errors import TicketDamagedError, TicketError
from aspenkv.tickets import Endpoint, Ticket, format_ticket, parse_endpoint, parse_ticket

LOCAL = Endpoint("127.0.0.1", 7400)
TICKET = Ticket((LOCAL,), b"F" * 32, b"I" * 16, b"S" * 32)
LINE = (
    "aspen1.SUlJSUlJSUlJSUlJSUlJSVNTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NTRkZGRkZGRkZGRkZGR"
    "kZGRkZGRkZGRkZGRkZGRkZGRkYBCTEyNy4wLjAuMRzoQlv-zA"
)

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

hosts = st.one_of(
    st.from_regex(r"[A-Za-z0-9._-]{1,255}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
endpoints = st.builds(Endpoint, hosts, st.integers(1, 65535))
tickets = st.builds(
    Ticket,
    st.lists(endpoints, min_size=1, max_size=limits.TICKET_ENDPOINTS_MAX).map(tuple),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
)


def line_of(payload: bytes) -> str:
    """Return a line with a right checksum, whatever it says."""
    checked = payload + zlib.crc32(payload).to_bytes(4, "big")
    return "aspen1." + base64.urlsafe_b64encode(checked).rstrip(b"=").decode()


def test_the_text_is_as_documented() -> None:
    assert format_ticket(TICKET) == LINE
    assert parse_ticket(LINE) == TICKET


@given(tickets)
def test_every_ticket_is_read_as_it_was_written(ticket: Ticket) -> None:
    line = format_ticket(ticket)
    assert "\n" not in line
    assert len(line) <= limits.TICKET_TEXT_BYTES_MAX
    assert parse_ticket(line) == ticket
    assert parse_ticket(f"  {line}\r\n") == ticket


def test_no_prefix_of_a_ticket_is_one() -> None:
    for length in range(len(LINE)):
        with pytest.raises(TicketDamagedError) as caught:
            parse_ticket(LINE[:length])
        assert "\n" not in str(caught.value)


def test_no_ticket_with_a_character_more_is_one() -> None:
    for character in "A=.-é":
        with pytest.raises(TicketDamagedError):
            parse_ticket(LINE + character)


def test_no_changed_character_passes() -> None:
    """Also not one that base64 would read as the same bytes."""
    for place in range(len("aspen1."), len(LINE)):
        for other in ALPHABET if place >= len(LINE) - 2 else "Aa0-_":
            if other != LINE[place]:
                with pytest.raises(TicketDamagedError):
                    parse_ticket(LINE[:place] + other + LINE[place + 1 :])


@given(st.data())
def test_no_flipped_bit_passes(data: st.DataObject) -> None:
    payload = bytearray(base64.urlsafe_b64decode(LINE[7:] + "=" * (-len(LINE[7:]) % 4)))
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TicketDamagedError):
        parse_ticket("aspen1." + base64.urlsafe_b64encode(payload).rstrip(b"=").decode())


@given(st.text(max_size=300))
def test_no_other_text_is_a_ticket(text: str) -> None:
    for each in (text, "aspen1." + text):
        with pytest.raises(TicketError):
            parse_ticket(each)


@given(st.binary(max_size=300))
def test_no_payload_does_anything_else_than_be_refused(payload: bytes) -> None:
    for each in (payload, b"I" * 16 + b"S" * 32 + b"F" * 32 + payload):
        try:
            ticket = parse_ticket(line_of(each))
        except TicketDamagedError:
            continue
        assert format_ticket(ticket) == line_of(each)


@pytest.mark.parametrize(
    "places",
    [
        b"\0",
        b"\1",
        b"\1\x09127.0.0.1\x1c",
        b"\2\x09127.0.0.1\x1c\xe8",
        b"\1\x09127.0.0.1\x1c\xe8\x09127.0.0.1\x1c\xe8",
        b"\1\x09127.0.0.1\0\0",
        b"\1\0\x1c\xe8",
        b"\1\x02\xc3\xa9\x1c\xe8",
        b"\1\x03a b\x1c\xe8",
        b"\x09" + 9 * b"\1a\x1c\xe8",
    ],
    ids=[
        "none",
        "missing",
        "cut-off",
        "fewer",
        "more",
        "port-0",
        "no-host",
        "not-ascii",
        "space",
        "too-many",
    ],
)
def test_endpoints_that_no_server_wrote_are_damage(places: bytes) -> None:
    with pytest.raises(TicketDamagedError):
        parse_ticket(line_of(b"I" * 16 + b"S" * 32 + b"F" * 32 + places))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the ticket is empty"),
        (" \n", "the ticket is empty"),
        ("hello", "this is no ticket"),
        (f"{LINE}\n{LINE}", "this is no ticket"),
        ("ASPEN1." + LINE[7:], "this is no ticket"),
        ("x" * (limits.TICKET_TEXT_BYTES_MAX + 1), "are no ticket"),
        (LINE[:-1], "damaged or cut off"),
        ("aspen2." + LINE[7:], "newer version"),
        ("aspen2.", "newer version"),
    ],
    ids=range(9),
)
def test_each_mistake_has_its_own_line(text: str, says: str) -> None:
    with pytest.raises(TicketError, match=says) as caught:
        parse_ticket(text)
    assert "\n" not in str(caught.value)
    assert LINE[7:40] not in str(caught.value)


def test_a_ticket_of_a_newer_version_is_not_damaged() -> None:
    with pytest.raises(TicketError) as caught:
        parse_ticket("aspen2.anything")
    assert not isinstance(caught.value, TicketDamagedError)


def test_no_repr_shows_the_secret() -> None:
    assert repr(TICKET) == (
        "Ticket(127.0.0.1:7400, ticket_id=49494949494949494949494949494949, secret=<hidden>)"
    )
    assert "SSSS" not in f"{TICKET} {[TICKET]}"


@pytest.mark.parametrize(
    "ticket",
    [
        TICKET._replace(endpoints=()),
        TICKET._replace(endpoints=(LOCAL,) * (limits.TICKET_ENDPOINTS_MAX + 1)),
        TICKET._replace(endpoints=(Endpoint("127.0.0.1", 0),)),
        TICKET._replace(endpoints=(Endpoint("127.0.0.1", 65536),)),
        TICKET._replace(endpoints=(Endpoint("é", 1),)),
        TICKET._replace(fingerprint=b""),
        TICKET._replace(ticket_id=b"I" * 17),
        TICKET._replace(secret=b"S" * 31),
    ],
    ids=range(8),
)
def test_what_is_no_ticket_is_not_written(ticket: Ticket) -> None:
    with pytest.raises(ValueError, match=r"endpoints|cannot name|bytes") as caught:
        format_ticket(ticket)
    assert "SSSS" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:7400", LOCAL),
        ("[::1]:7400", Endpoint("::1", 7400)),
        ("[fe80::1%eth0]:1", Endpoint("fe80::1%eth0", 1)),
        ("kv.example.org:65535", Endpoint("kv.example.org", 65535)),
        ("localhost:0", Endpoint("localhost", 0)),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":7400",
        "[]:7400",
        "::1:7400",
        "[127.0.0.1]",
        "[::1]",
        "[::x]:1",
        "host:",
        "host:-1",
        "host:65536",
        "host:7 400",
        "host:٣",
        "ho st:1",
        "a" * 256 + ":1",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write HOST:PORT"):
        parse_endpoint(text)
