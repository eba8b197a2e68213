"""The server's process, run inside the test's: signals, the service manager, failures."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from aspenkv.daemon import notify_service_manager, run_server
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.errors import DataDirectoryLockedError
from aspenkv.hosting import Hosted
from aspenkv.quic import bind_sockets
from aspenkv.tickets import Endpoint

ANY_PORT = Endpoint("127.0.0.1", 0)


class Manager:
    """A service manager's end of the socket that NOTIFY_SOCKET names."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def told(self) -> list[str]:
        """Return what it was told since the last time."""
        found: list[str] = []
        with suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(1000).decode())
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@aspenkv-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    manager = Manager(address)
    yield manager
    manager.close()


@pytest.fixture(autouse=True)
def _no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


async def run_until(stop_signal: signal.Signals, data_dir: Path, times: int = 1) -> list[Hosted]:
    ready: list[Hosted] = []

    def stop(hosted: Hosted) -> None:
        ready.append(hosted)
        for _ in range(times):
            signal.raise_signal(stop_signal)

    with trio.fail_after(60):
        await run_server(data_dir, ANY_PORT, (), on_ready=stop)
    return ready


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_serves_until_a_signal_and_can_be_started_again(
    tmp_path: Path, number: signal.Signals
) -> None:
    data_dir = tmp_path / "made" / "data"
    (first,) = await run_until(number, data_dir)
    (second,) = await run_until(number, data_dir)
    assert first == second
    assert first.ticket_file == data_dir / "admin.ticket"
    assert os.stat(data_dir).st_mode & 0o777 == 0o700


async def test_signals_that_follow_change_nothing(tmp_path: Path) -> None:
    assert len(await run_until(signal.SIGTERM, tmp_path, times=3)) == 1


async def test_the_service_manager_is_told_when_it_serves_and_when_it_ends(
    tmp_path: Path, manager: Manager
) -> None:
    def stop(_hosted: Hosted) -> None:
        assert manager.told() == []
        signal.raise_signal(signal.SIGTERM)

    await run_server(tmp_path / "data", ANY_PORT, (), on_ready=stop)
    assert manager.told() == ["READY=1", "STOPPING=1"]


@pytest.mark.logs("the service manager cannot be told 'READY=1'")
def test_a_service_manager_that_is_gone_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    notify_service_manager("READY=1")


async def test_failures_come_out_as_they_are(tmp_path: Path) -> None:
    def never(_hosted: Hosted) -> None:
        pytest.fail("it serves")

    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        await run_server(tmp_path / "file" / "data", ANY_PORT, (), on_ready=never)
    async with RocksdbEngine.open(tmp_path / "data"):
        with pytest.raises(DataDirectoryLockedError):
            await run_server(tmp_path / "data", ANY_PORT, (), on_ready=never)
    with bind_sockets("127.0.0.1", 0) as (taken,):
        here = Endpoint("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            await run_server(tmp_path / "data", here, (), on_ready=never)
