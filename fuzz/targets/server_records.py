"""A server reads what an earlier process stored. The first byte chooses whose records they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aspenkv.access import Grant
from aspenkv.contract import SlotUse
from aspenkv.errors import DataCorruptError
from aspenkv.identity import ServerIdentity, decode_identity, encode_identity
from aspenkv.leases import (
    ATTACHMENT_PREFIX,
    LEASE_PREFIX,
    Lease,
    LeaseTable,
    LeaseTerms,
    removal_records,
)
from aspenkv.sessions import SESSION_PREFIX, SLOT_PREFIX, ClientSession, SessionTable
from aspenkv.ticket_table import TICKET_PREFIX, TicketTable, new_ticket, removal_record
from fuzz.steps import Source

Records = list[tuple[bytes, bytes]]

_NOW_S: Final = 1000.0
_RECORDS_MAX: Final = 16


def _written(records: Records) -> bytes:
    """Return the input of which :func:`_read` makes these records."""
    return b"".join(bytes((len(name), len(content))) + name + content for name, content in records)


def _read(source: Source) -> Records:
    """Return records in the order of their names, as an engine does."""
    records = {}
    for _ in range(_RECORDS_MAX):
        if source.left:
            name_bytes, content_bytes = source.byte(), source.byte()
            name = source.take(name_bytes)
            records[name] = source.take(content_bytes)
    return sorted(records.items())


def _below(prefix: bytes, records: Records) -> Records:
    return [record for record in records if record[0].startswith(prefix)]


def _stored(records: dict[bytes, bytes | None]) -> Records:
    return [(name, content) for name, content in records.items() if content is not None]


def _lease_seed() -> Records:
    lease = Lease(7, LeaseTerms(30.0, process_bound=True, prefix=b"fs:a:"), now_s=_NOW_S)
    return [lease.record(), (ATTACHMENT_PREFIX + (7).to_bytes(8, "big") + b"fs:a:key", b"")]


def _session_seed() -> Records:
    session = ClientSession(b"s" * 16, b"t" * 16, now_s=_NOW_S)
    return _stored(session.record()) + _stored(session.slot_record(SlotUse(3, 9), 12))


def _ticket_seed() -> Records:
    grant = Grant(b"fs:a:", can_write=True, is_admin=False)
    ticket = new_ticket(b"t" * 16, b"secret", grant, label="desk", lifetime_s=60.0, now_s=_NOW_S)
    return _stored(ticket.record())


SEEDS: Final = [
    b"\0" + _written(_lease_seed()),
    b"\1" + _written(_session_seed()),
    b"\2" + _written(_ticket_seed()),
    b"\3" + encode_identity(ServerIdentity(bytes(16), b"certificate", b"key")),
]


def _check_leases(source: Source) -> None:
    """What was read says who may do what, and can be removed."""
    records = _read(source)
    table = LeaseTable()
    table.load(_below(LEASE_PREFIX, records), _below(ATTACHMENT_PREFIX, records), _NOW_S)
    leases = {*table.process_bound(), *table.lapsed(_NOW_S), *table.lapsed(float("inf"))}
    assert len(leases) == table.count(b"") == len(_below(LEASE_PREFIX, records))
    names = {name for name, _ in records}
    assert removal_records(leases).keys() <= names
    table.remove(leases)
    assert table.next_deadline_s() == float("inf")


def _check_sessions(source: Source) -> None:
    records = _read(source)
    table = SessionTable()
    table.load(_below(SESSION_PREFIX, records), _below(SLOT_PREFIX, records), _NOW_S)
    names = {name for name, _ in records}
    for session in table:
        assert session.removal_records().keys() <= names
        assert _stored(session.record())[0] in records
    table.statuses(b"")
    assert len(table.over(float("inf"))) == len(_below(SESSION_PREFIX, records))


def _check_tickets(source: Source) -> None:
    records = _below(TICKET_PREFIX, _read(source))
    table = TicketTable()
    table.load(records)
    for ticket in table:
        assert _stored(ticket.record())[0] in records
        assert removal_record(ticket).keys() == ticket.record().keys()
        assert ticket.info().prefix == ticket.grant.prefix
        ticket.is_good(_NOW_S)


def _check_identity(source: Source) -> None:
    content = source.rest()
    assert encode_identity(decode_identity(content)) == content


_CHECKS: Final[tuple[Callable[[Source], None], ...]] = (
    _check_leases,
    _check_sessions,
    _check_tickets,
    _check_identity,
)


def check(data: bytes) -> None:
    """Any records are refused as damaged, or are those that would be stored again."""
    source = Source(data)
    try:
        source.choose(_CHECKS)(source)
    except DataCorruptError as error:
        assert "backup" in str(error)
