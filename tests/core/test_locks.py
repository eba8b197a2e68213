"""Locks that two mounts of one volume take: who gets what, who waits, and what failures leave."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.errors import AspenError, FilesystemError, errno_of
from aspenfs.filesystem import Filesystem
from aspenfs.limits import (
    LATE_COMMIT_S,
    LOCK_RETRY_FIRST_S,
    LOCK_YIELD_S,
    SESSION_KEEPALIVE_S,
    SESSION_TTL_S,
)
from aspenfs.lock_records import OFFSET_MAX
from aspenfs.scans import records_below
from aspenfs.types import CoherenceLevel, FileHandle, Ino
from aspenkv.errors import AspenKvError, OutcomeUnknownError, TooManyError, UnavailableError
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
        return await self.fs.getlk(self.ino, self.fh, self.owner, kind, start, end, self.owner)

    def another(self) -> Process:
        """Return another process of the same mount, with a handle that both share."""
        return self._replace(owner=self.owner + 1)

    async def close(self) -> None:
        await self.fs.flush(self.fh, self.owner)
        await self.fs.release(self.fh)


async def process(fs: Filesystem, ino: Ino, owner: int) -> Process:
    return Process(fs, ino, await fs.open(ino, os.O_RDWR, is_retry=True), owner)


@pytest.fixture(autouse=True)
def _without_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let who was wrong about others' locks look again at once, also where the clock stands."""
    monkeypatch.setattr(limits, "TXN_BACKOFF_FIRST_S", 0.0)


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
    """A request under way, and what became of it."""

    def __init__(self, nursery: trio.Nursery, request: Callable[[], Awaitable[object]]) -> None:
        self.scope = trio.CancelScope()
        self.error: Exception | None = None
        self._is_granted = False
        nursery.start_soon(self._run, request)

    async def _run(self, request: Callable[[], Awaitable[object]]) -> None:
        with self.scope:
            try:
                await request()
            except (AspenError, AspenKvError) as error:
                self.error = error
            else:
                self._is_granted = True

    def granted(self) -> bool:
        return self._is_granted

    @property
    def errno(self) -> int | None:
        return None if self.error is None else errno_of(self.error)


async def waits(
    nursery: trio.Nursery,
    process: Process,
    kind: int = WRITE,
    start: int = 0,
    end: int = OFFSET_MAX,
) -> Waiting:
    """Let a process ask for a lock that it does not get at once."""
    waiting = Waiting(nursery, partial(process.lock, kind, start, end, wait=True))
    await wait_all_tasks_blocked()
    assert not waiting.granted()
    return waiting


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


async def test_a_lock_that_is_held_already_and_one_that_is_not_held_cost_no_call(
    here: Process, store: SteeredClient
) -> None:
    await here.lock(WRITE, 0, 9)
    with calls(store, 0):
        await here.lock(WRITE, 2, 5)
        await here.unlock(10, 20)
        await here.another().unlock()
        await here.flock(fcntl.LOCK_UN)


async def test_processes_of_one_mount_exclude_each_other_without_a_call(
    here: Process, store: SteeredClient
) -> None:
    await here.lock(WRITE, 0, 9)
    other = here.another()
    with calls(store, 0), refused(errno.EAGAIN):
        await other.lock(READ, 9, 9)
    await other.lock(READ, 10, 10)


async def test_bsd_locks_exclude_each_other_and_no_posix_lock(
    here: Process, there: Process
) -> None:
    await here.lock()
    await there.flock(SHARED)
    with refused(errno.EAGAIN):
        await here.flock(EXCLUSIVE | NB)
    await here.flock(SHARED | NB)
    await there.flock(fcntl.LOCK_UN)
    await here.flock(EXCLUSIVE | NB)
    with refused(errno.EAGAIN):
        await there.flock(SHARED | NB)
    await here.flock(SHARED)
    await there.flock(SHARED | NB)


