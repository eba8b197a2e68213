"""A file that one mount removes and another has open: a crash of either, at each call of its store.

Whoever is left finds what POSIX says: the holder reads the file until it closes it, and then
nothing is left of it.
"""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import trio

from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.fsck import check_volume
from aspenfs.limits import CHUNK_BYTES, ORPHAN_LINGER_S, ORPHAN_SCAN_S
from aspenfs.types import ROOT_INO, Clock, Context, Ino
from aspenkv.contract import KeyValue
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import ClosedError
from aspenkv.service import Service
from tests.faults.jumping import TIMEOUT_S, jumping_clock
from tests.faults.stores import CALLS

ROOT: Final = Context(0, 0)
CONTENT: Final = bytes(range(256)) * (2 * CHUNK_BYTES // 256)


class Crash(enum.Enum):
    """What becomes of the call at which a mount crashes."""

    BEFORE = "the store has not seen it"
    AFTER = "it was done"


class CrashingStore:
    """A store whose user dies at a call: the one when ``countdown`` reaches 0.

    ``crashed`` is set then; that call never returns, and all others fail.
    """

    def __init__(self, kv: KeyValue, crash: Crash) -> None:
        self._kv = kv
        self._crash = crash
        self.countdown = sys.maxsize
        self.crashed = trio.Event()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._kv, name)
        return self._fragile(value) if name in CALLS else value

    def _fragile(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def fragile(*args: Any, **options: Any) -> Any:
            if self.crashed.is_set():
                raise ClosedError("the mount has crashed")
            self.countdown -= 1
            if self.countdown < 0:
                if self._crash is Crash.AFTER:
                    await call(*args, **options)
                self.crashed.set()
                await trio.sleep_forever()
            return await call(*args, **options)

        return fragile


Play = Callable[[Filesystem], Awaitable[None]]


class Stage:
    """The volume, and one mount that may crash."""

    def __init__(self, service: Service, crash: Crash) -> None:
        self.service = service
        self.store = CrashingStore(service.connect(), crash)
        self.clock = Clock(trio.current_time, lambda: 10**18)
        self.left = trio.Event()

    @asynccontextmanager
    async def mount(self, kv: Any = None) -> Any:
        """Mount the volume; by default over a connection that does not crash."""
        kv = kv or self.service.connect()
        async with open_filesystem(kv, owner=ROOT, clock=self.clock) as filesystem:
            yield filesystem

    async def play(self, part: Play) -> None:
        """Play the part of the one that may crash; then its session has lapsed, too."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_with_the_crash, nursery.cancel_scope)
            async with self.mount(self.store) as filesystem:
                lease = filesystem._orphans._session.lease
                try:
                    await part(filesystem)
                finally:
                    # Not before the crash, which takes the end of the session with it.
                    has_crashed = self.store.crashed.is_set()
            nursery.cancel_scope.cancel()
        if has_crashed:
            await self.service.connect().revoke(lease)
        self.left.set()

    async def _end_with_the_crash(self, scope: trio.CancelScope) -> None:
        await self.store.crashed.wait()
        scope.cancel()

    async def check(self, keys: Any) -> None:
        """Require that nothing is left of the file."""
        report = await check_volume(self.service.connect(), keys)
        assert report.is_clean, report.problems
        assert (report.counts.inodes, report.counts.orphans, report.counts.chunks) == (1, 0, 0)


async def make(filesystem: Filesystem) -> Ino:
    fh, made = await filesystem.create(ROOT_INO, b"file", 0o644, os.O_RDWR, ROOT)
    await filesystem.write(fh, 0, CONTENT)
    await filesystem.release(fh)
    return made.ino


async def remover_crashes(stage: Stage, countdown: int) -> None:
    async with stage.mount() as holder:
        ino = await make(holder)
        fh = await holder.open(ino, os.O_RDONLY)

        async def remove(remover: Filesystem) -> None:
            await remover.lookup(ROOT_INO, b"file")
            stage.store.countdown = countdown
            await remover.unlink(ROOT_INO, b"file")
            await trio.sleep(2 * ORPHAN_LINGER_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.play, remove)
            for _ in range(4):
                await trio.sleep(ORPHAN_SCAN_S)
                assert await holder.read(fh, 0, 2 * len(CONTENT)) == CONTENT
        assert stage.left.is_set()
        if (await holder.getattr(ino)).nlink:
            await holder.unlink(ROOT_INO, b"file")
        await holder.release(fh)
        await trio.sleep(ORPHAN_SCAN_S + 2 * ORPHAN_LINGER_S)
        await stage.check(holder.keys)


async def holder_crashes(stage: Stage, countdown: int) -> None:
    async with stage.mount() as remover:
        ino = await make(remover)
        is_open = trio.Event()

        async def hold(holder: Filesystem) -> None:
            fh = await holder.open(ino, os.O_RDONLY)
            stage.store.countdown = countdown
            is_open.set()
            for _ in range(3):
                await trio.sleep(ORPHAN_LINGER_S)
                assert await holder.read(fh, 0, 2 * len(CONTENT)) == CONTENT
            await holder.release(fh)
            await trio.sleep(ORPHAN_LINGER_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.play, hold)
            await is_open.wait()
            await remover.unlink(ROOT_INO, b"file")
        await trio.sleep(ORPHAN_SCAN_S + 2 * ORPHAN_LINGER_S)
        await stage.check(remover.keys)


@jumping_clock
@pytest.mark.usefixtures("failures_may_be_logged")
@pytest.mark.parametrize("crash", list(Crash))
@pytest.mark.parametrize("scenario", [remover_crashes, holder_crashes])
async def test_a_crash_at_any_call(
    scenario: Callable[[Stage, int], Awaitable[None]], crash: Crash
) -> None:
    async def run(countdown: int) -> int:
        """Return how many calls there were."""
        with trio.fail_after(TIMEOUT_S):
            async with open_embedded(MemoryEngine()) as service:
                stage = Stage(service, crash)
                await scenario(stage, countdown)
                return countdown - stage.store.countdown

    calls = await run(10**6)
    assert calls > 5, "who asks the store for little shows little"
    for countdown in range(calls):
        await run(countdown)
