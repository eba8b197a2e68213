"""kill -9 of the process that writes: what is left is a prefix that has all that it synced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aspenkv.engine.rocksdb import RocksdbEngine

WRITER = """
import sys, trio
from pathlib import Path
from aspenkv.contract import Add, Put
from aspenkv.embedded import open_embedded
from aspenkv.engine.rocksdb import RocksdbEngine

async def main():
    async with RocksdbEngine.open(Path(sys.argv[1])) as engine, open_embedded(engine) as service:
        kv = service.connect()
        start = await kv.revision()
        for number in range(start + 1, start + 100_000):
            large = number.to_bytes(8, "big") * (4096 if number % 2 else 40_000)
            ops = [Put(b"first", b"%d" % number), Put(b"large%d" % number, large)]
            await kv.commit([], [*ops, Add(b"count", 1), Put(b"last", b"%d" % number)])
            if number % 10 == 0:
                await kv.sync()
                print(number, flush=True)

trio.run(main)
"""


def write_until_killed(path: Path, lines: int) -> int:
    """Return the last revision that was synced before the kill."""
    synced = 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        for _ in range(lines):
            synced = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
    return int(rest[-1]) if rest else synced


def tear_log(path: Path, cut_bytes: int) -> None:
    log = max(path.glob("*.log"))
    os.truncate(log, log.stat().st_size - cut_bytes)


async def check(path: Path, synced: int) -> int:
    """Hold what is there against what was written; return the newest revision."""
    async with RocksdbEngine.open(path) as engine:
        revision = engine.revision()
        assert revision >= synced
        found = await engine.get([b"first", b"last", b"count"], bulk=False)
        assert [each and each.revision for each in found] == [revision] * 3
        first, last, count = (each.value for each in found if each is not None)
        assert int(first) == int(last) == int.from_bytes(count, "little") == revision
        for number in range(1, revision + 1):
            (large,) = await engine.get([b"large%d" % number], bulk=True)
            size = 4096 if number % 2 else 40_000
            assert large == (number.to_bytes(8, "big") * size, number)
        (beyond,) = await engine.get([b"large%d" % (revision + 1)], bulk=True)
        assert beyond is None
    return revision


async def test_all_that_was_synced_is_there_after_each_of_several_kills(tmp_path: Path) -> None:
    """The second round writes over a recycled log, whose old content must not come back."""
    newest = 0
    for lines in (3, 100, 5):
        synced = write_until_killed(tmp_path, lines)
        assert synced > newest
        newest = await check(tmp_path, synced)


@pytest.mark.parametrize("cut_bytes", [1, 1000, 200_000])
async def test_a_torn_log_loses_only_its_end(tmp_path: Path, cut_bytes: int) -> None:
    synced = write_until_killed(tmp_path, 3)
    tear_log(tmp_path, cut_bytes)
    newest = await check(tmp_path, 0)
    assert newest <= synced + 10
