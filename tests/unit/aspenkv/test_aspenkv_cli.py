"""``aspenkv``: what it prints, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from aspenkv import cli
from aspenkv.cli import main, run
from aspenkv.contract import Put
from aspenkv.embedded import open_embedded
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.hosting import Hosted
from aspenkv.quic import bind_sockets


async def fill(path: Path) -> None:
    async with RocksdbEngine.open(path) as engine, open_embedded(engine) as service:
        kv = service.connect()
        await kv.commit([], [Put(b"key", bytes(100_000), await kv.lease(60))])


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the server as soon as it has said that it serves, and leave the process as it was."""

    def announce_and_stop(hosted: Hosted) -> None:
        announce(hosted)
        signal.raise_signal(signal.SIGTERM)

    announce = cli._announce
    monkeypatch.setattr(cli, "_announce", announce_and_stop)
    monkeypatch.setattr(cli, "log_to_stderr", lambda **_options: None)
    umask = os.umask(0o022)
    yield
    os.umask(umask)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    trio.run(fill, tmp_path)
    return tmp_path


def test_status_for_people(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--data", str(data)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert list(rows) == ["engine", "revision", "used", "available", "capacity", "leases"]
    assert (rows["engine"], rows["revision"], rows["leases"]) == ("rocksdb", "1", "1")


def test_status_for_programs(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--data", str(data), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["engine"], status["revision"], status["leases"]) == ("rocksdb", 1, 1)
    assert 100_000 < status["used_bytes"] < status["capacity_bytes"]


async def test_status_beside_a_server(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with RocksdbEngine.open(data) as engine, open_embedded(engine) as service:
        await service.connect().commit([], [Put(b"key", b"")])
        await trio.to_thread.run_sync(run, ["status", "--data", str(data), "--json"])
        revision = await service.connect().revision()
    assert json.loads(capsys.readouterr().out)["revision"] == revision


def test_status_changes_no_data(data: Path) -> None:
    def written() -> dict[str, int]:
        kinds = ("CURRENT", "MANIFEST-*", "*.log", "*.sst", "*.blob")
        files = (file for kind in kinds for file in data.glob(kind))
        return {file.name: file.stat().st_mtime_ns for file in files}

    before = written()
    run(["status", "--data", str(data)])
    assert written() == before


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["status"], 2, "--data"),
        (["nonsense"], 2, "nonsense"),
        ([], 2, "Usage"),
        (["status", "--data", "{path}/absent"], 1, "absent"),
        (["status", "--data", "{path}"], 1, "holds no database"),
    ],
)
def test_failures_are_one_line_and_an_exit_code(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    exit_code: int,
    said: str,
) -> None:
    assert run([argument.format(path=tmp_path) for argument in arguments]) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    if arguments:
        assert err.startswith("aspenkv: ")
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def serve(data: Path, *arguments: str) -> list[str]:
    return ["serve", "--data", str(data), "--listen", "127.0.0.1:0", *arguments]


@pytest.mark.usefixtures("served")
def test_serve_says_where_it_is_and_where_its_ticket_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(serve(tmp_path / "data")) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("serving  127.0.0.1:")
    assert second == f"ticket   {tmp_path / 'data' / 'admin.ticket'}"


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["--listen", "127.0.0.1:{taken}"], 53, "in use"),
        (["--listen", "192.0.2.1:0"], 53, "assign"),
        (["--listen", "no-such-host.invalid:0"], 53, "address"),
        (["--listen", "127.0.0.1"], 2, "HOST:PORT"),
        (["--listen", "127.0.0.1:65536"], 2, "HOST:PORT"),
        (["--advertise", "a:1"] + ["--advertise", "b:2"] * 8, 1, "advertise"),
        (["--advertise", "a:0"], 1, "advertise"),
        (["--data", "{path}/file/data"], 1, "Not a directory"),
        (["--data", "{path}/file"], 1, "File exists"),
        (["--data", "/proc/absent"], 1, "/proc/absent"),
    ],
)
def test_serve_fails_with_one_line_and_an_exit_code(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    exit_code: int,
    said: str,
) -> None:
    (tmp_path / "file").touch()
    with bind_sockets("127.0.0.1", 0) as (taken,):
        port = taken.getsockname()[1]
        filled = [argument.format(path=tmp_path, taken=port) for argument in arguments]
        assert run(serve(tmp_path / "data", *filled)) == exit_code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("aspenkv: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_data_directory_in_use_has_its_own_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def serve_twice() -> int:
        async with RocksdbEngine.open(tmp_path):
            return await trio.to_thread.run_sync(serve_in_child, tmp_path)

    assert trio.run(serve_twice) == 31
    assert capfd.readouterr().err.count("\n") == 1


def serve_in_child(data: Path) -> int:
    command = [sys.executable, "-P", "-m", "aspenkv", *serve(data)]
    return subprocess.run(command, check=False, timeout=60).returncode


def test_damage_has_its_own_exit_code(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "CURRENT").write_bytes(b"garbage")
    assert run(["status", "--data", str(data)]) == 32
    assert "restore" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "1.2.3")
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == "aspenkv, version 1.2.3\n"
