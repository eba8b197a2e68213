"""Locks that two mounts of one volume take: who gets what, who waits, and what failures leave."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.limits import (
    LATE_COMMIT_S,
    LOCK_YIELD_S,
    SESSION_KEEPALIVE_S,
    SESSION_TTL_S,
    TXN_BACKOFF_FIRST_S,
)
from aspenfs.lock_records import OFFSET_MAX
from aspenfs.scans import records_below
from aspenfs.types import ROOT_INO, CoherenceLevel, FileHandle, Ino
from aspenkv.contract import Delete
from aspenkv.errors import OutcomeUnknownError, UnavailableError
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import (
    Gate,
    SteeredClient,
    calls,
    failing,
    make_file,
    refused,
    turn,
)

READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
SHARED, EXCLUSIVE, NB = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_NB


class Process(NamedTuple):
    """A process of one mount that has the file open."""

    fs: Filesystem
    ino: Ino
    fh: FileHandle
    owner: int

    async def lock(
        self, kind: int = WRITE, start: int = 0, end: int = OFFSET_MAX, *, wait: bool = False
    ) -> bool:
        return await self.fs.setlk(
            self.ino, self.fh, self.owner, kind, start, end, self.owner, wait
        )

    async def unlock(self, start: int = 0, end: int = OFFSET_MAX) -> None:
        await self.lock(UNLOCK, start, end)

    async def flock(self, operation: int) -> bool:
        return await self.fs.flock(self.ino, self.fh, self.owner, operation)

    async def blocks(
        self, kind: int = WRITE, start: int = 0, end: int = OFFSET_MAX
    ) -> tuple[int, int, int, int] | None:
        """Ask for a lock that is in the way."""
        return await self.fs.getlk(
            self.ino, self.fh, self.owner, kind, start, end, self.owner
        )

    def another(self) -> Process:
        """Return another process of the same mount, with a handle that both share."""
        return self._replace(owner=self.owner + 1)

    async def close(self) -> None:
        await self.fs.flush(self.fh, self.owner)
        await self.fs.release(self.fh)


async def process(fs: Filesystem, ino: Ino, owner: int) -> Process:
    return Process(fs, ino, await fs.open(ino, os.O_RDWR, is_retry=True), owner)


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"file", b"content")


@pytest.fixture
async def here(fs: Filesystem, ino: Ino) -> AsyncIterator[Process]:
    here = await process(fs, ino, 10)
    yield here
    await fs.release(here.fh)


@pytest.fixture
async def there(peer: Filesystem, ino: Ino) -> AsyncIterator[Process]:
    """A process of another mount."""
    there = await process(peer, ino, 10)  # kernels number owners each for itself
    yield there
    await peer.release(there.fh)


class Waiting:
    """A request under way."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.error: Exception | None = None
        self.is_granted = False

    async def run(self, request: Callable[[], object]) -> None:
        with self.scope:
            try:
                await request()  # type: ignore[misc]
            except Exception as error:
                self.error = error
            else:
                self.is_granted = True


async def records(fs: Filesystem) -> list[bytes]:
    """Return the keys of all records of locks."""
    prefix = fs.keys.prefix + b"L"
    return [record.key async for record in records_below(fs.kv, prefix)]


# --- between two mounts ---------------------------------------------------------------------------


async def test_what_one_mount_has_locked_no_other_gets(here: Process, there: Process) -> None:
    await here.lock(WRITE, 10, 19)
    with refused(errno.EAGAIN):
        await there.lock(READ, 19, 30)
    await there.lock(WRITE, 20, 30)
    with refused(errno.EAGAIN):
        await here.lock(READ, 0, 20)
    await here.unlock()
    await there.lock(READ, 19, 30)
    await here.lock(READ, 0, 25)
    with refused(errno.EAGAIN):
        await there.lock(WRITE, 25, 25)


async def test_an_uncontended_lock_is_one_commit_and_no_other_call_and_so_is_its_end(
    here: Process, store: SteeredClient
) -> None:
    for _ in range(2):
        with calls(store, 1):
            await here.lock()
        with calls(store, 1):
            await here.unlock()
        assert await records(here.fs) == []
        assert not here.fs._locks._files