async def test_a_bsd_lock_that_cannot_be_changed_is_lost_as_on_linux(
    here: Process, there: Process
) -> None:
    await here.flock(SHARED)
    await there.flock(SHARED)
    with refused(errno.EAGAIN):
        await here.flock(EXCLUSIVE | NB)
    await there.flock(EXCLUSIVE | NB)


async def test_two_that_change_a_shared_bsd_lock_get_it_one_after_the_other(
    here: Process, there: Process
) -> None:
    await here.flock(SHARED)
    await there.flock(SHARED)
    async with trio.open_nursery() as nursery:
        first = Waiting(nursery, partial(here.flock, EXCLUSIVE))
        await wait_all_tasks_blocked()
        second = Waiting(nursery, partial(there.flock, EXCLUSIVE))
        await wait_all_tasks_blocked()
        assert second.granted()  # the first one has given up its own, and the second nothing
        assert not first.granted()
        await there.flock(fcntl.LOCK_UN)
    assert first.granted()


async def test_a_lock_in_the_way_is_shown(here: Process, there: Process) -> None:
    assert await there.blocks() is None
    await here.lock(READ, 10, 19)
    await here.another().lock(WRITE, 30, OFFSET_MAX)
    assert await there.blocks(READ, 0, 29) is None
    assert await there.blocks(WRITE, 0, 40) == (READ, 10, 19, 0)
    assert await there.blocks(READ, 15, 40) == (WRITE, 30, OFFSET_MAX, 0)
    assert await here.blocks(WRITE) == (WRITE, 30, OFFSET_MAX, here.owner + 1)
    assert await here.another().blocks(WRITE) == (READ, 10, 19, here.owner)


@pytest.mark.parametrize(
    ("kind", "start", "end"), [(7, 0, 1), (READ, 2, 1), (WRITE, -1, 1), (UNLOCK, 0, OFFSET_MAX + 1)]
)
async def test_what_is_no_lock_is_refused(here: Process, kind: int, start: int, end: int) -> None:
    with refused(errno.EINVAL):
        await here.lock(kind, start, end)


@pytest.mark.parametrize("operation", [0, NB, SHARED | EXCLUSIVE])
async def test_what_is_no_bsd_lock_is_refused(here: Process, operation: int) -> None:
    with refused(errno.EINVAL):
        await here.flock(operation)


async def test_a_closed_handle_locks_nothing(here: Process) -> None:
    closed = here._replace(fh=FileHandle(999))
    for request in (closed.lock, closed.blocks, partial(closed.flock, SHARED)):
        with refused(errno.EBADF):
            await request()


# --- waiting --------------------------------------------------------------------------------------


async def test_who_waits_is_granted_when_the_other_mount_unlocks(
    here: Process, there: Process, mock_clock: MockClock
) -> None:
    await here.lock(WRITE, 0, 9)
    async with trio.open_nursery() as nursery:
        waiting = await waits(nursery, there, WRITE, 5, 15)
        await here.unlock(0, 4)
        await wait_all_tasks_blocked()
        assert not waiting.granted()
        await here.unlock()
    assert waiting.granted()
    assert mock_clock.current_time() == 0.0  # nobody asked again and again
    with refused(errno.EAGAIN):
        await here.lock(READ, 15, 15)


async def test_waiters_of_all_mounts_are_granted_in_the_order_of_their_coming(
    here: Process, there: Process
) -> None:
    await here.lock()
    async with trio.open_nursery() as nursery:
        queue = [
            (each, await waits(nursery, each)) for each in (there, here.another(), there.another())
        ]
        await here.unlock()
        queue.append((here, Waiting(nursery, partial(here.lock, wait=True))))
        for at, (process, _) in enumerate(queue):
            await wait_all_tasks_blocked()
            expected = [each <= at for each in range(len(queue))]
            assert [waiting.granted() for _, waiting in queue] == expected
            await process.unlock()
    await wait_all_tasks_blocked()
    assert await records(here.fs) == []


