"""A client of the store that does as a test says, and what else the tests of the core share."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs.chunks import extent_bytes
from aspenfs.errors import AspenError, errno_of
from aspenfs.filesystem import Filesystem
from aspenfs.fsck import Report, check_volume
from aspenfs.limits import CHUNK_BYTES, DIRTY_BYTES_MAX, DIRTY_FILE_BYTES_MAX, KV_TIMEOUT_S
from aspenfs.scans import records_below
from aspenfs.types import ROOT_INO, Context, FileHandle, Ino
from aspenkv.contract import (
    Check,
    CommitResult,
    KeyValue,
    Newest,
    Op,
    ScanPage,
    Status,
    Versioned,
    Watch,
    WatchEvent,
)
from aspenkv.errors import AspenKvError, OutcomeUnknownError, UnavailableError
from aspenkv.service import Service, ServiceClient
from aspenkv.watches import PrefixWatch

ROOT = Context(uid=0, gid=0)
ALICE = Context(uid=1000, gid=100)
NOBODYS_INO = Ino(999_999)
NOBODYS_HANDLE = FileHandle(999_999)

Step = Callable[[], Awaitable[None]]


class Gate:
    """A step that holds a call until it is opened, and tells when a call has come to it."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self._opened = trio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self._opened.wait()

    def open(self) -> None:
        self._opened.set()


def failing(error: Exception) -> Step:
    """Return a step that raises ``error``."""

    async def fail() -> None:
        raise error

    return fail


class SteeredWatch:
    """A watch whose events can be held back, as a network may."""

    def __init__(self, client: SteeredClient, watch: PrefixWatch) -> None:
        self._client = client
        self._watch = watch
        self._told = watch.revision
        self._has_held = False

    @property
    def revision(self) -> int:
        is_held = self._has_held or self._client.holds_feed
        return self._told if is_held else self._watch.revision

    def __aiter__(self) -> SteeredWatch:
        return self

    async def __anext__(self) -> WatchEvent:
        event = await anext(self._watch)
        self._has_held = self._client.holds_feed
        while self._client.holds_feed:
            await self._client.feed_released.wait()
        self._has_held = False
        self._told = event.revision
        return event

    async def newest(self) -> Newest:
        self._client.newest_calls += 1
        await self._client._meet(self._client.before_newest)
        return await self._watch.newest()


