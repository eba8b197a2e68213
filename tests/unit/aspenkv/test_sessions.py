"""Client sessions as they are stored, how long they stay, and who must go when there are many."""

from __future__ import annotations

import pytest

from aspenkv.access import Grant
from aspenkv.contract import CommitResult, SessionStatus, SlotUse
from aspenkv.errors import AspenKvError, BusyError, ClosedError, DataCorruptError
from aspenkv.limits import SESSION_IDLE_S_MIN, SESSION_TTL_S
from aspenkv.sessions import Budget, ClientSession, SessionTable

ID, TICKET = b"N" * 16, b"I" * 16
SESSION = b"C" + ID, TICKET
SLOT = b"S" + ID + bytes.fromhex("0003"), bytes.fromhex("0000000000000005 0000000000000007")


def session(name: bytes = ID, ticket: bytes = TICKET, *, idle_s: float = 0) -> ClientSession:
    return ClientSession(name, ticket, now_s=1000 - idle_s)


def filled(*sessions: ClientSession) -> SessionTable:
    table = SessionTable()
    for each in sessions:
        table.insert(each)
    return table


def test_records_are_as_documented() -> None:
    one = session()
    assert one.record() == dict((SESSION,))
    assert one.slot_record(SlotUse(3, 5), 7) == dict((SLOT,))
    one.slots.begin(SlotUse(3, 5))
    assert one.removal_records() == {SESSION[0]: None, SLOT[0]: None}


def test_what_was_stored_is_loaded_and_idle_from_then_on() -> None:
    table = SessionTable()
    table.load([SESSION], [SLOT], 1000)
    (loaded,) = table
    assert table.get(ID) is loaded
    assert (loaded.id, loaded.ticket_id, loaded.connections) == (ID, TICKET, 0)
    assert loaded.slots.begin(SlotUse(3, 5)) == CommitResult(7, None)
    assert table.next_deadline_s() == 1000 + SESSION_TTL_S


@pytest.mark.parametrize(
    ("sessions", "slots"),
    [
        ([(SESSION[0][:-1], TICKET)], []),
        ([SESSION], [(SLOT[0][:-1], SLOT[1])]),
        ([SESSION], [(SLOT[0], SLOT[1][:-1])]),
        ([], [SLOT]),
    ],
    ids=["short-name", "short-slot-name", "short-slot", "slot-of-no-session"],
)
def test_a_damaged_record_is_named(
    sessions: list[tuple[bytes, bytes]], slots: list[tuple[bytes, bytes]]
) -> None:
    name = (slots or sessions)[0][0]
    with pytest.raises(DataCorruptError) as caught:
        SessionTable().load(sessions, slots, 1000)
    assert repr(name) in str(caught.value)


def test_a_session_is_over_when_it_was_idle_for_long_or_has_ended() -> None:
    idle, connected, ended = (session(name) for name in (b"i", b"c", b"e"))
    connected.connections = 1
    table = filled(idle, connected)
    assert table.next_deadline_s() == 1000 + SESSION_TTL_S
    assert table.over(1000 + SESSION_TTL_S - 1) == []
    assert table.over(1000 + SESSION_TTL_S) == [idle]
    table.insert(ended)
    ended.end(ClosedError("bye"))
    assert table.next_deadline_s() == float("-inf")
    assert table.over(1000) == [ended]
    for each in (idle, ended):
        table.remove(each)
    assert table.next_deadline_s() == float("inf")


def test_nobody_must_go_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aspenkv.sessions.SESSIONS_MAX", 2)
    table = filled(session(idle_s=10_000))
    assert table.to_evict(b"new", 1000) is None


def test_the_longest_idle_of_who_has_most_must_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aspenkv.sessions.SESSIONS_MAX", 4)
    few = session(b"few", b"few", idle_s=3000)
    connected = session(b"connected", idle_s=3000)
    connected.connections = 1
    first, second = session(b"1", idle_s=2000), session(b"2", idle_s=1000)
    table = filled(few, second, connected, first)
    for expected in (first, second):
        assert table.to_evict(b"new", 1000) is expected
        table.remove(expected)
        table.insert(session(expected.id, b"other" + expected.id))
    assert table.to_evict(b"new", 1000) is few


def test_a_ticket_with_its_share_loses_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aspenkv.sessions.SESSIONS_PER_TICKET_MAX", 2)
    others = session(b"others", b"others", idle_s=3000)
    young, old = session(b"young"), session(b"old", idle_s=SESSION_IDLE_S_MIN)
    table = filled(others, young, old)
    assert table.to_evict(b"others", 1000) is None
    assert table.to_evict(TICKET, 1000) is old
    old.connections = 1
    with pytest.raises(BusyError):
        table.to_evict(TICKET, 1000)


def test_who_is_about_to_come_back_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aspenkv.sessions.SESSIONS_MAX", 1)
    one = session(idle_s=SESSION_IDLE_S_MIN - 1)
    table = filled(one)
    with pytest.raises(BusyError):
        table.to_evict(b"new", 1000)
    assert table.to_evict(b"new", 1001) is one


def test_status_names_who_is_connected_within_a_prefix() -> None:
    here, there, idle, loaded = (session(name) for name in (b"h", b"t", b"i", b"l"))
    for each, prefix in ((here, b"fs:a:"), (there, b"fs:b:"), (idle, b"fs:a:")):
        each.grant = Grant(prefix, can_write=True, is_admin=False)
        each.client, each.address = "host", "[::1]:1"
    here.connections, there.connections, loaded.connections = 2, 1, 1
    table = filled(here, there, idle, loaded)
    status = SessionStatus("host", "[::1]:1", 2, can_write=True)
    assert table.statuses(b"fs:a:") == (status,)
    assert table.statuses(b"fs:c:") == ()
    assert table.statuses(b"") == (status, status._replace(connections=1))


def test_the_first_failure_stays_and_ends_the_watches() -> None:
    one = session()
    one.check()
    failures: list[AspenKvError] = []
    one.watches.add(failures.append)
    one.end(ClosedError("first"))
    one.end(BusyError("second"))
    assert [str(failure) for failure in failures] == ["first"]
    assert one.ended.is_set()
    for _ in range(2):
        with pytest.raises(ClosedError, match="first") as caught:
            one.check()
        assert caught.value is not one.failure, "a traceback that grows with every call"


def test_a_budget_counts_requests_and_bytes() -> None:
    budget = Budget(2, 100)
    budget.check(2, 100)
    for requests, size_bytes in ((3, 0), (0, 101)):
        with pytest.raises(BusyError):
            budget.check(requests, size_bytes)
    budget.take(1, 60)
    budget.check(1, 40)
    for requests, size_bytes in ((2, 0), (0, 41)):
        with pytest.raises(BusyError):
            budget.check(requests, size_bytes)
    budget.take(-1, -60)
    budget.check(2, 100)