async def test_a_mount_that_locks_all_the_time_starves_nobody(
    here: Process, there: Process, peer_store: SteeredClient
) -> None:
    peer_store.yields = True
    three = (here, here.another(), there)
    turns: list[Process] = []

    async def take_turns(process: Process) -> None:
        for _ in range(10):
            await process.lock(wait=True)
            turns.append(process)
            await trio.lowlevel.checkpoint()
            await process.unlock()

    async with trio.open_nursery() as nursery:
        for process in three:
            nursery.start_soon(take_turns, process)
    while_all_want_it = turns[
        : 1 + min(max(at for at, each in enumerate(turns) if each is one) for one in three)
    ]
    first_ones, rest = while_all_want_it[:6], while_all_want_it[6:]
    assert set(first_ones) == set(three)
    assert all(one != next_one for one, next_one in pairwise(rest))


async def test_who_reads_shares_with_readers_but_waits_behind_a_writer_that_waits(
    here: Process, there: Process
) -> None:
    await here.lock(READ)
    await there.lock(READ, 0, 0)
    async with trio.open_nursery() as nursery:
        writer = await waits(nursery, there, WRITE, 5, 5)
        reader = await waits(nursery, here.another(), READ, 0, 9)
        await here.another().lock(READ, 0, 9)  # who does not wait takes what is free
        await here.another().unlock()
        await here.lock(READ, 5, 6, wait=True)  # who is waited for does not wait
        await here.unlock(5, 5)
        await wait_all_tasks_blocked()
        assert writer.granted()
        assert not reader.granted()
        await there.unlock(5, 5)
    assert reader.granted()


async def test_who_comes_first_but_does_not_take_it_is_overtaken_after_a_while(
    here: Process, there: Process, peer_store: SteeredClient, mock_clock: MockClock
) -> None:
    await here.lock()
    gate = Gate()
    async with trio.open_nursery() as nursery:
        first = await waits(nursery, there)
        peer_store.before_scan.append(gate)  # its mount stands still when it is told
        second = await waits(nursery, here.another())
        await here.unlock()
        await gate.reached.wait()
        await turn(mock_clock, LOCK_YIELD_S - 0.01)
        assert not second.granted()
        await turn(mock_clock, 0.01)
        assert second.granted()
        gate.open()
        await wait_all_tasks_blocked()
        assert not first.granted()
        await here.another().unlock()
    assert first.granted()


async def test_a_waiter_that_is_signalled_leaves_nothing(here: Process, there: Process) -> None:
    await here.lock(READ)
    async with trio.open_nursery() as nursery:
        signalled = await waits(nursery, there)
        assert len(await records(here.fs)) == 2
        behind = await waits(nursery, here.another(), WRITE)
        signalled.scope.cancel()
        await wait_all_tasks_blocked()
        assert len(await records(here.fs)) == 1
        assert not behind.granted()
        await here.unlock()
    assert behind.granted()
    await here.another().unlock()
    assert await records(here.fs) == []
    assert not here.fs._locks._files
    assert not there.fs._locks._files


async def test_a_circle_within_a_mount_is_a_deadlock(here: Process) -> None:
    a, b, c = here, here._replace(owner=11), here._replace(owner=12)
    for at, process in enumerate((a, b, c)):
        await process.lock(WRITE, at, at)
    async with trio.open_nursery() as nursery:
        waiting = [await waits(nursery, a, READ, 1, 1), await waits(nursery, b, READ, 2, 2)]
        with refused(errno.EDEADLK):
            await c.lock(READ, 0, 0, wait=True)
        await c.unlock()
        await wait_all_tasks_blocked()
        await b.unlock()
    assert all(each.granted() for each in waiting)


async def test_a_circle_over_two_files_of_a_mount_is_a_deadlock(here: Process) -> None:
    other_ino = await make_file(here.fs, b"other")
    there = await process(here.fs, other_ino, here.owner + 1)
    await here.lock()
    await there.lock()
    async with trio.open_nursery() as nursery:
        waiting = await waits(nursery, here._replace(ino=other_ino, fh=there.fh))
        with refused(errno.EDEADLK):
            await there._replace(ino=here.ino, fh=here.fh).lock(wait=True)
        await there.unlock()
    assert waiting.granted()
    await here._replace(ino=other_ino).unlock()
    await here.fs.release(there.fh)


