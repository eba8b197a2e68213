"""Locks under load: every carrier, random requests against a model, and against the kernel's own.

The kernel answers for a file of a local filesystem, where each owner is an open file description
(F_OFD_SETLK, flock), of which one process can have many.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from trio.testing import MockClock

from aspenfs.errors import FilesystemError
from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.fsck import check_volume
from aspenfs.lock_records import OFFSET_MAX
from aspenfs.types import Clock, FileHandle, Ino
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from tests.contract.carriers import Carrier, carried
from tests.contract.conftest import call_in_place
from tests.core.steering import ROOT, WallClock, make_file, read_file

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
CARRIERS = (Carrier("memory"), Carrier("memory", over_quic=True))
MOUNTS = 2
OWNERS = 3  # of each mount
SEEDS = range(6)
STEPS = 60
BYTES = 16

Kernel = tuple[int, int, int]
"""What F_GETLK shows of a lock: its kind, and its range."""


@asynccontextmanager
async def mounts(carrier: Carrier, count: int) -> AsyncIterator[list[Filesystem]]:
    """Mount one volume from several machines."""
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(open_embedded(MemoryEngine()))
        connect = await stack.enter_async_context(carried(carrier, service))
        clock = Clock(trio.current_time, WallClock())
        opened: list[Filesystem] = []
        for _ in range(count):
            opening = open_filesystem(await connect(), owner=ROOT, clock=clock)
            opened.append(await stack.enter_async_context(opening))
        yield opened
        assert (await check_volume(opened[0].kv, opened[0].keys)).is_clean


@pytest.fixture(autouse=True)
def _in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio.to_thread.run_sync", call_in_place)


class KernelOwner:
    """An open file description of a local file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT)

    def _ask(self, command: int, kind: int, start: int, end: int) -> bytes:
        length = 0 if end == OFFSET_MAX else end - start + 1
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
        return fcntl.fcntl(self._fd, command, request)

    def setlk(self, kind: int, start: int, end: int) -> int:
        """Return the errno of a request that does not wait; 0 if it was granted."""
        try:
            self._ask(fcntl.F_OFD_SETLK, kind, start, end)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def getlk(self, kind: int, start: int, end: int) -> bool:
        """Return whether something is in the way."""
        answer = self._ask(fcntl.F_OFD_GETLK, kind, start, end)
        return bool(struct.unpack("hhqqi4x", answer)[0] != UNLOCK)

    def flock(self, operation: int) -> int:
        """Return the errno of a request that does not wait; 0 if it was granted."""
        try:
            fcntl.flock(self._fd, operation)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def close(self) -> None:
        os.close(self._fd)


class Owner(NamedTuple):
    """One of a mount, and what stands for it on the local filesystem."""

    fs: Filesystem
    ino: Ino
    fh: FileHandle
    number: int
    kernel: KernelOwner

    async def setlk(self, kind: int, start: int, end: int, *, wait: bool = False) -> int:
        try:
            await self.fs.setlk(self.ino, self.fh, self.number, kind, start, end, 1, wait)
        except FilesystemError as error:
            return error.errno
        return 0

    async def getlk(self, kind: int, start: int, end: int) -> bool:
        found = await self.fs.getlk(self.ino, self.fh, self.number, kind, start, end, 1)
        return found is not None

    async def flock(self, operation: int) -> int:
        try:
            await self.fs.flock(self.ino, self.fh, self.number, operation)
        except FilesystemError as error:
            return error.errno
        return 0


@asynccontextmanager
async def owners(carrier: Carrier, path: Path) -> AsyncIterator[list[Owner]]:
    async with mounts(carrier, MOUNTS) as opened:
        ino = await make_file(opened[0], b"file", b"0")
        found = [
            Owner(fs, ino, await fs.open(ino, os.O_RDWR, is_retry=True), number, KernelOwner(path))
            for fs in opened
            for number in range(OWNERS)
        ]
        try:
            yield found
        finally:
            for owner in found:
                await owner.fs.release(owner.fh)
                owner.kernel.close()


