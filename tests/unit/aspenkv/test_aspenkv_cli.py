"""``aspenkv``: what it prints, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from aspenkv.cli import main, run
from aspenkv.contract import Put
from aspenkv.embedded import open_embedded
from aspenkv.engine.rocksdb import RocksdbEngine


async def fill(path: Path) -> None:
    async with RocksdbEngine.open(path) as engine, open_embedded(engine) as service:
        kv = service.connect()
        await kv.commit([], [Put(b"key", bytes(100_000), await kv.lease(60))])


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
