"""What a ticket allows, against a client that keeps to nothing; and how tickets begin and end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenkv import limits
from aspenkv.access import Grant
from aspenkv.contract import (
    Add,
    Check,
    Copy,
    Delete,
    DeleteRange,
    Op,
    Patch,
    Put,
    RangeEmpty,
    RevisionIs,
    SessionStatus,
    SlotUse,
)
from aspenkv.embedded import open_embedded
from aspenkv.engine import Engine
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import (
    AccessDeniedError,
    AspenKvError,
    EngineError,
    InvalidRequestError,
    LeaseNotFoundError,
    TicketError,
    TicketExpiredError,
    TicketRevokedError,
    TicketUnknownError,
    TooManyError,
)
from aspenkv.service import RemoteSession, Service
from tests.contract.clients import ADMIN, READER, A, B, enter, join, make_ticket

OpenServer = Callable[[], AbstractAsyncContextManager[Service]]
Calls = dict[str, Callable[[RemoteSession], Awaitable[object]]]

MINE, THEIRS = b"fs:a:key", b"fs:b:key"
NOW_S = 1_000_000


async def watch(session: RemoteSession, prefix: bytes) -> None:
    async with session.watch(prefix):
        pass


def commit(*parts: Check | Op, slot: SlotUse | None = None) -> Callable[..., Awaitable[object]]:
    checks = [part for part in parts if isinstance(part, RevisionIs | RangeEmpty)]
    ops = [part for part in parts if not isinstance(part, RevisionIs | RangeEmpty)]
    return lambda session: session.commit(checks, ops, slot)


OUTSIDE: Calls = {
    "get": lambda session: session.get([MINE, THEIRS]),
    "bulk get": lambda session: session.get([THEIRS], bulk=True),
    "get of a key too short": lambda session: session.get([b"fs:a"]),
    "get of the empty key": lambda session: session.get([b""]),
    "scan": lambda session: session.scan(b"fs:b:", b"fs:b;", limit=1),
    "scan from before": lambda session: session.scan(b"", b"fs:a;", limit=1),
    "scan to behind": lambda session: session.scan(b"fs:a:", b"fs:b:", limit=1),
    "scan back": lambda session: session.scan(b"fs:a:", b"\xff", limit=1, reverse=True),
    "scan, continued": lambda session: session.scan(
        b"fs:a:", b"fs:b;", limit=1, continuation=b"fs:b:"
    ),
    "watch": lambda session: watch(session, b"fs:b:"),
    "watch all": lambda session: watch(session, b""),
    "watch what begins alike": lambda session: watch(session, b"fs:"),
    "check": commit(RevisionIs(THEIRS, 0), Put(MINE, b"")),
    "check a range": commit(RangeEmpty(b"fs:b:", b"fs:b;")),
    "check a range that goes on": commit(RangeEmpty(b"fs:a:x", b"fs:b;"), Put(MINE, b"")),
    "put": commit(Put(MINE, b""), Put(THEIRS, b"")),
    "put in a slot": commit(Put(THEIRS, b""), slot=SlotUse(0, 1)),
    "delete": commit(Delete(THEIRS)),
    "delete a range": commit(DeleteRange(b"fs:a:", b"fs:b;")),
    "delete all": commit(DeleteRange(b"", b"\xff" * 1024)),
    "patch": commit(Patch(THEIRS, 0, b"x")),
    "add": commit(Add(THEIRS, 1)),
    "copy from": commit(Copy(MINE, THEIRS)),
    "copy to": commit(Copy(THEIRS, MINE)),
    "create a ticket": lambda session: session.create_ticket(ADMIN, label="", expires_s=None),
    "create a ticket like mine": lambda session: session.create_ticket(A, label="", expires_s=None),
    "list tickets": lambda session: session.list_tickets(),
    "revoke a ticket": lambda session: session.revoke_ticket(b"I" * 16),
}

WRITES: Calls = {
    "commit": commit(Put(MINE, b"")),
    "commit in a slot": commit(Put(MINE, b""), slot=SlotUse(0, 1)),
    "check": commit(RevisionIs(MINE, 0)),
    "commit nothing": commit(),
    "lease": lambda session: session.lease(10),
    "keepalive": lambda session: session.keepalive(1),
    "revoke": lambda session: session.revoke(1),
}

READS: Calls = {
    "get": lambda session: session.get([MINE]),
    "scan": lambda session: session.scan(b"fs:a:", b"fs:a;", limit=10),
    "watch": lambda session: watch(session, b"fs:a:"),
    "revision": lambda session: session.revision(),
    "sync": lambda session: session.sync(),
    "status": lambda session: session.status(),
}

MANAGEMENT: Calls = {name: call for name, call in OUTSIDE.items() if name.endswith("ticket")}


async def content(service: Service) -> list[object]:
    """Return all that is stored."""
    kv = service.connect()
    page = await kv.scan(b"", b"\xff" * 1024, limit=1000)
    return [*page.records, await kv.revision(), *await service.store.server_records(b"")]


@pytest.fixture
async def filled(service: Service) -> Service:
    await service.connect().commit([], [Put(MINE, b"mine"), Put(THEIRS, b"theirs")])
    return service


@pytest.mark.parametrize("name", OUTSIDE)
async def test_nothing_outside_is_reached(filled: Service, name: str) -> None:
    session = await join(filled)
    before = await content(filled)
    with pytest.raises(AccessDeniedError) as caught:
        await OUTSIDE[name](session)
    assert "theirs" not in str(caught.value)
    assert await content(filled) == before


@pytest.mark.parametrize("name", WRITES)
async def test_a_reader_changes_nothing(filled: Service, name: str) -> None:
    session = await join(filled, READER)
    before = await content(filled)
    with pytest.raises(AccessDeniedError, match="read-only"):
        await WRITES[name](session)
    assert await content(filled) == before


@pytest.mark.parametrize("name", READS)
async def test_a_reader_reads(filled: Service, name: str) -> None:
    await READS[name](await join(filled, READER))


async def test_a_writer_does_all_within_his_prefix(filled: Service) -> None:
    session = await join(filled)
    lease = await session.lease(10)
    assert await session.get([MINE]) == [(b"mine", 1)]
    checks: list[Check] = [RevisionIs(MINE, 1), RangeEmpty(b"fs:a:x", b"fs:a;")]
    ops: list[Op] = [
        DeleteRange(b"fs:a:", b"fs:a;"),
        Put(b"fs:a:leased", b"", lease),
        Patch(MINE, 0, b"x"),
        Add(b"fs:a:n", 1),
        Delete(b"fs:a:nothing"),
    ]
    async with session.watch(b"fs:a:k") as watched:
        assert await session.commit(checks, ops) == (2, None)
        event = await anext(aiter(watched))
        assert {change.key for change in event.changes} == {b"fs:a:k", MINE}
    await session.keepalive(lease)
    await session.revoke(lease)
    page = await session.scan(b"fs:a:", b"fs:a;", limit=10, keys_only=True)
    assert [record.key for record in page.records] == [MINE, b"fs:a:n"]
    await session.sync()
    assert await session.revision() == 3


async def test_an_administrator_does_all(filled: Service) -> None:
    session = await join(filled, ADMIN)
    assert await session.get([MINE, THEIRS]) == [(b"mine", 1), (b"theirs", 1)]
    await session.commit([RangeEmpty(b"x", b"y")], [DeleteRange(b"", b"\xff"), Put(b"any", b"")])
    async with session.watch(b"", 0) as watched:
        assert (await anext(aiter(watched))).revision == 1
    made = await session.create_ticket(B, label="theirs", expires_s=60)
    labels = {info.label: info for info in await session.list_tickets()}
    assert labels["theirs"].ticket_id == made.ticket_id
    await session.revoke_ticket(made.ticket_id)
    assert "theirs" not in {info.label for info in await session.list_tickets()}


async def test_a_get_is_bounded_in_bytes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aspenkv.remote.GET_BYTES_MAX", 25_000)
    session = await join(service)
    await session.commit([], [Put(b"fs:a:%d" % n, bytes(10_000)) for n in range(3)])
    for bulk in (False, True):
        assert len(await session.get([b"fs:a:0", b"fs:a:1", b"fs:a:9"], bulk=bulk)) == 3
        with pytest.raises(InvalidRequestError, match="30000 bytes"):
            await session.get([b"fs:a:0", b"fs:a:1", b"fs:a:2"], bulk=bulk)
        with pytest.raises(InvalidRequestError, match="30000 bytes"):
            await session.get([b"fs:a:0"] * 3, bulk=bulk)


async def test_a_lease_is_of_the_prefix_that_made_it(open_server: OpenServer) -> None:
    """For others it does not exist; that holds on after a restart."""
    async with open_server() as service:
        lease = await (await join(service)).lease(3600)
        await (await join(service)).commit([], [Put(MINE, b"", lease)])
    async with open_server() as service:
        foreign = await join(service, B)
        calls: list[Callable[[int], Awaitable[object]]] = [
            foreign.keepalive,
            foreign.revoke,
            lambda lease: foreign.commit([], [Put(THEIRS, b"", lease)]),
        ]
        for call in calls:
            messages = set()
            for number in (lease, 4711):
                with pytest.raises(LeaseNotFoundError) as caught:
                    await call(number)
                messages.add(str(caught.value).replace(str(number), "N"))
            assert len(messages) == 1, "tells that the lease exists"
        assert (await foreign.status()).leases == 0
        assert (await (await join(service)).status()).leases == 1
        await (await join(service, ADMIN)).keepalive(lease)
        await (await join(service)).revoke(lease)
        assert await service.connect().get([MINE]) == [None]


async def test_one_volume_leaves_leases_to_the_others(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenkv.leases.LEASES_PER_PREFIX_MAX", 2)
    monkeypatch.setattr("aspenkv.leases.LEASE_KEYS_PER_PREFIX_MAX", 3)
    first, second, other = await join(service), await join(service), await join(service, B)
    lease = await first.lease(10)
    await second.lease(10)
    with pytest.raises(TooManyError):
        await second.lease(10)
    await first.commit([], [Put(b"fs:a:%d" % n, b"", lease) for n in range(3)])
    with pytest.raises(TooManyError):
        await second.commit([], [Put(b"fs:a:3", b"", lease)])
    await first.commit([], [Delete(b"fs:a:0"), Put(b"fs:a:3", b"", lease)])
    others_lease = await other.lease(10)
    await other.commit([], [Put(b"fs:b:%d" % n, b"", others_lease) for n in range(3)])
    kv = service.connect()
    for _ in range(4):
        await kv.commit([], [Put(b"%d" % n, b"", await kv.lease(10)) for n in range(4)])


async def test_status_tells_of_ones_own_volume(service: Service) -> None:
    ticket = await make_ticket(service)
    mine = await enter(service, ticket, b"M" * 16, client="mine", address="[::1]:1")
    again = await enter(service, ticket, b"M" * 16, client="mine", address="[::1]:2")
    reader, other = await join(service, READER), await join(service, B)
    await other.lease(10)
    own = (
        SessionStatus("mine", "[::1]:2", 2, can_write=True),
        SessionStatus("host", "[::1]:1", 1, can_write=False),
    )
    async with other.watch(b"fs:b:"), mine.watch(b"fs:a:"):
        status = await again.status()
        assert (status.sessions, status.leases, status.watches) == (own, 0, 1)
        assert await reader.status() == status
        admin = await join(service, ADMIN)
        everything = await admin.status()
        assert (len(everything.sessions), everything.leases, everything.watches) == (4, 1, 2)
        assert await service.connect().status() == everything
    mine.detach()
    mine.detach()
    assert (await reader.status()).sessions[0].connections == 1


# --- tickets: what is stored, and their end


async def test_only_hashes_are_stored(service: Service) -> None:
    tickets = [await make_ticket(service, grant) for grant in (A, B, ADMIN)]
    records = await service.store.server_records(b"")
    stored = b"".join(name + value for name, value in records)
    for ticket in tickets:
        assert ticket.ticket_id in stored
        assert ticket.secret not in stored
        assert ticket.secret.hex() not in repr(ticket)


async def test_tickets_and_the_key_are_found_again(open_server: OpenServer) -> None:
    async with open_server() as service:
        identity = await service.identity()
        assert await service.identity() is identity
        ticket, gone = await make_ticket(service), await make_ticket(service)
        await service.revoke_ticket(gone.ticket_id)
        listed = service.list_tickets()
    async with open_server() as service:
        assert await service.identity() == identity
        assert service.list_tickets() == listed
        assert service.authenticate(*ticket) == A
        with pytest.raises(TicketRevokedError):
            service.authenticate(*gone)


async def test_all_who_ask_at_once_get_one_identity(service: Service) -> None:
    identities = []

    async def ask() -> None:
        identities.append(await service.identity())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert len(set(identities)) == 1


def engine_of(service: Service) -> Engine:
    return service.store._engine


@pytest.mark.parametrize("name", ["identity", "create", "revoke"])
async def test_what_others_rely_on_is_synced_before_they_see_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ticket = await make_ticket(service)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "identity": service.identity,
        "create": lambda: make_ticket(service),
        "revoke": lambda: service.revoke_ticket(ticket.ticket_id),
    }
    engine = engine_of(service)
    steps: list[str] = []
    commit, sync = engine.commit, engine.sync

    async def recorded_commit(*args: object) -> object:
        steps.append("commit")
        return await commit(*args)  # type: ignore[arg-type]

    async def failing_sync() -> None:
        steps.append("sync")
        raise EngineError("the disk is gone")

    monkeypatch.setattr(engine, "commit", recorded_commit)
    monkeypatch.setattr(engine, "sync", failing_sync)
    with pytest.raises(EngineError):
        await calls[name]()
    assert steps == ["commit", "sync"]
    monkeypatch.setattr(engine, "sync", sync)
    await calls[name]()
    if name == "identity":
        assert steps == ["commit", "sync"], "what is stored is not made anew"


async def every_call_fails(session: RemoteSession, failure: type[AspenKvError]) -> None:
    for call in {**READS, **WRITES, **MANAGEMENT}.values():
        with pytest.raises(failure):
            await call(session)


async def test_revocation_ends_access_at_once(service: Service) -> None:
    ticket, other = await make_ticket(service, ADMIN), await join(service)
    session = await enter(service, ticket)
    again = await enter(service, ticket)
    await session.commit([], [Put(MINE, b"")], SlotUse(0, 1))
    async with session.watch(b"") as watched:
        assert not session.ended.is_set()
        await other.get([MINE])
        await service.revoke_ticket(ticket.ticket_id)
        assert session.ended.is_set()
        assert isinstance(again.failure, TicketRevokedError)
        with pytest.raises(TicketRevokedError):
            await anext(aiter(watched))
    for each in (session, again):
        await every_call_fails(each, TicketRevokedError)
    with pytest.raises(TicketRevokedError):
        service.authenticate(*ticket)
    await wait_all_tasks_blocked()
    assert await service.store.server_records(b"S") == []
    session.detach()
    await session.end()
    await service.revoke_ticket(ticket.ticket_id)
    await other.get([MINE])
    with pytest.raises(InvalidRequestError, match="no ticket"):
        await service.revoke_ticket(b"unknown")


async def test_a_commit_that_waits_when_its_ticket_is_revoked_is_not_done(
    service: Service,
) -> None:
    ticket = await make_ticket(service)
    session = await enter(service, ticket)
    failures: list[AspenKvError] = []

    async def late(slot: SlotUse) -> None:
        try:
            await session.commit([], [Put(MINE, bytes(200_000))], slot)
        except TicketRevokedError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery, service.store._committing:
        nursery.start_soon(late, SlotUse(0, 1))
        nursery.start_soon(late, SlotUse(0, 1))
        await wait_all_tasks_blocked()
        session._session.end(TicketRevokedError("the ticket was revoked"))
    assert len(failures) == 2
    assert await service.connect().get([MINE]) == [None]


async def test_a_ticket_revoked_on_the_way_in_lets_nobody_in(service: Service) -> None:
    ticket = await make_ticket(service)
    service.authenticate(*ticket)
    await service.revoke_ticket(ticket.ticket_id)
    with pytest.raises(TicketRevokedError):
        await service.attach(b"N" * 16, ticket.ticket_id, A, "host", "[::1]:1")
    with pytest.raises(TicketUnknownError):
        await service.attach(b"N" * 16, b"unknown", A, "host", "[::1]:1")
    assert await service.store.server_records(b"C") == []


@pytest.mark.parametrize(
    ("session", "client"),
    [(b"short", "host"), (b"N" * 17, "host"), (b"N" * 16, "a\nb"), (b"N" * 16, "ö" * 65)],
)
async def test_who_introduces_himself_with_nonsense_is_refused(
    service: Service, session: bytes, client: str
) -> None:
    ticket = await make_ticket(service)
    with pytest.raises(InvalidRequestError):
        await enter(service, ticket, session, client=client)


async def test_a_session_is_of_one_ticket(service: Service) -> None:
    await enter(service, await make_ticket(service), b"N" * 16)
    with pytest.raises(TicketError, match="another ticket"):
        await enter(service, await make_ticket(service), b"N" * 16)


async def test_a_useless_ticket_makes_room(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenkv.ticket_table.TICKETS_MAX", 2)
    first, second = await make_ticket(service), await make_ticket(service)
    with pytest.raises(TooManyError):
        await make_ticket(service)
    await service.revoke_ticket(first.ticket_id)
    third = await make_ticket(service)
    assert [info.ticket_id for info in service.list_tickets()] == [second[0], third[0]]
    assert len(await service.store.server_records(b"T")) == 2
    with pytest.raises(TicketUnknownError):
        service.authenticate(*first)


# --- expiry, by a clock that the tests turn


@pytest.fixture
async def clocked(mock_clock: MockClock) -> AsyncIterator[Service]:
    """A server whose wall clock goes with the tests' own."""

    def now_ns() -> int:
        return round((NOW_S + mock_clock.current_time()) * 1e9)

    async with open_embedded(MemoryEngine(), now_ns=now_ns) as service:
        yield service