async def step(one: Owner, dice: random.Random) -> None:
    """Ask both for the same and compare the answers."""
    start, end = sorted(dice.choices([*range(BYTES), OFFSET_MAX], k=2))
    match dice.randrange(8):
        case 0:
            operation = dice.choice([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]) | fcntl.LOCK_NB
            assert await one.flock(operation) == one.kernel.flock(operation)
        case 1:
            kind = dice.choice([READ, WRITE])
            found = await one.getlk(kind, start, end)
            assert found == one.kernel.getlk(kind, start, end)
        case _:
            kind = dice.choice([READ, READ, WRITE, UNLOCK])
            assert await one.setlk(kind, start, end) == one.kernel.setlk(kind, start, end)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("carrier", CARRIERS, ids=str)
async def test_every_answer_is_that_of_the_kernel_on_a_local_filesystem(
    carrier: Carrier, seed: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    del autojump_clock
    dice = random.Random(seed)
    async with owners(carrier, tmp_path / "local") as all_owners:
        for _ in range(STEPS):
            await step(dice.choice(all_owners), dice)
        for one in all_owners:  # what each still has
            for at in range(BYTES):
                found = await one.getlk(WRITE, at, at)
                assert found == one.kernel.getlk(WRITE, at, at)


class Ledger:
    """Who has which bytes, as those know who were granted them."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], int] = {}

    def take(self, who: int, kind: int, start: int, end: int) -> None:
        for at in range(start, end + 1):
            for (other, byte), other_kind in self._held.items():
                shared = kind == other_kind == READ
                assert other == who or byte != at or shared, f"{who} and {other} have byte {at}"
            self._held[who, at] = kind

    def give_back(self, who: int, start: int, end: int) -> None:
        for at in range(start, end + 1):
            self._held.pop((who, at), None)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("carrier", CARRIERS, ids=str)
async def test_nobody_has_what_another_has_and_everybody_gets_what_he_waits_for(
    carrier: Carrier, seed: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    del autojump_clock
    ledger = Ledger()

    async def work(who: int, one: Owner) -> None:
        dice = random.Random(100 * seed + who)
        for _ in range(12):
            start, end = sorted(dice.choices(range(BYTES), k=2))
            kind = dice.choice([READ, WRITE])
            with trio.move_on_after(dice.choice([0.0005, 0.05, float("inf")])):
                # One at a time, so that there is no circle.
                assert await one.setlk(kind, start, end, wait=True) == 0
                ledger.take(who, kind, start, end)
                try:
                    await trio.sleep(dice.uniform(0, 0.002))
                finally:
                    ledger.give_back(who, start, end)
                    with trio.CancelScope(shield=True):
                        assert await one.setlk(UNLOCK, start, end) == 0

    async with owners(carrier, tmp_path / "local") as all_owners:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for who, one in enumerate(all_owners):
                    nursery.start_soon(work, who, one)
        await trio.sleep(1)
        one = all_owners[0]
        assert not await one.getlk(WRITE, 0, OFFSET_MAX)
        with trio.fail_after(5):
            assert await one.setlk(WRITE, 0, OFFSET_MAX, wait=True) == 0


@pytest.mark.parametrize("carrier", CARRIERS, ids=str)
@pytest.mark.parametrize("is_flock", [False, True])
async def test_no_increment_under_a_lock_is_lost(
    carrier: Carrier, is_flock: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """lock, read, write, unlock: as if there were one machine."""
    del autojump_clock
    rounds = 10

    async def count(one: Owner) -> None:
        lock: Callable[[], object] = (
            partial(one.flock, fcntl.LOCK_EX)
            if is_flock
            else partial(one.setlk, WRITE, 0, OFFSET_MAX, wait=True)
        )
        for _ in range(rounds):
            assert await lock() == 0  # type: ignore[misc]
            number = int(await one.fs.read(one.fh, 0, 20))
            await one.fs.write(one.fh, 0, b"%d" % (number + 1))
            if is_flock:
                await one.flock(fcntl.LOCK_UN)
            else:
                await one.setlk(UNLOCK, 0, OFFSET_MAX)

    async with owners(carrier, tmp_path / "local") as all_owners:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for one in all_owners:
                    nursery.start_soon(count, one)
        one = all_owners[0]
        assert await read_file(one.fs, one.ino) == b"%d" % (rounds * len(all_owners))
