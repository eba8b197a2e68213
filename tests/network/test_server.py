"""``aspenkv serve`` as an operator sees it, and clients of it over the loopback interface."""

from __future__ import annotations

import json
import re
import socket
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.lowlevel

from aspenfs.kv import PooledKeyValue
from aspenfs.remote import open_remote
from aspenkv.contract import ABSENT, Add, KeyValue, Put, RevisionIs, Watch
from aspenkv.errors import TicketUnknownError, UnavailableError
from aspenkv.tickets import format_ticket
from tests.network.noise import noise
from tests.network.processes import TIMEOUT_S, Server, read_line, serving

COMMITS: Final = 200
DATAGRAMS: Final = 6000
BATCH: Final = 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


async def count_up(kv: KeyValue, name: bytes, times: int = COMMITS) -> None:
    """Add one so many times; a commit that were carried out twice would show."""
    for _ in range(times):
        result = await kv.commit([], [Add(name, 1)])
        assert result.failed_check is None


async def counted(kv: KeyValue, name: bytes) -> int:
    (found,) = await kv.get([name])
    return 0 if found is None else int.from_bytes(found.value, "little")


# --- what it says --------------------------------------------------------------------------------


def test_it_says_two_lines_and_logs_objects(tmp_path: Path) -> None:
    with serving(tmp_path, "--log-json") as server:
        output = server.process.stdout
        assert output is not None
        assert read_line(output) == f"ticket   {server.ticket_file}\n".encode()
        server.process.terminate()
        assert output.read() == b""
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} == set(line) for line in lines)
    said = [line["message"] for line in lines]
    assert said[0].startswith(f"serving {server.data_dir} on 127.0.0.1:")
    assert said[1:] == ["SIGTERM", "stopping: requests under way end first", "stopped"]


@pytest.mark.logs("does not know the ticket")
async def test_no_secret_is_ever_seen(server: Server) -> None:
    """Not in the log, whatever clients do; not in the arguments of the process."""
    ticket = server.ticket
    async with open_remote(ticket, timeout_s=TIMEOUT_S) as kv:
        await kv.commit([], [Put(b"key", b"")])
    wrong = ticket._replace(secret=bytes(range(32)))
    with pytest.raises(TicketUnknownError):
        async with open_remote(wrong, timeout_s=TIMEOUT_S):
            pass
    for place in places_to_look(server):
        assert format_ticket(ticket).encode() not in place
        for secret in (ticket.secret, wrong.secret):
            assert not any(form in place for form in forms(secret))


def places_to_look(server: Server) -> tuple[bytes, bytes, bytes]:
    log = server.log.read_bytes()
    assert b"refused a client" in log
    process = Path(f"/proc/{server.process.pid}")
    return log, (process / "cmdline").read_bytes(), (process / "environ").read_bytes()


def forms(secret: bytes) -> Iterator[bytes]:
    """Yield the ways in which bytes are written, and the parts of those that do not line up."""
    yield secret
    yield secret.hex().encode()
    yield repr(secret)[2:-1].encode()
    for shift in range(3):
        yield urlsafe_b64encode(bytes(shift) + secret)[4:-4]


@pytest.mark.parametrize("address", ["{path}/notify", "@{path}"])
def test_a_service_manager_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    name = address.format(path=tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT_S)
        manager.bind("\0" + name[1:] if name.startswith("@") else name)
        with serving(tmp_path) as server:
            assert manager.recv(100) == b"READY=1"
            server.stop()
            assert manager.recv(100) == b"STOPPING=1"


# --- ends and starts again -----------------------------------------------------------------------


@pytest.mark.logs("no server can be reached")
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_clients_go_on_after_a_restart(server: Server, how: str) -> None:
    """On the same port with the same ticket; each commit is carried out once."""
    ticket_file = server.ticket_file.read_bytes()
    async with open_remote(server.ticket, timeout_s=TIMEOUT_S) as kv:
        with trio.fail_after(2 * TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for index in range(4):
                    nursery.start_soon(count_up, kv, b"%d" % index)
                for _ in range(3):
                    await trio.to_thread.run_sync(getattr(server, how))
                    await trio.to_thread.run_sync(server.start)
                    await kv.revision()
        assert [await counted(kv, b"%d" % index) for index in range(4)] == [COMMITS] * 4
        assert kv.statistics().losses == 0
        assert not kv.statistics().commits_in_doubt
    assert server.ticket_file.read_bytes() == ticket_file


@pytest.mark.logs("no server can be reached")
async def test_requests_under_way_are_answered_when_it_is_stopped(server: Server) -> None:
    """Of those that wait for each other, too; a watch ends, and goes on elsewhere or later."""
    acknowledged: list[int] = []

    async def commit(kv: PooledKeyValue, index: int) -> None:
        checks = [RevisionIs(b"%d" % index, ABSENT)]
        result = await kv.commit(checks, [Put(b"%d" % index, bytes(100_000))])
        assert result.failed_check is None
        acknowledged.append(result.revision)

    async with open_remote(server.ticket, timeout_s=TIMEOUT_S) as kv:
        async with kv.watch(b"") as watch, trio.open_nursery() as nursery:
            for index in range(50):
                nursery.start_soon(commit, kv, index)
            await trio.to_thread.run_sync(server.stop)
            with pytest.raises(UnavailableError):
                await watch_to_the_end(watch)
            await trio.to_thread.run_sync(server.start)
        assert sorted(acknowledged) == list(range(1, 51))
        assert await kv.revision() == 50


async def watch_to_the_end(watch: Watch) -> None:
    async for _ in watch:
        pass


# --- noise ---------------------------------------------------------------------------------------


async def test_random_datagrams_disturb_nobody(server: Server) -> None:
    async with open_remote(server.ticket, timeout_s=TIMEOUT_S) as kv:
        with trio.fail_after(2 * TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(count_up, kv, b"count", 2 * COMMITS)
                await send_noise(server.port)
        assert await counted(kv, b"count") == 2 * COMMITS
        statistics = kv.statistics()
        assert (statistics.pool.lost, statistics.pool.failed_dials) == (0, 0)
    async with open_remote(server.ticket, timeout_s=TIMEOUT_S) as another:
        assert await counted(another, b"count") == 2 * COMMITS
    assert not re.search("WARNING|ERROR|CRITICAL|Traceback", server.log.read_text())


async def send_noise(port: int) -> None:
    """Send in small parts, so that the server's socket has room for its clients, too."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        await stranger.connect(("127.0.0.1", port))
        for index, datagram in enumerate(noise(DATAGRAMS, seed=5)):
            await stranger.send(datagram)
            if index % BATCH == 0:
                await trio.lowlevel.checkpoint()
