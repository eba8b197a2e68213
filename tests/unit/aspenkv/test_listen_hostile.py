"""The server against clients that speak the protocol, and keep to nothing that it says.

Each time another client goes on as if nothing had happened.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio

from aspenkv import limits
from aspenkv.access import Grant
from aspenkv.contract import (
    CreatedTicket,
    Delete,
    DeleteRange,
    Put,
    RangeEmpty,
    RevisionIs,
    SlotUse,
)
from aspenkv.errors import (
    AccessDeniedError,
    AspenKvError,
    BusyError,
    InvalidRequestError,
    LeaseNotFoundError,
    LocalProtocolError,
    ProtocolVersionError,
    TicketError,
    TicketExpiredError,
    TicketRevokedError,
    TicketUnknownError,
    TooManyError,
    WatchGapError,
)
from aspenkv.protocol import (
    Bye,
    Commit,
    CreateTicket,
    Get,
    GrantLease,
    Keepalive,
    ListTickets,
    OpenWatch,
    ReadRevision,
    ReadStatus,
    Request,
    Revoke,
    RevokeTicket,
    Scan,
    Sync,
    encode_request,
)
from aspenkv.quic import QuicStream, StreamResetError
from aspenkv.quic.errors import MESSAGE_TOO_LARGE
from tests.network.noise import noise
from tests.unit.aspenkv.ends import SERVER, Host, RawClient

pytestmark = pytest.mark.usefixtures("virtual_time")

SESSION = b"S" * 16
A = Grant(b"fs:a:", can_write=True, is_admin=False)
B = Grant(b"fs:b:", can_write=True, is_admin=False)
READER = Grant(b"fs:a:", can_write=False, is_admin=False)
MINE, THEIRS = b"fs:a:key", b"fs:b:key"
LAST = b"\xff" * 100

EVERYTHING: list[Request] = [
    Get((b"key",), bulk=False),
    Get((b"key",), bulk=True),
    Scan(b"", LAST, 10, keys_only=False, reverse=False, continuation=None),
    Commit((), (Put(b"key", b""),), None),
    Commit((RevisionIs(b"key", 0),), (), SlotUse(0, 1)),
    GrantLease(10.0),
    Keepalive(1),
    Revoke(1),
    ReadRevision(),
    Sync(),
    ReadStatus(),
    CreateTicket(b"", can_write=True, is_admin=True, expires_s=None, label=""),
    ListTickets(),
    RevokeTicket(b"T" * 16),
    Bye(),
]

OUTSIDE: list[Request] = [
    Get((MINE, THEIRS), bulk=False),
    Get((THEIRS,), bulk=True),
    Get((b"",), bulk=False),
    Scan(b"fs:b:", b"fs:b;", 1, keys_only=True, reverse=False, continuation=None),
    Scan(b"", LAST, 1, keys_only=True, reverse=False, continuation=None),
    Scan(b"fs:a:", LAST, 1, keys_only=True, reverse=True, continuation=None),
    Commit((), (Put(MINE, b""), Put(THEIRS, b"")), None),
    Commit((), (Put(THEIRS, b""),), SlotUse(0, 1)),
    Commit((), (Delete(THEIRS),), None),
    Commit((), (DeleteRange(b"", LAST),), None),
    Commit((RevisionIs(THEIRS, 0),), (Put(MINE, b""),), None),
    Commit((RangeEmpty(b"fs:a:", b"fs:b;"),), (), None),
    CreateTicket(b"", can_write=True, is_admin=True, expires_s=None, label=""),
    CreateTicket(b"fs:a:", can_write=True, is_admin=False, expires_s=None, label=""),
    ListTickets(),
    RevokeTicket(b"T" * 16),
]

WRITES: list[Request] = [
    Commit((), (Put(MINE, b""),), None),
    Commit((), (Put(MINE, b""),), SlotUse(0, 1)),
    Commit((), (), None),
    GrantLease(10.0),
    Keepalive(1),
    Revoke(1),
]


def shown(request: Request) -> str:
    return type(request).__name__


@pytest.fixture
async def host(host: Host) -> AsyncIterator[Host]:
    """A server with another client, whose calls and watch go on, whatever happens meanwhile."""
    async with host.enter(B) as client:
        watch = await client.watch(b"fs:b:")
        await watch.read(1)
        yield host
        with trio.fail_after(5):
            result = await client.ask(Commit((), (Put(THEIRS, b"still here"),), SlotUse(0, 1)))
            await watch.read(1)
            ((value, revision),) = await client.ask(Get((THEIRS,), bulk=False))
        assert (value, revision) == (b"still here", result.revision)


# --- without a ticket ----------------------------------------------------------------------------


@pytest.mark.parametrize("request_", EVERYTHING, ids=shown)
async def test_nothing_is_served_before_hello(host: Host, request_: Request) -> None:
    async with host.connect() as client:
        with pytest.raises(AccessDeniedError):
            await client.ask(request_)
    assert await host.service.connect().revision() == 0


async def test_no_watch_is_opened_before_hello(host: Host) -> None:
    async with host.connect() as client:
        with pytest.raises(AccessDeniedError):
            await (await client.watch()).read(1)
        assert host.service.status().watches == 1


async def test_nothing_is_served_while_a_hello_is_looked_at(host: Host) -> None:
    """What is sent right behind it, in the same datagram, comes too early."""
    ticket = await host.make_ticket()
    outcomes: list[object] = []

    async def read(client: RawClient) -> None:
        try:
            outcomes.append(await client.ask(ListTickets()))
        except AccessDeniedError as error:
            outcomes.append(error)

    async with host.connect() as client, trio.open_nursery() as nursery:
        nursery.start_soon(read, client)
        await client.hello(ticket)
        await client.ask(ListTickets())
    assert isinstance(outcomes[0], AccessDeniedError)


async def test_a_ticket_is_shown_once(host: Host) -> None:
    ticket, other = await host.make_ticket(A), await host.make_ticket()
    async with host.connect() as client:
        await client.hello(ticket)
        with pytest.raises(AccessDeniedError):
            await client.hello(other)
        with pytest.raises(AccessDeniedError):
            await client.ask(ListTickets())


async def test_of_two_tickets_shown_at_once_one_counts(host: Host) -> None:
    tickets = [await host.make_ticket(A) for _ in range(4)]
    welcomed = 0

    async def hello(client: RawClient, ticket: CreatedTicket) -> None:
        nonlocal welcomed
        try:
            await client.hello(ticket)
            welcomed += 1
        except AccessDeniedError:
            pass

    async with host.connect() as client:
        async with trio.open_nursery() as nursery:
            for ticket in tickets:
                nursery.start_soon(hello, client, ticket)
        assert welcomed == 1
        assert len(host.service.status().sessions) == 2


async def test_no_ticket_is_guessed_on_one_connection(host: Host) -> None:
    ticket = await host.make_ticket()
    async with host.connect() as client:
        with pytest.raises(TicketUnknownError):
            await client.hello(ticket._replace(secret=bytes(32)))
        with pytest.raises(AccessDeniedError):
            await client.hello(ticket)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("id", TicketUnknownError),
        ("secret", TicketUnknownError),
        ("expired", TicketExpiredError),
        ("revoked", TicketRevokedError),
        ("session of another ticket", TicketError),
        ("name", InvalidRequestError),
    ],
)
async def test_what_is_wrong_with_a_hello_is_said(
    host: Host, wrong: str, error: type[AspenKvError]
) -> None:
    name = "raw"
    ticket = await host.make_ticket(A, expires_s=1e-6 if wrong == "expired" else None)
    if wrong == "id":
        ticket = ticket._replace(ticket_id=bytes(16))
    elif wrong == "secret":
        ticket = ticket._replace(secret=bytes(32))
    elif wrong == "revoked":
        await host.service.revoke_ticket(ticket.ticket_id)
    elif wrong == "name":
        name = "two\nlines"
    async with host.connect() as owner, host.connect() as client:
        await owner.hello(await host.make_ticket(A), SESSION)
        session = SESSION if wrong.startswith("session") else b"s" * 16
        with pytest.raises(error) as caught:
            await client.hello(ticket, session, name)
        assert caught.type is error
        assert ticket.secret.hex() not in str(caught.value)


async def test_a_hello_of_many_bytes_is_refused(host: Host) -> None:
    ticket = await host.make_ticket()
    async with host.connect() as client:
        for size in (limits.HELLO_BYTES_MAX + 1, limits.STREAM_WINDOW_BYTES):
            with pytest.raises(StreamResetError) as caught:
                await client.send(bytes(size))
            assert caught.value.code == MESSAGE_TOO_LARGE
        with trio.move_on_after(1) as given_up:  # which the server never lets through
            await client.send(bytes(10 * limits.STREAM_WINDOW_BYTES))
        assert given_up.cancelled_caught
        await client.hello(ticket)


# --- beyond the ticket ---------------------------------------------------------------------------


@pytest.mark.parametrize("request_", OUTSIDE, ids=shown)
async def test_nothing_outside_the_volume_is_reached(host: Host, request_: Request) -> None:
    await host.service.connect().commit([], [Put(THEIRS, b"theirs")])
    async with host.enter(A) as client:
        with pytest.raises(AccessDeniedError):
            await client.ask(request_)
        assert await host.service.connect().revision() == 1


@pytest.mark.parametrize("prefix", [b"", b"fs:", b"fs:b:", b"fs:a"])
async def test_no_watch_sees_outside_the_volume(host: Host, prefix: bytes) -> None:
    async with host.enter(A) as client:
        with pytest.raises(AccessDeniedError):
            await (await client.watch(prefix)).read(1)


@pytest.mark.parametrize("request_", WRITES, ids=shown)
async def test_a_reader_changes_nothing(host: Host, request_: Request) -> None:
    async with host.enter(READER) as client:
        with pytest.raises(AccessDeniedError):
            await client.ask(request_)
        assert await client.ask(Get((MINE,), bulk=False)) == [None]


async def test_the_servers_own_records_have_no_keys(host: Host) -> None:
    async with host.enter() as client:
        everything = Scan(b"", LAST, 1000, keys_only=False, reverse=False, continuation=None)
        assert (await client.ask(everything)).records == []
        assert await host.service.store.server_records(b"")


async def test_a_lease_of_another_volume_is_none(host: Host) -> None:
    lease = await host.service.connect().lease(60)
    async with host.enter(B) as owner, host.enter(A) as client:
        for each in (lease, await owner.ask(GrantLease(60.0))):
            for request in (
                Keepalive(each),
                Revoke(each),
                Commit((), (Put(MINE, b"", each),), None),
            ):
                with pytest.raises(LeaseNotFoundError):
                    await client.ask(request)
    assert host.service.status().leases == 2


# --- too much ------------------------------------------------------------------------------------


async def test_ten_thousand_requests_at_once(host: Host) -> None:
    outcomes = {"answered": 0, "busy": 0}

    async def ask(client: RawClient) -> None:
        try:
            await client.ask(ReadRevision())
            outcomes["answered"] += 1
        except BusyError:
            outcomes["busy"] += 1

    async with host.enter(A) as client, host.enter(B) as other, trio.open_nursery() as nursery:
        for _ in range(10_000):
            nursery.start_soon(ask, client)
        with trio.fail_after(1):
            await other.ask(ReadRevision())
    assert sum(outcomes.values()) == 10_000
    assert outcomes["answered"] >= limits.STREAMS_MAX


async def test_watches_have_a_limit(host: Host) -> None:
    ticket = await host.make_ticket(A)
    async with host.connect() as client, host.connect() as same, host.enter(A) as other:
        await client.hello(ticket, SESSION)
        await same.hello(ticket, SESSION)
        for _ in range(limits.SESSION_WATCHES_MAX):
            await (await client.watch(b"fs:a:")).read(1)
        for asking in (client, same):
            with pytest.raises(TooManyError):
                await (await asking.watch(b"fs:a:")).read(1)
        await (await other.watch(b"fs:a:")).read(1)


async def test_a_request_of_more_than_the_limit_is_cut_off(host: Host) -> None:
    async with host.enter(A) as client:
        with pytest.raises(StreamResetError) as caught:
            await client.send(bytes(2 * limits.REQUEST_BYTES_MAX))
        assert caught.value.code == MESSAGE_TOO_LARGE
        await client.ask(ReadRevision())


async def test_garbage_is_answered_as_such(host: Host) -> None:
    dice = random.Random(4)
    good = encode_request(5, 1000, Commit((), (Put(MINE, b"value"),), None))
    frames = [
        b"",
        b"\xc1",
        b"\x90",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 500,
        b"\xc6\xff\xff\xff\xff",
    ]
    frames += [dice.randbytes(dice.randrange(1, 200)) for _ in range(100)]
    frames += [good[: dice.randrange(len(good))] for _ in range(30)]
    frames += [good + b"\0"]
    async with host.enter(A) as client:
        for frame in frames:
            with pytest.raises((LocalProtocolError, ProtocolVersionError)):
                await client.ask_raw(frame)
        assert await client.ask(Get((MINE,), bulk=False)) == [None]


async def test_garbage_before_hello_is_answered_as_such(host: Host) -> None:
    async with host.connect() as client:
        for frame in (b"", b"\xc1", bytes(limits.HELLO_BYTES_MAX)):
            with pytest.raises((LocalProtocolError, ProtocolVersionError)):
                await client.ask_raw(frame)


@pytest.mark.parametrize("sent_bytes", [1, 100, limits.STREAM_WINDOW_BYTES])
async def test_streams_that_never_end_hold_up_nobody_else(host: Host, sent_bytes: int) -> None:
    async with host.enter(A) as client, host.enter(A) as other:
        half_open: list[QuicStream] = []
        for _ in range(limits.STREAMS_MAX - 1):
            stream = await client.connection.open_stream()
            await stream.send(bytes(sent_bytes))
            half_open.append(stream)
        with trio.fail_after(5):
            await client.ask(ReadRevision())
            await other.ask(Commit((), (Put(MINE, bytes(1_000_000)),), None))
        for stream in half_open:
            stream.reset(0)
        with trio.fail_after(5):
            await client.ask(Commit((), (Put(MINE, bytes(1_000_000)),), None))


async def test_who_reads_nothing_of_a_large_watch_is_told_that_it_fell_behind(host: Host) -> None:
    """The server keeps a bounded backlog of it, and writers never wait."""
    value = bytes(limits.VALUE_BYTES_MAX)
    async with host.enter(A) as client, host.enter(A) as writer:
        watch = await client.watch(b"fs:a:", values=True)
        await watch.read(1)
        for _ in range(4 * limits.WATCH_BACKLOG_BYTES_MAX // len(value)):
            with trio.fail_after(5):
                await writer.ask(Commit((), (Put(MINE, value),), None))
        with pytest.raises(WatchGapError):
            await watch.read(1000)
        await client.ask(ReadRevision())


async def test_who_reads_no_replies_holds_up_itself_only(host: Host) -> None:
    value = bytes(limits.VALUE_BYTES_MAX)
    async with host.enter(A) as client, host.enter(A) as other:
        await other.ask(Commit((), (Put(MINE, value),), None))
        request = Get((MINE,) * limits.BULK_GET_KEYS_MAX, bulk=True)
        for number in range(10):  # each of 16 MiB, of which none is read
            stream = await client.connection.open_stream()
            await stream.send(encode_request(number + 100, 20_000, request), end=True)
        await trio.sleep(5)
        assert host.service._admission.budget.bytes <= limits.SESSION_BYTES_MAX
        with trio.fail_after(5):
            await other.ask(Get((MINE,), bulk=True))
        await trio.sleep(30)  # past the deadline that the requests named
        assert host.service._admission.budget.bytes == 0
        assert host.service._admission.budget.requests == 0


async def test_a_watch_reset_at_any_moment_leaves_nothing(host: Host) -> None:
    dice = random.Random(6)
    async with host.enter(A) as client:
        for _ in range(50):
            stream = await client.connection.open_stream()
            request = OpenWatch(b"fs:a:", None, values=False, skip_own=False)
            await stream.send(encode_request(9, 1000, request), end=True)
            await trio.sleep(dice.random() * 0.004)
            stream.reset(0)
        await trio.sleep(1)
        assert host.service.status().watches == 1


async def test_forged_datagrams_between_client_and_server_are_ignored(host: Host) -> None:
    """Of both ends' addresses: whoever is on the way can send them, but not read the keys."""
    async with host.enter(A) as client:
        here = host.server.connections[-1].peer_address
        for index, datagram in enumerate(noise(2000, seed=7)):
            host.network.inject(datagram, here, tuple(SERVER))
            host.network.inject(datagram, tuple(SERVER), here)
            if index % 20 == 0:
                await client.ask(Commit((), (Put(MINE, b""),), SlotUse(0, 1 + index)))
        assert not client.connection.closed.is_set()
        assert await host.service.connect().revision() == 100
