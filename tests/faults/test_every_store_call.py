"""One fault at each single call of the store, in turn, under a scenario that does a bit of all.

Whatever the fault: at most one operation fails, and done again it succeeds; nothing hangs; no byte
is lost; what the mount shows is what a fresh mount shows; the records are consistent.
"""

from __future__ import annotations

import os
import random
import stat
import sys
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest
import trio

from aspenfs.errors import AspenError
from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.fsck import check_volume
from aspenfs.limits import ORPHAN_SCAN_S
from aspenfs.types import Clock, Context, FileHandle
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import AspenKvError
from tests.faults.jumping import TIMEOUT_S, jumping_clock
from tests.faults.stores import Fault, FaultyStore
from tests.model.inode_calls import InodeCalls
from tests.model.tree import Tree, differences, take_tree

ROOT = Context(0, 0)
BYTES = random.Random(1).randbytes(300_000)


class Mount(NamedTuple):
    """A mount under test and its calls."""

    filesystem: Filesystem
    calls: InodeCalls


Action = Callable[[Mount], Awaitable[object]]


class Step(NamedTuple):
    """What a program does, and what it does when that fails."""

    first: Action
    again: Action


def step(name: str, *args: object) -> Step:
    """Return a step that makes one path-based call, and makes it again if it fails."""

    async def call(mount: Mount) -> None:
        await getattr(mount.calls, name)(*args)

    return Step(call, call)


class File:
    """A file that stays open from one step to a later one."""

    def __init__(self, path: tuple[bytes, ...]) -> None:
        self._path = path
        self._fh = FileHandle(-1)

    def open(self, flags: int) -> Step:
        async def call(mount: Mount) -> None:
            self._fh = FileHandle(await mount.calls.open(self._path, flags, 0o644))

        return Step(call, call)

    def _step(self, name: str, *args: object) -> Step:
        async def call(mount: Mount) -> None:
            await getattr(mount.calls, name)(self._fh, *args)

        return Step(call, call)

    def write(self, offset: int, length: int) -> Step:
        return self._step("pwrite", BYTES[:length], offset)

    def truncate(self, size: int) -> Step:
        return self._step("ftruncate", size)

    def fsync(self) -> Step:
        return self._step("fsync")

    def flush(self) -> Step:
        return self._step("flush")

    def close(self) -> Step:
        """Close, which happens even if it fails; the rest is then up to sync."""

        async def call(mount: Mount) -> None:
            await mount.calls.release(self._fh)

        async def sync(mount: Mount) -> None:
            await mount.filesystem.sync()

        return Step(call, sync)


async def _let_time_pass(_mount: Mount) -> None:
    await trio.sleep(2)


WAIT_FOR_THE_BACKGROUND = Step(_let_time_pass, _let_time_pass)


def names_scenario() -> list[Step]:
    """Return steps that change the tree."""
    regular = stat.S_IFREG | 0o644
    return [
        step("mkdir", (b"a",), 0o755),
        step("mkdir", (b"a", b"b"), 0o755),
        step("mknod", (b"a", b"f"), regular, 0),
        step("link", (b"a", b"f"), (b"g",)),
        step("symlink", (b"s",), b"target"),
        step("setxattr", (b"g",), b"user.x", b"value", 0),
        step("chmod", (b"g",), 0o600),
        step("chown", (b"a",), 1000, 1000),
        step("rename", (b"a", b"b"), (b"moved",), 0),
        step("mknod", (b"h",), regular, 0),
        step("rename", (b"h",), (b"g",), 0),
        step("removexattr", (b"a", b"f"), b"user.x"),
        step("unlink", (b"a", b"f")),
        step("rename", (b"moved",), (b"a",), 0),
        step("listdir", ()),
        step("rmdir", (b"a",)),
    ]


def data_scenario() -> list[Step]:
    """Return steps that write: inline, into chunks, over holes, and into a file without a name."""
    file, gone, reopened = File((b"f",)), File((b"gone",)), File((b"f",))
    return [
        file.open(os.O_RDWR | os.O_CREAT),
        file.write(0, 100),
        file.flush(),
        file.write(50, 100),
        file.write(100_000, 70_000),
        file.fsync(),
        file.write(4_000, 200),
        WAIT_FOR_THE_BACKGROUND,
        file.truncate(120_000),
        file.write(10, 10),
        file.truncate(150_000),
        file.write(149_000, 150_000),
        WAIT_FOR_THE_BACKGROUND,
        file.flush(),
        gone.open(os.O_RDWR | os.O_CREAT),
        gone.write(0, 80_000),
        gone.flush(),
        step("unlink", (b"gone",)),
        gone.write(80_000, 80_000),
        gone.close(),
        file.flush(),
        file.close(),
        reopened.open(os.O_RDWR | os.O_TRUNC),
        reopened.write(3, 3),
        reopened.flush(),
        reopened.write(100_000, 3),
        reopened.close(),
    ]


