"""Many tasks on few files, slow and failing commits: every task reads back what it wrote last."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
import trio

from aspenfs import limits
from aspenfs.errors import AspenError
from aspenfs.filesystem import Filesystem
from aspenfs.types import FileHandle, Ino
from aspenkv.errors import AspenKvError, EngineError
from tests.core.steering import SteeredClient, Step, dirty_bytes, failing, make_file, read_file

REGION = 40_000  # several in a chunk, and some over a border
WRITERS = 5
ROUNDS = 40
TRIES_MAX = 100

BROKEN = failing(EngineError("the disk is gone"))


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let buffers fill, and batches be cut, with little data."""
    monkeypatch.setattr(limits, "DIRTY_BYTES_MAX", 300_000)
    monkeypatch.setattr(limits, "DIRTY_FILE_BYTES_MAX", 60_000)
    monkeypatch.setattr(limits, "COMMIT_DATA_BYTES_MAX", 70_000)
    monkeypatch.setattr(limits, "COMMIT_EXTENTS_MAX", 5)
    monkeypatch.setattr(limits, "DIRTY_EXTENTS_MAX", 20)


async def until_done(call: Callable[[], Awaitable[object]]) -> None:
    """Call again while it fails; a call that fails has done nothing."""
    for _ in range(TRIES_MAX):
        try:
            await call()
        except (AspenError, AspenKvError):
            continue
        return
    raise AssertionError(f"{call} failed {TRIES_MAX} times")


def unreliable(dice: random.Random) -> list[Step]:
    """Return what the next commits meet: they take a while, and every fourth fails."""

    async def wait() -> None:
        for _ in range(dice.randint(0, 5)):
            await trio.lowlevel.checkpoint()

    async def wait_and_fail() -> None:
        await wait()
        await BROKEN()

    return [wait_and_fail if dice.random() < 0.25 else wait for _ in range(5000)]


async def close(fs: Filesystem, fh: FileHandle) -> None:
    """Close a handle; what could not be committed is committed later."""
    with suppress(AspenError, AspenKvError):
        await fs.release(fh)


async def disturb(fs: Filesystem, dice: random.Random) -> None:
    """Let others run, and now and then the store be asked anew."""
    if dice.random() < 0.2:
        fs._caches.clear()
    for _ in range(dice.randint(0, 10)):
        await trio.lowlevel.checkpoint()


async def write_region(
    fs: Filesystem, ino: Ino, offset: int, content: bytearray, dice: random.Random
) -> None:
    """Write to a region that nobody else writes; note in ``content`` what it holds."""
    fh = await fs.open(ino, os.O_RDWR)
    for _ in range(ROUNDS):
        at = dice.randrange(REGION)
        data = dice.randbytes(min(dice.choice((1, 100, 5000, REGION)), REGION - at))
        await until_done(partial(fs.write, fh, offset + at, data))
        content[at : at + len(data)] = data
        await disturb(fs, dice)
        if dice.random() < 0.05:
            await until_done(partial(fs.flush, fh))
        assert (await fs.read(fh, offset, REGION)).ljust(REGION, b"\0") == content
    await close(fs, fh)


async def append_lines(fs: Filesystem, ino: Ino, mark: bytes, dice: random.Random) -> None:
    """Append numbered lines that begin with ``mark``."""
    fh = await fs.open(ino, os.O_RDWR | os.O_APPEND)
    for number in range(ROUNDS):
        line = b"%s%d;" % (mark * dice.randint(1, 5000), number)
        await until_done(partial(fs.write, fh, 0, line))
        await disturb(fs, dice)
        if dice.random() < 0.05:
            await until_done(partial(fs.flush, fh))
        size = (await fs.getattr(ino)).size
        assert line in await fs.read(fh, 0, size)
    await close(fs, fh)


@pytest.mark.logs("could not be written")
@pytest.mark.parametrize("seed", range(3))
async def test_writers_of_regions_and_appenders_of_lines(
    fs: Filesystem, store: SteeredClient, seed: int
) -> None:
    dice = random.Random(seed)
    files = [await make_file(fs, b"%d" % number) for number in range(2)]
    log = await make_file(fs, b"log")
    marks = [b"a", b"b", b"c", b"d", b"e"]
    regions = {
        (ino, number * REGION): bytearray(REGION) for ino in files for number in range(WRITERS)
    }
    store.yields = True
    store.before_commit += unreliable(dice)
    async with trio.open_nursery() as nursery:
        for (ino, offset), content in regions.items():
            seeds = random.Random(dice.random())
            nursery.start_soon(write_region, fs, ino, offset, content, seeds)
        for mark in marks:
            nursery.start_soon(append_lines, fs, log, mark, random.Random(dice.random()))
    store.before_commit.clear()
    await until_done(fs.sync)
    assert dirty_bytes(fs) == 0
    for (ino, offset), content in regions.items():
        found = (await read_file(fs, ino))[offset : offset + REGION]
        assert found.ljust(REGION, b"\0") == content
    lines = (await read_file(fs, log)).split(b";")[:-1]
    assert len(lines) == len(marks) * ROUNDS
    for mark in marks:
        ours = [line.lstrip(mark) for line in lines if line.startswith(mark)]
        assert ours == [b"%d" % number for number in range(ROUNDS)]
