"""What the kernel is told, in which order, and who waits for it."""

from __future__ import annotations

import errno
import threading
from collections.abc import AsyncIterator, Iterable

import pytest
import trio
from trio.testing import MockClock

from aspenfs import limits
from aspenfs.kernel_notifier import KernelNotifier
from aspenfs.keys import ParsedKey
from aspenfs.known_inodes import Name
from aspenfs.types import ROOT_INO, Ino

PATIENCE_S = 10


class Kernel:
    """Notes what it is told; on request it does not return from that."""

    def __init__(self) -> None:
        self.inodes: list[tuple[Ino, bool]] = []
        self.entries: list[Name] = []
        self.failure: OSError | None = None
        self.may_return = threading.Event()
        self.may_return.set()
        self.known: tuple[Iterable[Ino], Iterable[Name]] = ((), ())

    def drop_inode(self, ino: Ino, with_pages: bool) -> None:
        self.may_return.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        self.inodes.append((ino, with_pages))

    def drop_entry(self, name: Name) -> None:
        self.may_return.wait(PATIENCE_S)
        self.entries.append(name)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
async def notifier(kernel: Kernel, nursery: trio.Nursery) -> AsyncIterator[KernelNotifier]:
    notifier = KernelNotifier(kernel.drop_inode, kernel.drop_entry, lambda: kernel.known)
    nursery.start_soon(notifier.run)
    yield notifier
    kernel.may_return.set()


async def settled(notifier: KernelNotifier, *inos: int) -> None:
    for ino in inos:
        assert await notifier.settle(Ino(ino))


async def test_each_kind_of_change_drops_what_it_is_about(
    kernel: Kernel, notifier: KernelNotifier
) -> None:
    notifier.changed(ParsedKey("D", ROOT_INO, b"name"))
    for number, kind in enumerate(("I", "C", "I.meta", "X", "M", "O", "U"), start=10):
        notifier.changed(ParsedKey(kind, number))
    await settled(notifier, *range(10, 20))
    assert sorted(kernel.inodes) == [(10, True), (11, True), (12, False), (13, False)]
    with trio.fail_after(PATIENCE_S):
        while kernel.entries != [(ROOT_INO, b"name")]:
            await trio.lowlevel.checkpoint()


async def test_the_change_that_drops_more_counts(kernel: Kernel, notifier: KernelNotifier) -> None:
    for kind in ("I.meta", "C", "I.meta"):
        notifier.changed(ParsedKey(kind, 5))
    await settled(notifier, 5)
    assert kernel.inodes == [(5, True)]


async def test_what_somebody_waits_for_is_told_first(
    kernel: Kernel, notifier: KernelNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KERNEL_BATCH_MAX", 1)
    for ino in range(1, 50):
        notifier.changed(ParsedKey("I", ino))
    await settled(notifier, 49)
    assert (49, True) in kernel.inodes
    assert len(kernel.inodes) < 40


async def test_what_nobody_changed_is_settled_at_once(notifier: KernelNotifier) -> None:
    notifier.changed(ParsedKey("I", 5))
    assert await notifier.settle(Ino(6))


async def test_a_file_is_taken_for_changing_for_a_while(
    notifier: KernelNotifier, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not notifier.is_changing(Ino(5))
    notifier.changed(ParsedKey("I.meta", 5))
    assert notifier.is_changing(Ino(5))
    mock_clock.jump(limits.KERNEL_CHANGING_S)
    assert not notifier.is_changing(Ino(5))
    monkeypatch.setattr(limits, "KERNEL_CHANGING_MAX", 1)
    notifier.changed(ParsedKey("C", 6))
    notifier.changed(ParsedKey("C", 7))
    assert not notifier.is_changing(Ino(6))
    assert notifier.is_changing(Ino(7))


async def test_nobody_waits_for_a_kernel_without_bound(
    kernel: Kernel, notifier: KernelNotifier, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.01
    kernel.may_return.clear()
    notifier.changed(ParsedKey("I", 5))
    assert not await notifier.settle(Ino(5))
    kernel.may_return.set()


async def test_after_a_gap_all_that_is_known_is_dropped(
    kernel: Kernel, notifier: KernelNotifier
) -> None:
    name = Name(ROOT_INO, b"known")
    kernel.known = ([Ino(3), Ino(4)], [name])
    notifier.changed(None)
    await settled(notifier, 3, 4)
    assert sorted(kernel.inodes) == [(3, True), (4, True)]
    with trio.fail_after(PATIENCE_S):
        while kernel.entries != [name]:
            await trio.lowlevel.checkpoint()


async def test_when_too_much_waits_everything_is_dropped(
    kernel: Kernel, notifier: KernelNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KERNEL_INVALIDATIONS_MAX", 3)
    kernel.known = ([Ino(70)], [])
    for ino in range(1, 5):
        notifier.changed(ParsedKey("I", ino))
    await settled(notifier, 70)
    assert kernel.inodes == [(70, True)]


async def test_a_kernel_that_knows_nothing_of_it_is_no_matter(
    kernel: Kernel, notifier: KernelNotifier
) -> None:
    kernel.failure = OSError(errno.ENOENT, "unknown")
    notifier.changed(ParsedKey("I", 5))
    await settled(notifier, 5)
    kernel.failure = None
    notifier.changed(ParsedKey("I", 5))
    await settled(notifier, 5)
    assert kernel.inodes == [(5, True)]


@pytest.mark.logs("the kernel could not be told of a change")
async def test_another_failure_is_logged(kernel: Kernel, notifier: KernelNotifier) -> None:
    kernel.failure = OSError(errno.EIO, "broken")
    notifier.changed(ParsedKey("I", 5))
    await settled(notifier, 5)