def append_scenario() -> list[Step]:
    """Return steps that append."""
    file = File((b"f",))
    return [
        file.open(os.O_RDWR | os.O_CREAT | os.O_APPEND),
        file.write(0, 100),
        file.flush(),
        file.write(0, 70_000),
        WAIT_FOR_THE_BACKGROUND,
        file.write(0, 10),
        file.fsync(),
        file.write(0, 20),
        file.flush(),
        file.close(),
    ]


class WallClock:
    """Time that only the scenario moves, so that two runs of it agree."""

    def __init__(self) -> None:
        self.now_ns = 10**18

    def clock(self) -> Clock:
        return Clock(trio.current_time, lambda: self.now_ns)


async def run(scenario: Scenario, fault: Fault, countdown: int) -> tuple[Tree, int]:
    """Do a scenario on a new volume with a fault at one call; check all that must hold.

    Returns the tree at the end, and how many calls it took.
    """
    async with open_embedded(MemoryEngine()) as service:
        wall = WallClock()
        store = FaultyStore(service.connect(), fault)
        async with open_filesystem(store, owner=ROOT, clock=wall.clock()) as filesystem:
            mount = Mount(filesystem, InodeCalls(filesystem))
            store.countdown = countdown
            await _do(scenario(), mount, store, wall)
            calls = countdown - store.countdown
            store.countdown = -1
            tree = await take_tree(mount.calls)
            async with open_filesystem(service.connect(), clock=wall.clock()) as fresh:
                fresh_tree = await take_tree(InodeCalls(fresh))
        assert not differences(tree, fresh_tree), "what is shown is not what is stored"
        async with open_filesystem(service.connect(), clock=wall.clock()):
            await trio.sleep(ORPHAN_SCAN_S)  # what the first mount could not remove goes now
        report = await check_volume(service.connect(), filesystem.keys)
        assert report.is_clean, report.problems
        assert report.counts.orphans == 0
        return tree, calls


async def _do(steps: list[Step], mount: Mount, store: FaultyStore, wall: WallClock) -> None:
    """Do the steps. One may fail, because of the fault, and is done again."""
    may_fail = True
    for each in steps:
        wall.now_ns += 10**9
        if not await _try(each.first, mount, store):
            assert may_fail, "one fault made two operations fail"
            assert store.has_struck, "it failed, but there was no fault"
            may_fail = False
            try:
                with trio.fail_after(TIMEOUT_S):
                    await each.again(mount)
            except OSError:
                # Made again what was already made: EEXIST, or ENOENT.
                assert store.fault.is_done, "it failed again, without a fault"


async def _try(action: Action, mount: Mount, store: FaultyStore) -> bool:
    """Do something in a scope that the fault may cancel; return whether it ended well."""
    store.task = trio.lowlevel.current_task()
    try:
        with trio.fail_after(TIMEOUT_S), trio.CancelScope() as scope:
            store.scope = scope
            await action(mount)
    except (AspenError, AspenKvError, OSError):
        return False
    else:
        return not scope.cancelled_caught
    finally:
        store.task = None


Scenario = Callable[[], list[Step]]


CASES = [
    pytest.param(scenario, fault, id=f"{scenario.__name__}-{fault.value}")
    for scenario in (names_scenario, data_scenario, append_scenario)
    for fault in Fault
]


@jumping_clock
@pytest.mark.usefixtures("failures_may_be_logged")
@pytest.mark.parametrize(("scenario", "fault"), CASES)
async def test_a_fault_at_any_call_is_reported_and_harmless(
    scenario: Scenario, fault: Fault
) -> None:
    expected, calls = await run(scenario, fault, sys.maxsize)
    assert calls > len(scenario()) // 2, "a scenario that asks the store for little shows little"
    for countdown in range(calls):
        tree, _ = await run(scenario, fault, countdown)
        found = differences(tree, expected)
        assert not found, f"fault at call {countdown}: " + "\n".join(found)
