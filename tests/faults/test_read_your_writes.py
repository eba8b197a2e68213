"""A file is read as it was last written, whatever commits of it are on their way meanwhile."""

from __future__ import annotations

import os
import random

import pytest
import trio

from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.fsck import check_volume
from aspenfs.types import ROOT_INO, AttributeChanges, Clock, Context, FileHandle, Ino
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from tests.faults.jumping import TIMEOUT_S, jumping_clock, let_others_run, seed_scheduling
from tests.faults.stores import SlowStore

ROOT = Context(0, 0)
SEEDS = range(20)
STEPS = 60
OFFSETS = (0, 1, 4_000, 4_096, 65_000, 65_536, 130_000)
LENGTHS = (1, 50, 4_096, 5_000, 65_536, 100_000)
SIZES = (0, 1, 4_096, 4_097, 65_536, 90_000, 200_000)
BYTES = random.Random(4).randbytes(300_000)


class Writer:
    """Writes to a file at random, and after each step compares it with what it should hold."""

    def __init__(
        self, filesystem: Filesystem, ino: Ino, fh: FileHandle, dice: random.Random
    ) -> None:
        self._fs = filesystem
        self._ino = ino
        self._fh = fh
        self._dice = dice
        self.expected = bytearray()

    async def run(self) -> None:
        """Do STEPS steps."""
        for _ in range(STEPS):
            for _ in range(self._dice.randrange(1, 4)):
                await let_others_run(self._dice)
                await self._dice.choice((self._write, self._write, self._write, self._cut))()
            await let_others_run(self._dice)
            await self._compare()

    async def _write(self) -> None:
        offset, length = self._dice.choice(OFFSETS), self._dice.choice(LENGTHS)
        start = self._dice.randrange(1000)
        data = BYTES[start : start + length]
        assert await self._fs.write(self._fh, offset, data) == length
        self.expected.extend(bytes(max(0, offset - len(self.expected))))
        self.expected[offset : offset + length] = data

    async def _cut(self) -> None:
        size = self._dice.choice(SIZES)
        if self._dice.random() < 0.5:
            return
        await self._fs.setattr(self._ino, AttributeChanges(size=size), self._fh)
        del self.expected[size:]
        self.expected.extend(bytes(size - len(self.expected)))

    async def _compare(self) -> None:
        assert (await self._fs.getattr(self._ino)).size == len(self.expected)
        offset = self._dice.choice((0, *OFFSETS))
        found = await self._fs.read(self._fh, offset, len(BYTES))
        assert found == self.expected[offset:]


@jumping_clock
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_file_is_read_as_it_was_written(seed: int) -> None:
    dice = random.Random(seed)
    seed_scheduling(dice)

    async def keep_committing(filesystem: Filesystem, fh: FileHandle) -> None:
        while True:
            await let_others_run(dice)
            await filesystem.flush(fh)

    with trio.fail_after(TIMEOUT_S):
        async with open_embedded(MemoryEngine()) as service:
            store = SlowStore(service.connect(), dice)
            clock = Clock(trio.current_time, lambda: 10**18)
            async with open_filesystem(store, owner=ROOT, clock=clock) as filesystem:
                fh, made = await filesystem.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
                writer = Writer(filesystem, made.ino, fh, dice)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keep_committing, filesystem, fh)
                    await writer.run()
                    nursery.cancel_scope.cancel()
                await filesystem.release(fh)
            async with open_filesystem(service.connect(), clock=clock) as fresh:
                found = await fresh.lookup(ROOT_INO, b"f")
                fh = await fresh.open(found.ino, os.O_RDONLY)
                assert await fresh.read(fh, 0, len(BYTES)) == writer.expected
                await fresh.release(fh)
            report = await check_volume(service.connect(), filesystem.keys)
            assert report.is_clean, report.problems
