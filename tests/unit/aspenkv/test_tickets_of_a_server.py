"""What a server keeps of its tickets, and who gets in with them."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from aspenkv import limits
from aspenkv.access import Grant
from aspenkv.contract import TicketInfo
from aspenkv.errors import (
    DataCorruptError,
    InvalidRequestError,
    TicketExpiredError,
    TicketRevokedError,
    TicketUnknownError,
    TooManyError,
)
from aspenkv.ticket_table import StoredTicket, TicketTable, new_ticket, removal_record

ID, SECRET = b"I" * 16, b"S" * 32
VOLUME = Grant(b"fs:v:", can_write=True, is_admin=False)
ADMIN = Grant(b"", can_write=True, is_admin=True)
NAME = b"T" + ID
CONTENT = (
    hashlib.sha256(SECRET).digest()
    + bytes.fromhex("01 00000000000003e8 00000000000003f2 0005")
    + b"fs:v:"
    + "für Ö".encode()
)


def ticket(
    ticket_id: bytes = ID,
    grant: Grant = VOLUME,
    *,
    label: str = "für Ö",
    lifetime_s: float | None = 10,
    now_s: float = 1000.5,
) -> StoredTicket:
    return new_ticket(ticket_id, SECRET, grant, label=label, lifetime_s=lifetime_s, now_s=now_s)


@pytest.fixture
def table() -> TicketTable:
    table = TicketTable()
    table.insert(ticket())
    return table


def test_the_record_is_as_documented_and_holds_no_secret() -> None:
    assert ticket().record() == {NAME: CONTENT}
    assert removal_record(ticket()) == {NAME: None}
    assert SECRET not in CONTENT


@pytest.mark.parametrize("is_revoked", [False, True])
@pytest.mark.parametrize("lifetime_s", [None, 10])
@pytest.mark.parametrize(
    "grant", [ADMIN, VOLUME, Grant(b"\xff\0", can_write=False, is_admin=False)]
)
def test_what_was_stored_is_loaded(
    grant: Grant, lifetime_s: float | None, *, is_revoked: bool
) -> None:
    stored = ticket(grant=grant, lifetime_s=lifetime_s)._replace(is_revoked=is_revoked)
    table = TicketTable()
    table.load((name, content or b"") for name, content in stored.record().items())
    assert list(table) == [stored]
    assert table.get(ID) == stored


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (NAME, CONTENT[:50]),
        (NAME, CONTENT[:-1] + b"\xff"),
        (NAME, CONTENT[: CONTENT.index(b"fs:v:") + 3]),
        (NAME, CONTENT[:32] + b"\x08" + CONTENT[33:]),
        (NAME[:-1], CONTENT),
    ],
    ids=["short", "no-text", "part-of-a-prefix", "unknown-flag", "short-name"],
)
def test_a_damaged_record_is_named(name: bytes, content: bytes) -> None:
    with pytest.raises(DataCorruptError, match="IIII"):
        TicketTable().load([(name, content)])


def test_who_knows_the_secret_gets_the_rights(table: TicketTable) -> None:
    assert table.authenticated(ID, SECRET, 1000).grant == VOLUME
    assert table.authenticated(ID, SECRET, 1009.9).info() == TicketInfo(
        ID, "für Ö", b"fs:v:", can_write=True, is_admin=False, created_s=1000, expires_s=1010
    )


@pytest.mark.parametrize(
    ("ticket_id", "secret"),
    [(ID, SECRET[:-1] + b"T"), (ID, b""), (b"J" * 16, SECRET), (b"", SECRET)],
)
def test_nobody_else_learns_which_part_was_wrong(
    table: TicketTable, ticket_id: bytes, secret: bytes
) -> None:
    with pytest.raises(TicketUnknownError, match="does not know the ticket"):
        table.authenticated(ticket_id, secret, 1000)


@pytest.mark.parametrize("verdict", [True, False])
@pytest.mark.parametrize("ticket_id", [ID, b"unknown"])
def test_the_comparison_takes_the_same_time_and_decides(
    table: TicketTable, monkeypatch: pytest.MonkeyPatch, ticket_id: bytes, *, verdict: bool
) -> None:
    """Of hashes, so that its time could not tell of the secret even if it varied."""
    compared = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return verdict

    monkeypatch.setattr(hmac, "compare_digest", compare)
    if verdict and ticket_id == ID:
        assert table.authenticated(ticket_id, b"wrong", 1000).grant == VOLUME
    else:
        with pytest.raises(TicketUnknownError):
            table.authenticated(ticket_id, SECRET, 1000)
    ((left, right),) = compared
    assert len(left) == len(right) == 32


def test_nobody_has_the_hash_of_an_unknown_ticket(table: TicketTable) -> None:
    """It is compared with a hash of which no secret is known."""
    assert hashlib.sha256(b"").digest() != bytes(32)
    with pytest.raises(TicketUnknownError):
        table.authenticated(b"unknown", bytes(32), 1000)


def test_a_ticket_expires_and_is_revoked(table: TicketTable) -> None:
    with pytest.raises(TicketExpiredError, match="expired"):
        table.authenticated(ID, SECRET, 1010)
    table.insert(ticket()._replace(is_revoked=True))
    with pytest.raises(TicketRevokedError, match="revoked"):
        table.authenticated(ID, SECRET, 1000)
    with pytest.raises(TicketUnknownError):
        table.authenticated(ID, b"wrong", 1000)


def test_one_without_end_never_expires(table: TicketTable) -> None:
    table.insert(ticket(lifetime_s=None))
    assert table.authenticated(ID, SECRET, 1e12).expires_s is None


def test_the_place_of_a_useless_ticket_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aspenkv.ticket_table.TICKETS_MAX", 3)
    table = TicketTable()
    good = ticket(b"good", lifetime_s=None)
    expired = ticket(b"expired", now_s=900)
    revoked = ticket(b"revoked", now_s=800)._replace(is_revoked=True)
    for each in (good, expired, revoked):
        assert table.to_drop(1000) is None
        table.insert(each)
    assert table.to_drop(1000) == revoked
    table.remove(revoked)
    table.insert(ticket(b"another", lifetime_s=None))
    assert table.to_drop(1000) == expired
    table.remove(expired)
    table.insert(ticket(b"one more", lifetime_s=None))
    with pytest.raises(TooManyError):
        table.to_drop(1000)


@pytest.mark.parametrize(
    ("grant", "label", "lifetime_s"),
    [
        (Grant(b"x" * (limits.TICKET_PREFIX_BYTES_MAX + 1), True, False), "", None),
        (Grant(b"fs:v:", can_write=True, is_admin=True), "", None),
        (Grant(b"", can_write=False, is_admin=True), "", None),
        (VOLUME, "two\nlines", None),
        (VOLUME, "\x1b[31m", None),
        (VOLUME, "ö" * (limits.TICKET_LABEL_BYTES_MAX // 2 + 1), None),
        (VOLUME, "", 0),
        (VOLUME, "", -1),
        (VOLUME, "", float("nan")),
        (VOLUME, "", float("inf")),
    ],
    ids=range(10),
)
def test_what_is_nonsense_is_refused(grant: Grant, label: str, lifetime_s: float | None) -> None:
    with pytest.raises(InvalidRequestError):
        ticket(grant=grant, label=label, lifetime_s=lifetime_s)
