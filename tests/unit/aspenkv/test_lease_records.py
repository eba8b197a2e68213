"""The table of leases: its records, damaged ones, and a process that was stopped meanwhile."""

from __future__ import annotations

import pytest

from aspenkv.contract import NO_LEASE, Put
from aspenkv.errors import DataCorruptError, LeaseNotFoundError
from aspenkv.leases import Lease, LeaseTable, LeaseTerms, removal_records
from aspenkv.limits import LEASE_LATENESS_S_MAX

LEASE = bytes.fromhex("4c 0000000000000007"), bytes.fromhex("00000000000009c4 01") + b"fs:v:"
ATTACHMENT = bytes.fromhex("41 0000000000000007") + b"key", b""


def test_records_are_as_documented() -> None:
    table = LeaseTable()
    lease = table.new(7, LeaseTerms(2.5, process_bound=True, prefix=b"fs:v:"), now_s=100)
    assert lease.record() == LEASE
    table.insert(lease)
    touched = table.touched([Put(b"key", b"", 7)], names_lease=True, now_s=100, prefix=b"fs:v:")
    assert table.attachment_records(touched) == dict((ATTACHMENT,))
    table.apply(touched)
    assert table.attachment_records({b"key": NO_LEASE}) == {ATTACHMENT[0]: None}
    assert removal_records([lease]) == {LEASE[0]: None, ATTACHMENT[0]: None}


def test_loading_gives_back_what_was_stored_with_the_full_time_anew() -> None:
    table = LeaseTable()
    table.load([LEASE], [ATTACHMENT], now_s=1000)
    (lease,) = table.process_bound()
    assert lease.terms == (2.5, True, b"fs:v:")
    assert (lease.id, lease.deadline_s, lease.keys) == (7, 1002.5, {b"key"})
    assert table.next_deadline_s() == 1002.5


@pytest.mark.parametrize(
    ("leases", "attachments"),
    [
        ([(LEASE[0][:-1], LEASE[1])], []),
        ([(LEASE[0], LEASE[1][:8])], []),
        ([(LEASE[0], b"\xff" * 8 + LEASE[1][8:])], []),
        ([LEASE], [(ATTACHMENT[0][:5], b"")]),
        ([], [ATTACHMENT]),
    ],
    ids=["short-name", "short-content", "long-time", "short-attachment", "attachment-to-no-lease"],
)
def test_a_damaged_record_is_named(
    leases: list[tuple[bytes, bytes]], attachments: list[tuple[bytes, bytes]]
) -> None:
    name = (attachments or leases)[0][0]
    with pytest.raises(DataCorruptError) as caught:
        LeaseTable().load(leases, attachments, now_s=0)
    assert repr(name) in str(caught.value)


def granted(table: LeaseTable, lease: int, ttl_s: float) -> Lease:
    made = table.new(lease, LeaseTerms(ttl_s, process_bound=False, prefix=b""), now_s=1000)
    table.insert(made)
    return made


def test_what_lapsed_stays_so() -> None:
    table = LeaseTable()
    first, second = granted(table, 1, 10), granted(table, 2, 11)
    assert table.lapsed(1010) == [first]
    for now_s in (1010, 1011, 1011 + LEASE_LATENESS_S_MAX):
        with pytest.raises(LeaseNotFoundError):
            table.live(1, now_s, b"")
    assert table.lapsed(1011) == [first, second]


@pytest.mark.parametrize("asks_first", [True, False], ids=["holder", "server"])
def test_a_process_that_was_stopped_gives_all_their_full_time_anew(*, asks_first: bool) -> None:
    """Nobody could renew his lease meanwhile."""
    table = LeaseTable()
    dead, first, second = granted(table, 1, 1), granted(table, 2, 10), granted(table, 3, 100)
    assert table.lapsed(1001) == [dead]
    woken_s = 1010 + LEASE_LATENESS_S_MAX + 0.001
    if asks_first:
        table.renew(first.id, woken_s, b"")
    assert table.lapsed(woken_s) == [dead]
    assert (first.deadline_s, second.deadline_s) == (woken_s + 10, woken_s + 100)
