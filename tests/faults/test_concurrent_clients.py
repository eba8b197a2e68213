"""Many tasks on two mounts of one volume, over a store whose calls take a random while.

What each operation does alone is shown elsewhere. Here they meet: the outcome of each is one that
POSIX allows, nothing hangs, both mounts agree at the end, and every record is consistent.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
import trio
import trio.testing

from aspenfs.errors import FilesystemError
from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.fsck import check_volume
from aspenfs.limits import ORPHAN_SCAN_S
from aspenfs.types import ROOT_INO, AttributeChanges, Attributes, Clock, Context, Ino
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.service import Service
from tests.faults.jumping import TIMEOUT_S, jumping_clock, let_others_run, seed_scheduling
from tests.faults.stores import SlowStore
from tests.model.inode_calls import InodeCalls
from tests.model.tree import differences, take_tree

ROOT = Context(0, 0)
SEEDS = range(20)
NAMES = (b"a", b"b", b"c")
TASKS = 4
OPERATIONS = 80
ALLOWED = frozenset(
    (
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EINVAL,
        errno.EPERM,
        errno.ESTALE,
        errno.ELOOP,
        errno.ENODATA,
    )
)


class Volume(NamedTuple):
    """A volume and two mounts of it."""

    service: Service
    one: Filesystem
    two: Filesystem


@asynccontextmanager
async def volume_with_two_mounts(dice: random.Random) -> AsyncIterator[Volume]:
    """Open a volume twice; at the end check that the mounts agree and all is consistent."""
    seed_scheduling(dice)
    clock = Clock(trio.current_time, lambda: int(trio.current_time() * 10**9))
    with trio.fail_after(TIMEOUT_S):
        async with open_embedded(MemoryEngine()) as service:
            async with (
                open_filesystem(SlowStore(service.connect(), dice), owner=ROOT, clock=clock) as one,
                open_filesystem(SlowStore(service.connect(), dice), owner=ROOT, clock=clock) as two,
            ):
                yield Volume(service, one, two)
                await one.sync()
                await two.sync()
                await trio.testing.wait_all_tasks_blocked()
                trees = [await take_tree(InodeCalls(each)) for each in (one, two)]
                assert not differences(*trees)
            async with open_filesystem(service.connect(), clock=clock) as fresh:
                found = differences(trees[0], await take_tree(InodeCalls(fresh)))
                assert not found
                await trio.sleep(ORPHAN_SCAN_S)
            report = await check_volume(service.connect(), one.keys)
            assert report.is_clean, report.problems
            assert report.counts.orphans == 0


class RandomUser:
    """Does random things in one mount, as fast as it can."""

    def __init__(self, filesystem: Filesystem, dice: random.Random) -> None:
        self._fs = filesystem
        self._dice = dice

    async def run(self) -> None:
        """Do OPERATIONS operations; only the errors that others can cause are allowed."""
        operations = (
            self._make_directory,
            self._write_file,
            self._write_file,
            self._link,
            self._unlink,
            self._rmdir,
            self._rename,
            self._rename,
            self._change,
            self._read,
            self._list,
            self._set_xattr,
        )
        for _ in range(OPERATIONS):
            try:
                await self._dice.choice(operations)()
            except FilesystemError as error:
                if error.errno not in ALLOWED:
                    raise

    def _name(self) -> bytes:
        return self._dice.choice(NAMES)

    async def _directory(self) -> Ino:
        """Walk down a random way."""
        ino = ROOT_INO
        for _ in range(self._dice.randrange(4)):
            found = await self._fs.lookup(ino, self._name())
            if (found.mode & 0o170000) != 0o040000:
                break
            ino = found.ino
        return ino

    async def _any(self) -> Attributes:
        return await self._fs.lookup(await self._directory(), self._name())

    async def _make_directory(self) -> None:
        await self._fs.mkdir(await self._directory(), self._name(), 0o755, ROOT)

    async def _write_file(self) -> None:
        flags = os.O_RDWR | self._dice.choice((0, os.O_TRUNC, os.O_APPEND, os.O_EXCL))
        fh, _ = await self._fs.create(await self._directory(), self._name(), 0o644, flags, ROOT)
        try:
            for _ in range(self._dice.randrange(3)):
                offset = self._dice.choice((0, 10, 5_000, 100_000))
                data = self._dice.randbytes(self._dice.choice((1, 100, 70_000)))
                await self._fs.write(fh, offset, data)
            if self._dice.random() < 0.3:
                await self._fs.fsync(fh)
            if self._dice.random() < 0.3:
                await trio.sleep(1)
        finally:
            await self._fs.release(fh)

    async def _link(self) -> None:
        ino = (await self._any()).ino
        await self._fs.link(ino, await self._directory(), self._name())

    async def _unlink(self) -> None:
        await self._fs.unlink(await self._directory(), self._name())

    async def _rmdir(self) -> None:
        await self._fs.rmdir(await self._directory(), self._name())

    async def _rename(self) -> None:
        flags = self._dice.choice((0, 0, 1, 2))
        source, target = await self._directory(), await self._directory()
        await self._fs.rename(source, self._name(), target, self._name(), flags)

    async def _change(self) -> None:
        found = await self._any()
        changes = self._dice.choice(
            (
                AttributeChanges(mode=0o700),
                AttributeChanges(uid=5),
                AttributeChanges(mtime_ns=5),
                AttributeChanges(size=self._dice.choice((0, 5, 80_000))),
            )
        )
        await self._fs.setattr(found.ino, changes)

    async def _read(self) -> None:
        found = await self._any()
        fh = await self._fs.open(found.ino, os.O_RDONLY)
        await self._fs.read(fh, 0, 200_000)
        await self._fs.release(fh)

    async def _list(self) -> None:
        fh = await self._fs.opendir(await self._directory())
        offset = 0
        while entries := await self._fs.readdir(fh, offset, 2):
            offset = entries[-1].next_offset
        await self._fs.releasedir(fh)

    async def _set_xattr(self) -> None:
        found = await self._any()
        if self._dice.random() < 0.5:
            await self._fs.setxattr(found.ino, b"user.x", b"value")
        else:
            await self._fs.removexattr(found.ino, b"user.x")


@jumping_clock
@pytest.mark.usefixtures("failures_may_be_logged")  # one removes what the other writes
@pytest.mark.parametrize("seed", SEEDS)
async def test_random_users_of_two_mounts_leave_a_consistent_volume(seed: int) -> None:
    dice = random.Random(seed)
    async with volume_with_two_mounts(dice) as volume, trio.open_nursery() as nursery:
        for task in range(TASKS):
            filesystem = (volume.one, volume.two)[task % 2]
            nursery.start_soon(RandomUser(filesystem, dice).run)


@jumping_clock
@pytest.mark.parametrize("seed", SEEDS)
async def test_appenders_of_two_mounts_keep_every_line_whole(seed: int) -> None:
    dice = random.Random(seed)
    lines = [
        [b"%d:%d:%s\n" % (task, n, b"x" * dice.randrange(300)) for n in range(20)]
        for task in range(4)
    ]

    async def append(filesystem: Filesystem, mine: list[bytes]) -> None:
        fh, _ = await filesystem.create(ROOT_INO, b"log", 0o644, os.O_WRONLY | os.O_APPEND, ROOT)
        for line in mine:
            await filesystem.write(fh, 0, line)
            if dice.random() < 0.3:
                await filesystem.flush(fh)
            if dice.random() < 0.1:
                await trio.sleep(1)
        await filesystem.release(fh)

    async with volume_with_two_mounts(dice) as volume:
        async with trio.open_nursery() as nursery:
            for task, mine in enumerate(lines):
                nursery.start_soon(append, (volume.one, volume.two)[task % 2], mine)
        await trio.testing.wait_all_tasks_blocked()  # every event has arrived
        found = await volume.two.lookup(ROOT_INO, b"log")
        fh = await volume.two.open(found.ino, os.O_RDONLY)
        content = await volume.two.read(fh, 0, found.size)
        await volume.two.release(fh)
    kept = content.splitlines(keepends=True)
    assert sorted(kept) == sorted(line for mine in lines for line in mine)
    for task, mine in enumerate(lines):
        assert [line for line in kept if line.startswith(b"%d:" % task)] == mine


@jumping_clock
@pytest.mark.parametrize("seed", SEEDS)
async def test_an_exclusive_create_has_one_winner(seed: int) -> None:
    dice = random.Random(seed)
    winners: list[int] = []
    losers: list[int] = []

    async def create(filesystem: Filesystem, task: int) -> None:
        try:
            fh, _ = await filesystem.create(ROOT_INO, b"lock", 0o644, os.O_WRONLY | os.O_EXCL, ROOT)
        except FilesystemError as error:
            losers.append(error.errno)
        else:
            winners.append(task)
            await filesystem.release(fh)

    async with volume_with_two_mounts(dice) as volume, trio.open_nursery() as nursery:
        for task in range(6):
            nursery.start_soon(create, (volume.one, volume.two)[task % 2], task)
    assert len(winners) == 1
    assert set(losers) == {errno.EEXIST}


@jumping_clock
async def test_a_name_that_was_just_removed_elsewhere_is_gone() -> None:
    async with (
        open_embedded(MemoryEngine()) as service,
        open_filesystem(service.connect(), owner=ROOT) as one,
        open_filesystem(service.connect(), owner=ROOT) as two,
    ):
        fh, _ = await two.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
        with pytest.raises(FilesystemError, match="EEXIST"):
            await one.mknod(ROOT_INO, b"f", 0o644, 0, ROOT)  # now it knows the name, not the inode
        await two.unlink(ROOT_INO, b"f")  # the inode stays, as it is open; the event is on its way
        with pytest.raises(FilesystemError, match="ENOENT"):
            await one.unlink(ROOT_INO, b"f")
        await two.release(fh)


@jumping_clock
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_directory_is_removed_or_filled_but_not_both(seed: int) -> None:
    dice = random.Random(seed)
    async with volume_with_two_mounts(dice) as volume:
        directory = (await volume.one.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
        # So that filling takes no longer than removing: no inode number has to be fetched.
        await volume.two.mknod(ROOT_INO, b"other", 0o644, 0, ROOT)
        outcomes: dict[str, int] = {}

        async def remove() -> None:
            await let_others_run(dice)
            await _try(outcomes, "remove", volume.one.rmdir(ROOT_INO, b"d"))

        async def fill() -> None:
            await let_others_run(dice)
            making = volume.two.mknod(directory, b"inside", 0o644, 0, ROOT)
            await _try(outcomes, "fill", making)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            nursery.start_soon(fill)
        assert outcomes in (
            {"remove": 0, "fill": errno.ENOENT},
            {"remove": errno.ENOTEMPTY, "fill": 0},
        )


async def _try(outcomes: dict[str, int], name: str, operation: Awaitable[object]) -> None:
    try:
        await operation
    except FilesystemError as error:
        outcomes[name] = error.errno
    else:
        outcomes[name] = 0


@jumping_clock
@pytest.mark.parametrize("seed", SEEDS)
async def test_crossing_moves_of_directories_make_no_cycle(seed: int) -> None:
    """Move x/a below y/b and y/b below x/a: the two write no record in common but the guard."""
    dice = random.Random(seed)
    async with volume_with_two_mounts(dice) as volume:

        async def make(*names: bytes) -> list[Ino]:
            inos = [ROOT_INO]
            for name in names:
                inos.append((await volume.one.mkdir(inos[-1], name, 0o755, ROOT)).ino)
            return inos

        _, x, _, below_a = await make(b"x", b"a", b"below")
        _, y, _, below_b = await make(b"y", b"b", b"below")
        outcomes: dict[str, int] = {}

        async def move(filesystem: Filesystem, parent: Ino, name: bytes, into: Ino) -> None:
            moving = filesystem.rename(parent, name, into, b"inside", 0)
            await _try(outcomes, name.decode(), moving)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(move, volume.one, x, b"a", below_b)
            nursery.start_soon(move, volume.two, y, b"b", below_a)
        assert sorted(outcomes.values()) == [0, errno.EINVAL]