class SteeredClient(ServiceClient):
    """A client whose calls meet one step each, in the order of the calls; no step left, no wait.

    ``before_commit``: the store has not seen the commit yet. ``after_commit``, ``after_get``,
    ``after_scan``: the store has done its part, but the answer has not arrived; so a commit that
    fails there was done.
    With ``yields`` other tasks run before and after each call, as if it went over a network.
    Between :meth:`leave` and :meth:`come_back` no call reaches the store, and no answer the client.
    ``calls`` counts those of the filesystem's operations, whatever comes of them.
    """

    def __init__(self, service: Service) -> None:
        super().__init__(service, process_bound=True)
        self.before_commit: list[Step] = []
        self.after_commit: list[Step] = []
        self.before_get: list[Step] = []
        self.after_get: list[Step] = []
        self.before_scan: list[Step] = []
        self.after_scan: list[Step] = []
        self.before_keepalive: list[Step] = []
        self.before_newest: list[Step] = []
        self.newest_calls = 0
        self.holds_feed = False
        self.feed_released = trio.Event()
        self.commits: list[Sequence[Op]] = []
        self.gets = 0
        self.scans = 0
        self.syncs = 0
        self.calls = 0
        self.yields = False
        self.waiting = 0
        self._holds_back = False
        self._held_back: tuple[Sequence[Check], Sequence[Op]] = ((), ())
        self._watches: set[PrefixWatch] = set()
        self._here = trio.Event()
        self._here.set()

    def leave(self) -> None:
        """Lose the store: watches break, and calls wait for it as long as a carrier's do."""
        self._here = trio.Event()
        for watch in self._watches:
            watch.fail(UnavailableError("the test took the store away"))

    def come_back(self) -> None:
        """Find the store again."""
        self._here.set()

    def hold_feed(self) -> None:
        """Let no event arrive until :meth:`release_feed`."""
        self.holds_feed = True

    def release_feed(self) -> None:
        """Let the events arrive that were held back, and those to come."""
        self.holds_feed = False
        self.feed_released.set()
        self.feed_released = trio.Event()

    def hold_back(self) -> None:
        """Let the next commit lose its way; its caller never hears of it."""
        self._holds_back = True

    async def deliver(self) -> CommitResult:
        """Let the commit that was held back arrive after all."""
        assert not self._holds_back, "nothing was committed since hold_back()"
        return await super().commit(*self._held_back)

    async def _reach(self, failure: type[AspenKvError] = UnavailableError) -> None:
        here = self._here
        if not here.is_set():
            self.waiting += 1
            try:
                with trio.move_on_after(KV_TIMEOUT_S):
                    await here.wait()
            finally:
                self.waiting -= 1
            if not here.is_set():
                raise failure("the test took the store away")

    async def get(self, keys: Sequence[bytes], *, bulk: bool = False) -> list[Versioned | None]:
        self.calls += 1
        self.gets += 1
        await self._reach()
        await self._meet(self.before_get)
        found = await super().get(keys, bulk=bulk)
        await self._meet(self.after_get)
        return found

    async def scan(
        self,
        start: bytes,
        end: bytes,
        *,
        limit: int,
        keys_only: bool = False,
        reverse: bool = False,
        continuation: bytes | None = None,
    ) -> ScanPage:
        self.calls += 1
        self.scans += 1
        await self._reach()
        await self._meet(self.before_scan)
        page = await super().scan(
            start,
            end,
            limit=limit,
            keys_only=keys_only,
            reverse=reverse,
            continuation=continuation,
        )
        await self._meet(self.after_scan)
        return page

    async def commit(self, checks: Sequence[Check], ops: Sequence[Op]) -> CommitResult:
        self.calls += 1
        await self._reach()
        await self._meet(self.before_commit)
        if self._holds_back:
            self._holds_back = False
            self._held_back = checks, ops
            raise OutcomeUnknownError("the test lost this commit on its way")
        committed = await super().commit(checks, ops)
        if committed.failed_check is None:
            self.commits.append(tuple(ops))
        await self._meet(self.after_commit)
        await self._reach(OutcomeUnknownError)
        return committed

    @asynccontextmanager
    async def watch(
        self,
        prefix: bytes,
        from_revision: int | None = None,
        *,
        values: bool = False,
        skip_own: bool = False,
    ) -> AsyncIterator[Watch]:
        await self._reach()
        opening = super().watch(prefix, from_revision, values=values, skip_own=skip_own)
        async with opening as watch:
            assert isinstance(watch, PrefixWatch)
            self._watches.add(watch)
            try:
                yield SteeredWatch(self, watch)
            finally:
                self._watches.remove(watch)

    async def lease(self, ttl_s: float) -> int:
        await self._reach()
        return await super().lease(ttl_s)

    async def keepalive(self, lease: int) -> None:
        await self._reach()
        await self._meet(self.before_keepalive)
        await super().keepalive(lease)

    async def revoke(self, lease: int) -> None:
        await self._reach()
        await super().revoke(lease)

    async def revision(self) -> int:
        await self._reach()
        return await super().revision()

    async def sync(self) -> None:
        self.calls += 1
        self.syncs += 1
        await self._reach()
        await super().sync()

    async def status(self) -> Status:
        await self._reach()
        return await super().status()

    async def _meet(self, steps: list[Step]) -> None:
        if steps:
            await steps.pop(0)()
        elif self.yields:
            await trio.lowlevel.checkpoint()


@contextmanager
def calls(store: SteeredClient, count: int) -> Iterator[None]:
    """Require that the block makes exactly ``count`` calls."""
    before = store.calls
    yield
    assert store.calls - before == count


