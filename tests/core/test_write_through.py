"""What a commit leaves in the caches, whatever is under way and in whatever order answers come."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from aspenfs.cache import Caches
from aspenfs.inodes import Inodes
from aspenfs.keys import Keys
from aspenfs.metadata import Inode, Times
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import NO_INO, ROOT_INO
from aspenkv.contract import Check, CommitResult, KeyValue, Op, Versioned
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine

DIRECTORY = Inode(0o040755, 0, 0, 2, 0, 0, 0, 0, 0, NO_INO, 0, False, None, None)


class HeldAnswers:
    """A store whose answers wait for gates, in the order of the calls; no gate, no wait."""

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv
        self.get_gates: list[trio.Event] = []
        self.commit_gates: list[trio.Event] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    async def get(self, keys: Sequence[bytes], *, bulk: bool = False) -> list[Versioned | None]:
        found = await self._kv.get(keys, bulk=bulk)
        if self.get_gates:
            await self.get_gates.pop(0).wait()
        return found

    async def commit(self, checks: Sequence[Check], ops: Sequence[Op]) -> CommitResult:
        committed = await self._kv.commit(checks, ops)
        if self.commit_gates:
            await self.commit_gates.pop(0).wait()
        return committed


class Mount:
    """The layers under test, on one inode."""

    def __init__(self, kv: HeldAnswers) -> None:
        keys = Keys("v")
        self.kv = kv
        self.caches = Caches.create(time.monotonic)
        self.caches.set_live(True)
        self.transactions = Transactions(kv, keys, self.caches)
        self.inodes = Inodes(kv, keys, self.caches)

    async def write(self, *, nlink: int | None = None, times_ns: int) -> None:
        async def attempt(txn: Transaction) -> None:
            if nlink is not None:
                txn.put_inode(ROOT_INO, DIRECTORY._replace(nlink=nlink))
            txn.put_times(ROOT_INO, Times(times_ns, times_ns))

        await self.transactions.run(attempt)


@pytest.fixture
async def mount() -> AsyncIterator[Mount]:
    async with open_embedded(MemoryEngine()) as service:
        mount = Mount(HeldAnswers(service.connect()))
        await mount.write(nlink=2, times_ns=0)
        mount.caches.clear()
        yield mount


async def test_a_read_under_way_does_not_bring_back_the_times_before_a_commit(
    mount: Mount,
) -> None:
    answered = trio.Event()
    mount.kv.get_gates.append(answered)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.inodes.node, ROOT_INO)
        await trio.testing.wait_all_tasks_blocked()
        await mount.write(times_ns=7)
        answered.set()
    node = await mount.inodes.require(ROOT_INO)
    assert node.times == Times(7, 7)


async def test_two_commits_answered_in_the_other_order_leave_the_newer_of_each_record(
    mount: Mount,
) -> None:
    await mount.inodes.require(ROOT_INO)
    first, second = trio.Event(), trio.Event()
    mount.kv.commit_gates += [first, second]
    async with trio.open_nursery() as nursery:

        async def relink() -> None:
            await mount.write(nlink=3, times_ns=8)

        async def touch() -> None:
            await mount.write(times_ns=9)

        nursery.start_soon(relink)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(touch)
        await trio.testing.wait_all_tasks_blocked()
        second.set()
        await trio.testing.wait_all_tasks_blocked()
        first.set()
    node = await mount.inodes.require(ROOT_INO)
    assert (node.inode.nlink, node.times) == (3, Times(9, 9))
