"""What the data directory may be, and what is said when it is not."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from aspenkv.contract import Put
from aspenkv.engine import NO_SERVER_RECORDS
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.engine.rocksdb.layout import LAYOUT
from aspenkv.errors import DataCorruptError, DataDirectoryLockedError, EngineError


def made(path: Path, mode: int) -> Path:
    path.mkdir(mode=mode)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir()]


def remove(path: Path, pattern: str) -> None:
    for file in path.glob(pattern):
        file.unlink()


async def fill(path: Path) -> None:
    async with RocksdbEngine.open(path) as engine:
        for index in range(100):
            ops = [Put(b"small%d" % index, b"v"), Put(b"large%d" % index, os.urandom(10_000))]
            await engine.commit((), ops, NO_SERVER_RECORDS)


async def open_and_read(path: Path) -> None:
    async with RocksdbEngine.open(path) as engine:
        await engine.get([b"small%d" % index for index in range(100)], bulk=True)
        await engine.get([b"large%d" % index for index in range(100)], bulk=True)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_is_made_for_its_owner_only_with_its_parents(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "some" / "where" / "data"
    old = os.umask(umask)
    try:
        async with RocksdbEngine.open(path):
            assert mode(path) == 0o700
    finally:
        os.umask(old)


async def test_an_open_directory_is_closed_to_others(tmp_path: Path) -> None:
    path = made(tmp_path / "data", 0o755)
    async with RocksdbEngine.open(path):
        assert mode(path) == 0o700


async def test_in_use_by_this_process(tmp_path: Path) -> None:
    async with RocksdbEngine.open(tmp_path):
        with pytest.raises(DataDirectoryLockedError) as caught:
            async with RocksdbEngine.open(tmp_path):
                pass
    assert str(tmp_path) in str(caught.value)
    assert "this process" in str(caught.value)


HOLDER = """
import sys, trio
from pathlib import Path
from aspenkv.engine.rocksdb import RocksdbEngine

async def main():
    async with RocksdbEngine.open(Path(sys.argv[1])):
        print("open", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[int]:
    """Let another process have the directory open; yield its number."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"open\n"
        yield holder.pid
        holder.stdin.close()


async def test_in_use_by_another_process_names_it(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path) as pid, pytest.raises(EngineError) as caught:
        async with RocksdbEngine.open(tmp_path):
            pass
    assert type(caught.value) is DataDirectoryLockedError
    assert str(tmp_path) in str(caught.value)
    assert f"process {pid}:" in str(caught.value)
    assert "\n" not in str(caught.value)
    async with RocksdbEngine.open(tmp_path):
        pass


async def test_in_use_by_a_process_that_the_kernel_does_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenkv.engine.rocksdb.errors._LOCKS", tmp_path / "absent")
    path = tmp_path / "data"
    locked = pytest.raises(DataDirectoryLockedError, match="another process")
    with held_by_another_process(path), locked:
        async with RocksdbEngine.open(path):
            pass


async def test_refuses_a_directory_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EngineError, match="name an empty directory"):
        async with RocksdbEngine.open(tmp_path):
            pass
    assert names(tmp_path) == ["thesis.txt"]


async def test_refuses_what_is_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    for each in (path, path / "below"):
        with pytest.raises(EngineError, match="name another directory"):
            async with RocksdbEngine.open(each):
                pass


def one(path: Path, pattern: str) -> Path:
    return min(path.glob(pattern))


def overwrite(file: Path, offset: int, size: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xa5" * size)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no CURRENT": lambda path: (path / "CURRENT").unlink(),
    "CURRENT overwritten": lambda path: (path / "CURRENT").write_bytes(b"garbage"),
    "CURRENT names no file": lambda path: (path / "CURRENT").write_bytes(b"MANIFEST-999999\n"),
    "no MANIFEST": lambda path: one(path, "MANIFEST-*").unlink(),
    "MANIFEST overwritten": lambda path: overwrite(one(path, "MANIFEST-*"), 0, 50),
    "MANIFEST empty": lambda path: os.truncate(one(path, "MANIFEST-*"), 0),
    "no table": lambda path: one(path, "*.sst").unlink(),
    "table overwritten": lambda path: overwrite(one(path, "*.sst"), 0, 2000),
    "table cut": lambda path: os.truncate(one(path, "*.sst"), 100),
    "no blob file": lambda path: one(path, "*.blob").unlink(),
    "blob file overwritten": lambda path: overwrite(one(path, "*.blob"), 100, 20_000),
    "blob file cut": lambda path: os.truncate(one(path, "*.blob"), 20_000),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_damage_is_told_with_the_cure(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    await fill(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataCorruptError) as caught:
        await open_and_read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "restore" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataCorruptError):  # nothing of the first attempt keeps the lock
        await open_and_read(tmp_path)


@pytest.mark.parametrize(
    "pattern", ["rocksdict-config.json", "OPTIONS-*", "IDENTITY", "LOCK", "LOG"]
)
async def test_files_that_hold_no_data_may_be_lost(tmp_path: Path, pattern: str) -> None:
    await fill(tmp_path)
    remove(tmp_path, pattern)
    async with RocksdbEngine.open(tmp_path) as engine:
        assert engine.revision() == 100


async def test_refuses_a_database_of_another_program(tmp_path: Path) -> None:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    with Rdict(str(tmp_path), options) as db:
        db.put(b"key", b"value")
    for _ in range(2):
        with pytest.raises(EngineError, match="storage layout no"):
            async with RocksdbEngine.open(tmp_path):
                pass


async def test_refuses_a_newer_layout(tmp_path: Path) -> None:
    async with RocksdbEngine.open(tmp_path) as engine:
        engine._db.put(LAYOUT, b"3")
    for _ in range(2):
        with pytest.raises(EngineError, match="storage layout 3"):
            async with RocksdbEngine.open(tmp_path):
                pass
