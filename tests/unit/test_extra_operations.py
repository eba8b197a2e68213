"""Locks in the adapter: the kernel's older copies are gone before a lock is said to be taken."""

from __future__ import annotations

import fcntl
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import pytest
import trio
import trio.testing

from aspenfs import limits
from aspenfs.extra_operations import ExtraOperations
from aspenfs.filesystem import Filesystem
from aspenfs.kernel_notifier import KernelNotifier
from aspenfs.types import Ino

INO: Final = 7

Lock = Callable[[ExtraOperations, int], Awaitable[None]]


async def by_fcntl(served: ExtraOperations, operation: int) -> None:
    kinds = {fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK}
    await served.setlk(INO, 3, 5, kinds.get(operation, fcntl.F_UNLCK), 0, 9, 4242, True)


async def by_flock(served: ExtraOperations, operation: int) -> None:
    await served.flock(INO, 3, 5, operation)


EITHER: Final = pytest.mark.parametrize("lock", [by_fcntl, by_flock])


class FakeFilesystem:
    """Grants every lock, and says what a test wants of the copies that the kernel has."""

    def __init__(self) -> None:
        self.is_fresh = True

    async def setlk(self, *_: Any) -> bool:
        return self.is_fresh

    async def flock(self, *_: Any) -> bool:
        return self.is_fresh


class Kernel:
    """Drops its copies when it may."""

    def __init__(self) -> None:
        self.dropped: list[tuple[Ino, bool]] = []
        self.may_drop = trio.Event()

    def drop_inode(self, ino: Ino, with_pages: bool) -> None:
        trio.from_thread.run(self.may_drop.wait)
        self.dropped.append((ino, with_pages))


class Mount:
    """An adapter between a fake filesystem and a fake kernel."""

    def __init__(self) -> None:
        self.filesystem = FakeFilesystem()
        self.kernel = Kernel()
        self.notifier = KernelNotifier(self.kernel.drop_inode, lambda _name: None, lambda: ((), ()))
        self.served = ExtraOperations(cast("Filesystem", self.filesystem), self.notifier)


@pytest.fixture
async def mount(nursery: trio.Nursery) -> Mount:
    mount = Mount()
    nursery.start_soon(mount.notifier.run)
    return mount


@EITHER
async def test_a_lock_of_what_the_kernel_has_right_is_taken_at_once(
    mount: Mount, lock: Lock
) -> None:
    await lock(mount.served, fcntl.LOCK_EX)
    assert not mount.kernel.dropped


@EITHER
async def test_the_kernel_drops_what_is_older_than_a_lock_before_it_is_taken(
    mount: Mount, lock: Lock, nursery: trio.Nursery
) -> None:
    mount.filesystem.is_fresh = False
    taken = trio.Event()

    async def take() -> None:
        await lock(mount.served, fcntl.LOCK_SH)
        taken.set()

    nursery.start_soon(take)
    await trio.testing.wait_all_tasks_blocked()
    assert not taken.is_set()
    mount.kernel.may_drop.set()
    await taken.wait()
    assert mount.kernel.dropped == [(Ino(INO), True)]


@EITHER
async def test_a_lock_is_given_back_without_the_kernel(mount: Mount, lock: Lock) -> None:
    mount.filesystem.is_fresh = False
    await lock(mount.served, fcntl.LOCK_UN)
    assert not mount.kernel.dropped


async def test_a_lock_that_is_held_is_said_to_be_held_whatever_signal_comes(
    mount: Mount, nursery: trio.Nursery
) -> None:
    mount.filesystem.is_fresh = False
    taken = trio.Event()

    async def take(scope: trio.CancelScope) -> None:
        with scope:
            await by_flock(mount.served, fcntl.LOCK_EX)
            taken.set()

    scope = trio.CancelScope()
    nursery.start_soon(take, scope)
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert not taken.is_set()
    mount.kernel.may_drop.set()
    await taken.wait()


@pytest.mark.logs("the kernel keeps older pages of inode 7, which was locked")
async def test_a_kernel_that_keeps_its_pages_does_not_keep_the_lock(
    monkeypatch: pytest.MonkeyPatch, mount: Mount
) -> None:
    settled: list[Ino] = []

    async def settle(ino: Ino) -> bool:
        settled.append(ino)
        return False

    monkeypatch.setattr(mount.notifier, "settle", settle)
    await by_flock(mount.served, fcntl.LOCK_EX)
    assert settled == [Ino(INO)] * limits.LOCK_SETTLES_MAX