async def test_two_mounts_that_both_want_what_they_share_are_a_deadlock(
    here: Process, there: Process
) -> None:
    await here.lock(READ)
    await there.lock(READ)
    async with trio.open_nursery() as nursery:
        waiting = await waits(nursery, here)
        with refused(errno.EDEADLK):
            await there.lock(wait=True)
        await there.unlock()
    assert waiting.granted()


async def test_who_gave_its_lock_back_is_no_part_of_a_circle(here: Process) -> None:
    a, b = here, here.another()
    await a.lock(WRITE, 0, 0)
    await b.lock(WRITE, 1, 1)
    async with trio.open_nursery() as nursery:
        first = await waits(nursery, b, WRITE, 0, 0)
        await a.unlock(0, 0)  # b has not looked again yet
        second = Waiting(nursery, partial(a.lock, WRITE, 1, 1, wait=True))
        await wait_all_tasks_blocked()
        assert first.granted()
        assert second.error is None
        await b.unlock()
    assert second.granted()


# --- the file's bytes -----------------------------------------------------------------------------


async def test_who_has_the_lock_reads_what_was_written_under_it_before(
    here: Process, there: Process
) -> None:
    await here.fs.write(here.fh, 0, b"%020d" % 0)
    await here.fs.flush(here.fh)
    for _ in range(5):
        for process in (here, there):
            assert await process.lock(wait=True)
            count = int(await process.fs.read(process.fh, 0, 20))
            await process.fs.write(process.fh, 0, b"%020d" % (count + 1))
            await process.unlock()
    await here.lock(READ)
    assert await here.fs.read(here.fh, 0, 20) == b"%020d" % 10


async def test_what_is_shared_from_now_on_is_committed_first(here: Process, there: Process) -> None:
    await here.lock()
    await here.fs.write(here.fh, 0, b"NEWS")
    await here.lock(READ)
    await there.lock(READ)
    assert await there.fs.read(there.fh, 0, 7) == b"NEWSent"


async def test_without_a_feed_who_locks_reads_the_store_and_waits_by_asking(
    fs: Filesystem,
    here: Process,
    peer_store: SteeredClient,
    open_fs: Open,
    autojump_clock: MockClock,
) -> None:
    del autojump_clock
    async with open_fs(peer_store, coherence=CoherenceLevel.TTL) as peer:
        there = await process(peer, here.ino, 10)
        assert await peer.read(there.fh, 0, 7) == b"content"
        await here.lock()
        await fs.write(here.fh, 0, b"NEWS")
        async with trio.open_nursery() as nursery:
            waiting = await waits(nursery, there)
            peer_store.calls = 0
            await trio.sleep(60)
            assert 55 < peer_store.calls < 80
            await here.unlock()
        assert waiting.granted()
        assert await peer.read(there.fh, 0, 7) == b"NEWSent"
        await there.unlock()
        assert not await there.lock()  # the kernel's pages may be older
        await peer.release(there.fh)


