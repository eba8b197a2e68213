"""A server with an address: its port, and the ticket of who owns its data."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from aspenkv.access import Grant
from aspenkv.dial import Channel, dial
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import (
    ConnectionLostError,
    InvalidRequestError,
    ServerKeyError,
    TicketRevokedError,
    UnavailableError,
)
from aspenkv.hosting import ADMIN_TICKET_NAME, Hosted, open_listener
from aspenkv.limits import DRAIN_S, TICKET_ENDPOINTS_MAX
from aspenkv.protocol import ListTickets, ReadRevision, Sync
from aspenkv.quic import bind_sockets
from aspenkv.tickets import Endpoint, Ticket, format_ticket, parse_ticket

ANY_PORT = Endpoint("127.0.0.1", 0)
OTHERS = tuple(Endpoint(f"host{index}.example.org", 7400) for index in range(9))


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


@pytest.fixture
def ticket_file(tmp_path: Path) -> Path:
    return tmp_path / ADMIN_TICKET_NAME


async def host(
    engine: MemoryEngine, directory: Path, listen: Endpoint = ANY_PORT, *advertise: Endpoint
) -> Hosted:
    """Serve for a moment."""
    async with (
        open_embedded(engine) as service,
        open_listener(service, directory, listen, advertise) as hosted,
    ):
        await enter(read(hosted.ticket_file)._replace(endpoints=(hosted.endpoints[0],)))
        return hosted


async def enter(ticket: Ticket) -> None:
    """Do what an administrator may, on the address that the ticket names."""
    async with connecting(ticket) as channel:
        await channel.call(ListTickets(), trio.current_time() + 20)


def connecting(ticket: Ticket) -> AbstractAsyncContextManager[Channel]:
    deadline_s = trio.current_time() + 20
    return dial(ticket.endpoints[0], os.urandom(16), deadline_s, ticket=ticket, client="")


def read(path: Path) -> Ticket:
    return parse_ticket(path.read_text())


class File(NamedTuple):
    text: str
    inode: int
    mode: int


def look(path: Path) -> File:
    found = path.stat()
    return File(path.read_text(), found.st_ino, stat.S_IMODE(found.st_mode))


def replace(path: Path, ticket: Ticket) -> None:
    path.write_text(format_ticket(ticket))


async def test_the_first_start_leaves_a_ticket_that_opens_everything(
    engine: MemoryEngine, tmp_path: Path, ticket_file: Path
) -> None:
    hosted = await host(engine, tmp_path)
    assert hosted.ticket_file == ticket_file
    assert read(ticket_file).endpoints == hosted.endpoints
    assert hosted.endpoints[0].host == "127.0.0.1"
    assert look(ticket_file).text.count("\n") == 1
    assert os.listdir(tmp_path) == [ADMIN_TICKET_NAME]


@pytest.mark.parametrize("umask", [0, 0o077])
async def test_nobody_else_can_ever_read_the_ticket(
    engine: MemoryEngine,
    tmp_path: Path,
    ticket_file: Path,
    umask: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes: list[int] = []
    put_in_place = Path.replace

    def note_mode(path: Path, target: Path) -> Path:
        modes.append(look(path).mode)
        return put_in_place(path, target)

    monkeypatch.setattr(Path, "replace", note_mode)
    (tmp_path / f"{ADMIN_TICKET_NAME}.new").touch(0o666)  # what a crash, or somebody, has left
    before = os.umask(umask)
    try:
        await host(engine, tmp_path)
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert look(ticket_file).mode == 0o600


async def test_port_and_ticket_stay_the_same_over_restarts(
    engine: MemoryEngine, tmp_path: Path, ticket_file: Path
) -> None:
    first = await host(engine, tmp_path)
    before = look(ticket_file)
    assert await host(engine, tmp_path) == first
    assert look(ticket_file) == before


async def test_a_port_that_is_taken_meanwhile_is_given_up(
    engine: MemoryEngine, tmp_path: Path, ticket_file: Path
) -> None:
    first = await host(engine, tmp_path)
    before = read(ticket_file)
    with bind_sockets(*first.endpoints[0]):
        second = await host(engine, tmp_path)
    assert second.endpoints != first.endpoints
    assert read(ticket_file) == before._replace(endpoints=second.endpoints)


async def test_a_port_that_is_named_is_used_or_nothing(
    engine: MemoryEngine, tmp_path: Path
) -> None:
    first = await host(engine, tmp_path)
    with bind_sockets(*first.endpoints[0]), pytest.raises(OSError, match="in use"):
        await host(engine, tmp_path, first.endpoints[0])


async def test_tickets_name_what_is_advertised(
    engine: MemoryEngine, tmp_path: Path, ticket_file: Path
) -> None:
    before: Ticket | None = None
    for advertised in (OTHERS[:1], OTHERS[1:3]):
        async with (
            open_embedded(engine) as service,
            open_listener(service, tmp_path, ANY_PORT, advertised) as hosted,
        ):
            assert hosted.endpoints == advertised
        assert read(ticket_file).endpoints == advertised
        assert before is None or before.secret == read(ticket_file).secret
        before = read(ticket_file)


@pytest.mark.parametrize("advertised", [OTHERS[: TICKET_ENDPOINTS_MAX + 1], (ANY_PORT,)])
async def test_refuses_to_advertise_what_no_ticket_can_name(
    engine: MemoryEngine, tmp_path: Path, advertised: tuple[Endpoint, ...]
) -> None:
    async with open_embedded(engine) as service:
        with pytest.raises(InvalidRequestError, match="advertise"):
            async with open_listener(service, tmp_path, ANY_PORT, advertised):
                pass
    assert os.listdir(tmp_path) == []


async def test_a_host_of_many_addresses_is_one_endpoint(
    engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.getfqdn", lambda: "files.example.org")
    async with (
        open_embedded(engine) as service,
        open_listener(service, tmp_path, Endpoint("0.0.0.0", 0)) as hosted,
    ):
        ((name, port),) = hosted.endpoints
    assert (name, port > 0) == ("files.example.org", True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text(path.read_text()[:-5]),
        lambda path: path.write_text("x" * 1_000_000),
        lambda path: replace(path, read(path)._replace(secret=bytes(32))),
        lambda path: replace(path, read(path)._replace(ticket_id=bytes(16))),
        lambda path: replace(path, read(path)._replace(fingerprint=bytes(32))),
    ],
    ids=["lost", "empty", "binary", "cut off", "long", "secret", "id", "other server"],
)
async def test_a_ticket_that_does_not_open_is_replaced_and_the_old_one_ends(
    engine: MemoryEngine, tmp_path: Path, ticket_file: Path, damage: Callable[[Path], object]
) -> None:
    await host(engine, tmp_path)
    old = read(ticket_file)
    damage(ticket_file)
    async with (
        open_embedded(engine) as service,
        open_listener(service, tmp_path, ANY_PORT) as hosted,
    ):
        new = read(ticket_file)
        assert new.secret != old.secret
        await enter(new)
        with pytest.raises(TicketRevokedError):
            await enter(old._replace(endpoints=hosted.endpoints))
        assert len(service.list_tickets()) == 1


async def test_a_ticket_for_less_in_its_place_is_replaced_and_stays_good(
    engine: MemoryEngine, tmp_path: Path, ticket_file: Path
) -> None:
    await host(engine, tmp_path)
    async with open_embedded(engine) as service:
        volume = await service.create_ticket(
            Grant(b"fs:a:", can_write=True, is_admin=False), label="", expires_s=None
        )
    less = read(ticket_file)._replace(ticket_id=volume.ticket_id, secret=volume.secret)
    replace(ticket_file, less)
    await host(engine, tmp_path)
    async with open_embedded(engine) as service:
        service.authenticate(*volume)
        assert len(service.list_tickets()) == 2


async def test_another_server_in_its_place_is_noticed(tmp_path: Path, ticket_file: Path) -> None:
    await host(MemoryEngine(), tmp_path)
    old = read(ticket_file)
    async with (
        open_embedded(MemoryEngine()) as service,
        open_listener(service, tmp_path, ANY_PORT) as hosted,
    ):
        with pytest.raises(ServerKeyError):
            await enter(old._replace(endpoints=hosted.endpoints))


async def test_an_error_in_the_block_comes_out_as_it_is(
    engine: MemoryEngine, tmp_path: Path
) -> None:
    async with open_embedded(engine) as service:
        with pytest.raises(LookupError, match="of the user"):
            async with open_listener(service, tmp_path, ANY_PORT):
                raise LookupError("of the user")


async def test_what_is_under_way_is_answered_before_the_end(
    engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, ending = trio.Event(), trio.Event(), trio.Event()
    outcomes: list[str] = []

    async def slow_sync(_session: object) -> None:
        begun.set()
        await may_end.wait()

    async def sync(channel: Channel) -> None:
        await channel.call(Sync(), trio.current_time() + 20)
        outcomes.append("answered")

    async def client(ticket: Ticket) -> None:
        async with connecting(ticket) as channel, trio.open_nursery() as nursery:
            nursery.start_soon(sync, channel)
            await begun.wait()
            ending.set()
            await until_refused(channel)
            may_end.set()
            await channel.closed.wait()
        with pytest.raises(UnavailableError):
            await enter(ticket)
        outcomes.append("gone")

    monkeypatch.setattr("aspenkv.remote.RemoteSession.sync", slow_sync)
    async with (
        open_embedded(engine) as service,
        trio.open_nursery() as nursery,
        open_listener(service, tmp_path, ANY_PORT) as hosted,
    ):
        nursery.start_soon(client, read(hosted.ticket_file))
        await ending.wait()
    assert outcomes == ["answered", "gone"]


async def until_refused(channel: Channel) -> None:
    with suppress(UnavailableError):
        while True:
            await channel.call(ReadRevision(), trio.current_time() + 20)


async def test_a_cancelled_server_hangs_up_at_once(
    engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless_sync(_session: object) -> None:
        scope.cancel()
        await trio.sleep_forever()

    async def client(ticket: Ticket) -> None:
        async with connecting(ticket) as channel:
            with pytest.raises(ConnectionLostError):
                await channel.call(Sync(), trio.current_time() + 20)

    monkeypatch.setattr("aspenkv.remote.RemoteSession.sync", endless_sync)
    began_at = trio.current_time()
    async with open_embedded(engine) as service, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with open_listener(service, tmp_path, ANY_PORT) as hosted:
                nursery.start_soon(client, read(hosted.ticket_file))
                await trio.sleep_forever()
    assert trio.current_time() - began_at < DRAIN_S