class WallClock:
    """Nanoseconds since the epoch; each look is a microsecond after the last."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * 10**9

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns


async def turn(clock: MockClock, seconds: float) -> None:
    """Let what is due now happen, then let time pass, and what is due then happen."""
    await wait_all_tasks_blocked()
    clock.jump(seconds)
    await wait_all_tasks_blocked()


@contextmanager
def refused(expected: int) -> Iterator[None]:
    """Expect an error of the filesystem that gives the caller this errno."""
    with pytest.raises((AspenError, AspenKvError)) as caught:
        yield
    found = errno_of(caught.value)
    assert found == expected, f"{caught.value!r} is not {errno.errorcode[expected]}"


@asynccontextmanager
async def opened(fs: Filesystem, ino: Ino, flags: int = os.O_RDWR) -> AsyncIterator[FileHandle]:
    """Have a file open for a while, as if its path had just been walked."""
    fh = await fs.open(ino, flags, is_retry=True)
    try:
        yield fh
    finally:
        await fs.release(fh)


async def close(fs: Filesystem, fh: FileHandle) -> None:
    """Do what close(2) comes to."""
    await fs.flush(fh)
    await fs.release(fh)


async def make_file(
    fs: Filesystem, name: bytes, content: bytes = b"", parent: Ino = ROOT_INO
) -> Ino:
    """Make a closed file."""
    fh, made = await fs.create(parent, name, 0o644, os.O_RDWR | os.O_EXCL, ROOT)
    if content:
        await fs.write(fh, 0, content)
    await fs.release(fh)
    return made.ino


async def read_file(fs: Filesystem, ino: Ino) -> bytes:
    """Return all that a file holds, through a handle of its own."""
    async with opened(fs, ino, os.O_RDONLY) as fh:
        size = (await fs.getattr(ino)).size
        content = await fs.read(fh, 0, size + 1)
    assert len(content) == size
    return content


async def unlink_unaware(fs: Filesystem, name: bytes) -> None:
    """Remove a file as a mount does that has not heard yet of the others: it does not linger."""
    await wait_all_tasks_blocked()
    fs._orphans._session._has_peers = False
    await fs.unlink(ROOT_INO, name)
    fs._orphans._session.heard_of_sessions()


async def names(fs: Filesystem, ino: Ino = ROOT_INO, limit: int = 100) -> list[bytes]:
    """List a directory from the start."""
    fh = await fs.opendir(ino)
    found: list[bytes] = []
    offset = 0
    while entries := await fs.readdir(fh, offset, limit):
        found += [entry.name for entry in entries]
        offset = entries[-1].next_offset
    await fs.releasedir(fh)
    return found


def dirty_bytes(fs: Filesystem) -> int:
    """Return how many bytes wait for a commit or are on their way."""
    return fs.statistics().data.dirty_bytes


async def fill_the_buffer(fs: Filesystem) -> list[FileHandle]:
    """Write to as many files as it takes until no byte more is taken."""
    handles: list[FileHandle] = []
    part = DIRTY_FILE_BYTES_MAX // 2  # so that no file is committed for its own size
    for number in range(DIRTY_BYTES_MAX // part):
        fh, _ = await fs.create(ROOT_INO, b"full%d" % number, 0o644, os.O_RDWR, ROOT)
        await fs.write(fh, 0, bytes(part))
        handles.append(fh)
    assert dirty_bytes(fs) == DIRTY_BYTES_MAX
    return handles


async def stored_chunks(fs: Filesystem, ino: Ino) -> dict[int, bytes]:
    """Return the chunks of a file as the store has them."""
    prefix = fs.keys.chunks(ino)
    return {
        int.from_bytes(record.key[-8:], "big"): record.value
        async for record in records_below(fs.kv, prefix)
    }


async def chunk_allocation(fs: Filesystem, ino: Ino) -> int:
    """Return what a file in chunks allocates, from a look at every chunk."""
    size = (await fs.getattr(ino)).size
    return sum(extent_bytes(index, size, CHUNK_BYTES) for index in await stored_chunks(fs, ino))


async def check(kv: KeyValue, fs: Filesystem) -> Report:
    """Check the records of the volume; usage counters and allocated bytes are among them."""
    report = await check_volume(kv, fs.keys)
    assert report.is_clean, report.problems
    return report