async def test_a_lock_is_not_kept_if_its_caller_went_before_it_could_be_used(
    here: Process, there: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.lock(READ, 0, 4)
    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(here.fs._watcher, "barrier", trio.sleep_forever)
        waiting = await waits(nursery, here, WRITE, 0, 9)
        with refused(errno.EAGAIN):
            await there.lock(READ, 9, 9)
        waiting.scope.cancel()
    await wait_all_tasks_blocked()
    await there.lock(READ, 0, 9)
    with refused(errno.EAGAIN):
        await there.lock(WRITE, 4, 4)
    await there.lock(WRITE, 5, 9)


# --- closing --------------------------------------------------------------------------------------


async def test_a_process_that_closes_any_handle_gives_back_its_posix_locks(
    here: Process, there: Process
) -> None:
    await here.lock(WRITE, 0, 9)
    await here.another().lock(WRITE, 10, 19)
    await here.flock(EXCLUSIVE)
    await here.fs.write(here.fh, 0, b"NEWS")
    second = await here.fs.open(here.ino, os.O_RDONLY, is_retry=True)
    await here.fs.flush(second, here.owner)
    await there.lock(WRITE, 0, 9)
    assert await there.fs.read(there.fh, 0, 7) == b"NEWSent"
    for request in (partial(there.lock, READ, 10, 10), partial(there.flock, SHARED | NB)):
        with refused(errno.EAGAIN):
            await request()
    await here.fs.release(second)


async def test_the_end_of_a_handle_gives_back_what_was_locked_through_it(
    here: Process, there: Process
) -> None:
    second = Process(here.fs, here.ino, await here.fs.open(here.ino, os.O_RDWR, is_retry=True), 77)
    await second.lock(WRITE, 0, 9)  # of an open file description: no flush() names its owner
    await second.flock(EXCLUSIVE)
    await here.lock(WRITE, 10, 19)
    await here.fs.write(second.fh, 0, b"NEWS")
    await here.fs.release(second.fh)
    await there.lock(WRITE, 0, 9)
    await there.flock(EXCLUSIVE | NB)
    assert await there.fs.read(there.fh, 0, 7) == b"NEWSent"
    with refused(errno.EAGAIN):
        await there.lock(READ, 10, 10)


async def test_a_close_whose_data_cannot_be_stored_yet_gives_the_lock_back_after_it(
    here: Process, there: Process, store: SteeredClient, mock_clock: MockClock
) -> None:
    await here.lock()
    await here.fs.write(here.fh, 0, b"NEWS")
    store.before_commit.append(failing(UnavailableError("a test")))
    with refused(errno.ETIMEDOUT):
        await here.fs.flush(here.fh, here.owner)
    await turn(mock_clock, 1.0)
    await there.lock()
    assert await there.fs.read(there.fh, 0, 7) == b"NEWSent"


async def test_an_unmount_gives_everything_back(
    fs: Filesystem, ino: Ino, here: Process, peer_store: SteeredClient, open_fs: Open
) -> None:
    async with open_fs(peer_store) as peer, trio.open_nursery() as nursery:
        there = await process(peer, ino, 10)
        await there.lock()
        await peer.write(there.fh, 0, b"NEWS")
        waiting = await waits(nursery, here)
        assert len(await records(fs)) == 2
        nursery.start_soon(trio.lowlevel.checkpoint)
        await there.unlock()
        await wait_all_tasks_blocked()
        assert waiting.granted()
        await here.unlock()
        await there.lock()
    assert await records(fs) == []
    await here.lock()
    assert await fs.read(here.fh, 0, 7) == b"NEWSent"


# --- failures -------------------------------------------------------------------------------------


async def test_a_grant_whose_answer_is_lost_is_given_back(
    here: Process, there: Process, store: SteeredClient
) -> None:
    store.after_commit.append(failing(OutcomeUnknownError("a test")))
    with refused(errno.EIO):
        await here.lock(WRITE, 0, 9)
    await wait_all_tasks_blocked()
    await there.lock(WRITE, 0, 9)


async def test_a_grant_that_comes_late_after_its_caller_gave_up_is_refused(
    here: Process, there: Process, store: SteeredClient, mock_clock: MockClock
) -> None:
    store.hold_back()
    with refused(errno.EIO):
        await here.lock(WRITE, 0, 9)
    await wait_all_tasks_blocked()
    assert (await store.deliver()).failed_check is not None
    await there.lock(WRITE, 0, 9)
    await there.unlock()
    assert len(await records(here.fs)) == 1  # in the late one's way
    await here.lock()
    await here.unlock()
    assert len(await records(here.fs)) == 1
    await turn(mock_clock, LATE_COMMIT_S)
    assert await records(here.fs) == []
    assert not here.fs._locks._files


async def test_an_unlock_whose_answer_is_lost_is_done_all_the_same(
    here: Process, there: Process, store: SteeredClient
) -> None:
    await here.lock(WRITE, 0, 9)
    await here.lock(WRITE, 20, 29)
    store.after_commit.append(failing(OutcomeUnknownError("a test")))
    with refused(errno.EIO):
        await here.unlock(0, 9)
    await wait_all_tasks_blocked()
    await there.lock(WRITE, 0, 9)
    store.hold_back()
    with refused(errno.EIO):
        await here.unlock(20, 29)
    await wait_all_tasks_blocked()
    await there.lock(WRITE, 20, 29)
    await store.deliver()
    with refused(errno.EAGAIN):
        await here.lock(READ, 25, 25)


async def test_a_ticket_whose_answer_is_lost_leaves_nothing(
    here: Process, there: Process, store: SteeredClient
) -> None:
    await there.lock()
    await wait_all_tasks_blocked()
    await here.blocks()
    with refused(errno.EAGAIN):
        await here.lock()
    store.after_commit.append(failing(OutcomeUnknownError("a test")))
    async with trio.open_nursery() as nursery:
        waiting = Waiting(nursery, partial(here.lock, wait=True))
    assert waiting.errno == errno.EIO
    await wait_all_tasks_blocked()
    await there.unlock()
    await there.lock(wait=True)
    assert not here.fs._locks._files[here.ino].waiters


@pytest.mark.logs("changes by others cannot be followed")
async def test_what_is_given_back_while_the_store_is_away_is_free_when_it_is_back(
    here: Process, there: Process, store: SteeredClient, mock_clock: MockClock
) -> None:
    await here.lock()
    await here.another().flock(SHARED)
    store.leave()
    async with trio.open_nursery() as nursery:
        Waiting(nursery, here.unlock)
        await turn(mock_clock, SESSION_TTL_S / 6)
        with refused(errno.EAGAIN):
            await there.lock()
        store.come_back()
    await there.lock()
    with refused(errno.EAGAIN):
        await there.flock(EXCLUSIVE | NB)
    await turn(mock_clock, 1.0)


async def test_what_the_store_could_not_be_told_it_is_told_later(
    here: Process, there: Process, store: SteeredClient, mock_clock: MockClock
) -> None:
    await here.lock()
    store.before_commit += [failing(UnavailableError("a test"))] * 3
    with refused(errno.ETIMEDOUT):
        await here.unlock()
    await wait_all_tasks_blocked()
    with refused(errno.EAGAIN):
        await there.lock()
    await turn(mock_clock, LOCK_RETRY_FIRST_S)
    with refused(errno.EAGAIN):
        await there.lock()
    await turn(mock_clock, 2 * LOCK_RETRY_FIRST_S)
    await there.lock()


async def test_a_look_at_others_that_fails_is_made_again(
    here: Process, there: Process, store: SteeredClient
) -> None:
    await there.lock(WRITE, 0, 9)
    await here.lock(WRITE, 20, 29)
    store.before_scan.append(failing(UnavailableError("a test")))
    with refused(errno.ETIMEDOUT):
        await here.lock(WRITE, 5, 15)
    with refused(errno.EAGAIN):
        await here.lock(WRITE, 5, 15)
    await there.unlock()
    await here.lock(WRITE, 5, 15)


async def test_an_unlock_whose_data_cannot_be_stored_yet_comes_after_it(
    here: Process, there: Process, store: SteeredClient
) -> None:
    await here.lock()
    await here.fs.write(here.fh, 0, b"NEWS")
    store.before_commit.append(failing(UnavailableError("a test")))
    with refused(errno.ETIMEDOUT):
        await here.unlock()
    await wait_all_tasks_blocked()
    await there.lock()
    assert await there.fs.read(there.fh, 0, 7) == b"NEWSent"


async def test_a_close_that_cannot_tell_the_store_is_no_error_of_the_file(
    here: Process, there: Process, store: SteeredClient
) -> None:
    await here.lock()
    store.before_commit.append(failing(UnavailableError("a test")))
    await here.fs.flush(here.fh, here.owner)
    await wait_all_tasks_blocked()
    await there.lock()


async def test_a_lock_is_given_back_though_its_data_is_lost(
    here: Process, there: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.lock()
    monkeypatch.setattr(
        here.fs._locks, "_flush", failing_with(FilesystemError(errno.EIO, "a test"))
    )
    with refused(errno.EIO):
        await here.unlock()
    await wait_all_tasks_blocked()
    await there.lock()


def failing_with(error: Exception) -> Callable[[Ino], Awaitable[None]]:
    async def fail(_ino: Ino) -> None:
        raise error

    return fail


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("when", ["before", "after", "lost", "cancelled", "cancelled-late"])
async def test_whatever_call_fails_no_lock_is_leaked_or_doubled(
    here: Process,
    there: Process,
    store: SteeredClient,
    when: str,
    at: int,
) -> None:
    scope = trio.CancelScope()

    async def cancel() -> None:
        scope.cancel()
        await trio.lowlevel.checkpoint()

    async def go_on() -> None:
        pass

    async def lose() -> None:
        store.hold_back()

    step, steps = {
        "before": (failing(UnavailableError("a test")), store.before_commit),
        "after": (failing(OutcomeUnknownError("a test")), store.after_commit),
        "lost": (lose, store.before_commit),
        "cancelled": (cancel, store.before_commit),
        "cancelled-late": (cancel, store.after_commit),
    }[when]
    await there.lock(READ, 0, 4)
    steps += [go_on] * at + [step]
    held: dict[int, int] = {}
    with scope:
        for kind, start, end in (
            (READ, 0, 9),
            (WRITE, 5, 9),
            (UNLOCK, 7, 7),
            (WRITE, 20, 29),
            (UNLOCK, 0, 9),
            (UNLOCK, 20, 29),
        ):
            try:
                await here.lock(kind, start, end)
            except AspenKvError:
                changed = range(0)
            else:
                changed = range(start, end + 1)
            if kind == UNLOCK:  # in force, if not now then soon
                changed = range(start, end + 1)
            held.update(dict.fromkeys(changed, kind))
    await wait_all_tasks_blocked()
    steps.clear()
    if when == "lost" and not store._holds_back:
        await store.deliver()
    if not scope.cancelled_caught:
        for byte in range(30):
            found = await there.blocks(WRITE, byte, byte)
            assert (found is not None) == (held.get(byte, UNLOCK) != UNLOCK), byte
    await here.fs.flush(here.fh, here.owner)
    await there.lock(WRITE)


async def end_session(fs: Filesystem, other: Filesystem) -> None:
    """Let the session of ``other`` lapse, and its locks with it, without telling it."""
    session = other._locks._session
    await fs.kv.revoke(session.lease)


LAPSED = "the session of this mount lapsed"


@pytest.mark.logs("changes by others cannot be followed", "session could not be renewed", LAPSED)
async def test_the_locks_of_a_mount_that_is_gone_are_free_when_its_lease_lapses_and_not_before(
    here: Process, there: Process, peer_store: SteeredClient, mock_clock: MockClock
) -> None:
    await there.lock()
    peer_store.leave()
    async with trio.open_nursery() as nursery:
        waiting = await waits(nursery, here)
        for _ in range(3):
            await turn(mock_clock, SESSION_TTL_S / 3 - 0.1)
        assert not waiting.granted()
        there.fs._locks.require_valid(there.ino)
        await turn(mock_clock, 0.3)
        assert waiting.granted()
    with refused(errno.EIO):  # though nobody has told it
        await there.fs.write(there.fh, 0, b"late")
    peer_store.come_back()
    with refused(errno.EIO):
        await there.fs.read(there.fh, 0, 7)
    with refused(errno.EIO):
        await there.unlock()
    assert await there.fs.read(there.fh, 0, 7) == b"content"  # under no lock
    with refused(errno.EIO):
        await there.lock()
    await turn(mock_clock, SESSION_KEEPALIVE_S)


@pytest.mark.logs(LAPSED)
async def test_a_mount_whose_session_lapsed_locks_nothing(
    here: Process, there: Process, mock_clock: MockClock
) -> None:
    await there.lock(WRITE, 0, 9)
    await end_session(here.fs, there.fs)
    await here.lock(WRITE, 0, 9)
    with refused(errno.EIO):
        await there.lock(WRITE, 20, 29)
    with refused(errno.EIO):
        await there.fs.read(there.fh, 0, 7)
    other = await make_file(here.fs, b"other", b"text")
    fh = await there.fs.open(other, os.O_RDONLY, is_retry=True)
    assert await there.fs.read(fh, 0, 7) == b"text"
    await there.fs.release(fh)
    await there.fs.flush(there.fh, there.owner)
    await wait_all_tasks_blocked()
    assert not there.fs._locks._files
    await turn(mock_clock, SESSION_KEEPALIVE_S)


@pytest.mark.logs(LAPSED)
async def test_what_a_lapsed_mount_gives_back_is_gone_already(
    here: Process, there: Process, mock_clock: MockClock
) -> None:
    await there.lock()
    await end_session(here.fs, there.fs)
    there.fs._locks.close_owner(there.ino, there.owner)
    await wait_all_tasks_blocked()
    assert not there.fs._locks._files
    await here.lock()
    await turn(mock_clock, SESSION_KEEPALIVE_S)


# --- limits ---------------------------------------------------------------------------------------


async def test_a_read_only_mount_locks_nothing_but_shows_locks(
    here: Process, peer_store: SteeredClient, open_fs: Open
) -> None:
    await here.lock(WRITE, 3, 5)
    async with open_fs(peer_store, read_only=True) as peer:
        there = Process(peer, here.ino, await peer.open(here.ino, os.O_RDONLY, is_retry=True), 10)
        with refused(errno.ENOLCK):
            await there.lock(READ)
        assert await there.blocks() == (WRITE, 3, 5, 0)
        await there.unlock()
        await peer.release(there.fh)


async def test_too_many_locks_on_a_file(here: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOCK_ENTRIES_MAX", 3)
    for at in (0, 2, 4):
        await here.lock(READ, at, at)
    with refused(errno.ENOLCK):
        await here.lock(READ, 6, 6)
    await here.lock(READ, 0, 9)
    await here.unlock(2, 2)
    await here.unlock(4, 4)
    with refused(errno.ENOLCK):
        await here.unlock(7, 7)
    with refused(errno.EAGAIN):
        await here.another().lock(WRITE, 7, 7)


async def test_too_many_locked_files(here: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOCK_FILES_MAX", 1)
    await here.lock()
    other = await process(here.fs, await make_file(here.fs, b"other"), 10)
    with refused(errno.ENOLCK):
        await other.lock()
    await here.unlock()
    await other.lock()
    await other.close()


async def test_too_many_mounts_that_lock_one_file(
    here: Process, there: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOCK_SESSIONS_MAX", 0)
    await here.lock(READ)
    with refused(errno.ENOLCK):
        await there.lock(READ)
    await here.unlock()
    await there.lock(READ)


async def test_a_store_with_no_room_for_more_leased_keys(
    here: Process, store: SteeredClient
) -> None:
    store.before_commit.append(failing(TooManyError("a test")))
    with refused(errno.ENOLCK):
        await here.lock()
    await here.lock()


async def test_a_lock_that_others_keep_changing_counts_as_taken_for_who_does_not_wait(
    here: Process, there: Process, store: SteeredClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TXN_ATTEMPTS_MAX", 2)

    async def keep_changing() -> None:
        await there.lock(WRITE, 50, 50)

    async def change_back() -> None:
        await there.unlock(50, 50)

    store.before_commit += [keep_changing, change_back]
    with refused(errno.EAGAIN):
        await here.lock(WRITE, 0, 9)
    store.before_commit += [keep_changing, change_back]
    await here.lock(WRITE, 0, 9, wait=True)