async def test_expiry_ends_access(clocked: Service, mock_clock: MockClock) -> None:
    start_s = mock_clock.current_time()
    ticket = await make_ticket(clocked, expires_s=100)
    session = await enter(clocked, ticket)
    async with session.watch(b"fs:a:") as watched:
        mock_clock.jump(99)
        await wait_all_tasks_blocked()
        await session.get([MINE])
        assert clocked.authenticate(*ticket) == A
        mock_clock.jump(1 + start_s % 1)
        await wait_all_tasks_blocked()
        assert isinstance(session.failure, TicketExpiredError)
        with pytest.raises(TicketExpiredError):
            await anext(aiter(watched))
    await every_call_fails(session, TicketExpiredError)
    with pytest.raises(TicketExpiredError):
        clocked.authenticate(*ticket)
    with pytest.raises(TicketExpiredError):
        await clocked.attach(b"N" * 16, ticket.ticket_id, A, "host", "[::1]:1")
    assert await clocked.store.server_records(b"C") == []
    (info,) = clocked.list_tickets()
    assert info.expires_s == info.created_s + 100


async def test_a_wall_clock_that_is_set_forward_is_noticed(mock_clock: MockClock) -> None:
    now_s = [NOW_S]
    async with open_embedded(MemoryEngine(), now_ns=lambda: now_s[0] * 10**9) as service:
        session = await enter(service, await make_ticket(service, expires_s=86400))
        now_s[0] += 86400
        mock_clock.jump(limits.TICKET_CHECK_S)
        await wait_all_tasks_blocked()
        assert isinstance(session.failure, TicketExpiredError)


async def test_the_sessions_of_a_ticket_that_is_gone_are_removed() -> None:
    """The server ended between the two commits that revoke a ticket and remove its sessions."""
    engine = MemoryEngine()
    async with open_embedded(engine) as service:
        ticket = await make_ticket(service)
        await enter(service, ticket)
        (record,) = await service.store.server_records(b"T")
        await service.store.write_server_records({record[0]: None})
    async with open_embedded(engine) as service:
        await join(service, Grant(b"", can_write=False, is_admin=False))
        await wait_all_tasks_blocked()
        assert await service.store.server_records(b"C") == []
