"""Dirty bytes on their way to the store: read back at every moment, committed in time, bounded."""

from __future__ import annotations

import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES, DIRTY_BYTES_MAX, DIRTY_FILE_BYTES_MAX, WRITEBACK_DELAY_S
from aspenfs.types import AttributeChanges, FileHandle, Ino
from aspenkv.contract import Patch, Put
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import (
    Gate,
    SteeredClient,
    dirty_bytes,
    fill_the_buffer,
    make_file,
    opened,
    read_file,
    stored_chunks,
    turn,
)

MEGABYTE = 2**20


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"file")


def chunks_written(fs: Filesystem, store: SteeredClient, ino: Ino) -> list[int]:
    """Return the indices of a file's chunks in all commits so far, once for each commit."""
    prefix = fs.keys.chunks(ino)
    found: list[int] = []
    for ops in store.commits:
        keys = {op.key for op in ops if isinstance(op, Put | Patch) and op.key.startswith(prefix)}
        found += sorted(int.from_bytes(key[-8:], "big") for key in keys)
    return found


# --- while a commit is in flight ------------------------------------------------------------------


@pytest.mark.parametrize("held", ["before", "after"])
async def test_bytes_are_read_back_at_every_moment_of_their_commit(
    fs: Filesystem, store: SteeredClient, ino: Ino, held: str
) -> None:
    gate = Gate()
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"first")
        (store.before_commit if held == "before" else store.after_commit).append(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.flush, fh)
            await gate.reached.wait()
            assert await fs.read(fh, 0, 100) == b"first"
            assert (await fs.getattr(ino)).size == 5

            await fs.write(fh, 3, b"SECOND")
            assert await fs.read(fh, 0, 100) == b"firSECOND"
            assert (await fs.getattr(ino)).size == 9
            assert dirty_bytes(fs) == 11

            gate.open()
        assert await fs.read(fh, 0, 100) == b"firSECOND"
        assert dirty_bytes(fs) == 0
    assert await read_file(fs, ino) == b"firSECOND"


async def test_a_flush_returns_when_all_that_was_written_before_is_committed(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    gate = Gate()
    flushed = trio.Event()
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"first")
        store.before_commit.append(gate)

        async def flush() -> None:
            await fs.flush(fh)
            flushed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.flush, fh)
            await gate.reached.wait()
            nursery.start_soon(flush)
            await wait_all_tasks_blocked()
            assert not flushed.is_set()
            gate.open()
            await flushed.wait()
            assert dirty_bytes(fs) == 0


async def test_a_cut_waits_for_the_commit_before_it(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    gate = Gate()
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"0123456789")
        store.before_commit.append(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.flush, fh)
            await gate.reached.wait()
            nursery.start_soon(fs.setattr, ino, AttributeChanges(size=4))
            await wait_all_tasks_blocked()
            gate.open()
        assert await fs.read(fh, 0, 100) == b"0123"
        await fs.write(fh, 6, b"x")
        assert await fs.read(fh, 0, 100) == b"0123\0\0x"


@pytest.mark.parametrize("stays", ["size", "content"])
async def test_a_read_that_asked_before_a_commit_still_sees_the_bytes_of_it(
    fs: Filesystem, store: SteeredClient, stays: str
) -> None:
    ino = await make_file(fs, b"file", b"old old old")
    content = b"new" if stays == "size" else b"new and longer"
    expected = b"new old old" if stays == "size" else content
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, content)
        fs._caches.meta.clear()
        asked, committed = Gate(), Gate()
        store.after_get.append(asked)
        store.before_commit.append(committed)
        found: list[bytes] = []
        sizes: list[int] = []

        async def read() -> None:
            found.append(await fs.read(fh, 0, 100))

        async def look() -> None:
            sizes.append((await fs.getattr(ino)).size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await asked.reached.wait()
            asked_too = Gate()
            store.after_get.append(asked_too)
            nursery.start_soon(look)
            await asked_too.reached.wait()
            nursery.start_soon(fs.flush, fh)
            await committed.reached.wait()
            committed.open()
            await wait_all_tasks_blocked()
            assert dirty_bytes(fs) == 0
            asked.open()
            asked_too.open()
        assert (found, sizes) == ([expected], [len(expected)])


async def test_a_cancelled_flush_keeps_its_bytes(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    async with opened(fs, ino) as fh:
        for steps in (store.before_commit, store.after_commit):
            gate = Gate()
            await fs.write(fh, 0, b"kept")
            steps.append(gate)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fs.flush, fh)
                await gate.reached.wait()
                await fs.write(fh, 2, b"NEW")
                nursery.cancel_scope.cancel()
            assert await fs.read(fh, 0, 100) == b"keNEW"
            assert dirty_bytes(fs) == 5
        await fs.flush(fh)
        assert dirty_bytes(fs) == 0
    assert await read_file(fs, ino) == b"keNEW"


# --- in the background ----------------------------------------------------------------------------


async def test_what_is_dirty_is_committed_after_a_while(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    async with opened(fs, ino) as fh:
        store.commits.clear()
        await fs.write(fh, 0, b"x")
        await turn(mock_clock, WRITEBACK_DELAY_S * 0.9)
        assert (len(store.commits), dirty_bytes(fs)) == (0, 1)
        await turn(mock_clock, WRITEBACK_DELAY_S * 0.2)
        assert (len(store.commits), dirty_bytes(fs)) == (1, 0)
        await turn(mock_clock, 10)
        assert len(store.commits) == 1  # nothing dirty, nothing committed


async def test_a_file_that_is_written_all_the_time_is_committed_all_the_same(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    async with opened(fs, ino) as fh:
        store.commits.clear()
        for second in range(50):
            await fs.write(fh, second, b"x")
            await turn(mock_clock, 0.1)
        assert 5 <= len(store.commits) <= 10
    assert await read_file(fs, ino) == b"x" * 50


async def test_a_file_that_becomes_large_is_committed_at_once(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    async with opened(fs, ino) as fh:
        store.commits.clear()
        await fs.write(fh, 0, bytes(DIRTY_FILE_BYTES_MAX - CHUNK_BYTES))
        await wait_all_tasks_blocked()
        assert store.commits == []
        await fs.write(fh, DIRTY_FILE_BYTES_MAX - CHUNK_BYTES, bytes(CHUNK_BYTES + 5))
        await wait_all_tasks_blocked()
        assert len(store.commits) == 1
        assert dirty_bytes(fs) == 5  # the chunk that has only begun waits for more


async def test_a_sequential_writer_commits_each_chunk_once(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    content = os.urandom(5 * MEGABYTE + 1234)
    async with opened(fs, ino) as fh:
        store.commits.clear()
        step = 100_000
        for offset in range(0, len(content), step):
            await fs.write(fh, offset, content[offset : offset + step])
            await trio.lowlevel.checkpoint()
    assert chunks_written(fs, store, ino) == list(range(-(-len(content) // CHUNK_BYTES)))
    assert await read_file(fs, ino) == content


async def test_scattered_writes_are_committed_in_bounded_batches(
    fs: Filesystem, store: SteeredClient
) -> None:
    ino = await make_file(fs, b"big", bytes(40 * CHUNK_BYTES))
    async with opened(fs, ino) as fh:
        for number in range(400):
            await fs.write(fh, (number * 7919 * 31) % (40 * CHUNK_BYTES), b"%03d" % number)
        await fs.fsync(fh)
    assert max(len(ops) for ops in store.commits) <= 128


async def test_extents_that_wait_are_bounded(
    fs: Filesystem, store: SteeredClient, ino: Ino, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DIRTY_EXTENTS_MAX", 10)
    async with opened(fs, ino) as fh:
        store.commits.clear()
        for number in range(11):
            await fs.write(fh, 10 * number, b"x")
        assert (len(store.commits), dirty_bytes(fs)) == (1, 1)


# --- bounded in all -------------------------------------------------------------------------------


async def test_a_writer_waits_when_the_buffer_is_full_and_goes_on(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    handles = await fill_the_buffer(fs)
    gate = Gate()
    store.before_commit.append(gate)
    async with opened(fs, ino) as fh, trio.open_nursery() as nursery:
        nursery.start_soon(fs.write, fh, 0, b"waits")
        await gate.reached.wait()
        await wait_all_tasks_blocked()
        assert dirty_bytes(fs) == DIRTY_BYTES_MAX
        assert await fs.read(fh, 0, 100) == b""
        gate.open()
        await wait_all_tasks_blocked()
        assert await fs.read(fh, 0, 100) == b"waits"
        assert dirty_bytes(fs) <= DIRTY_BYTES_MAX
    for handle in handles:
        await fs.release(handle)
    assert dirty_bytes(fs) == 0


async def test_many_writers_at_once_stay_within_the_bound(fs: Filesystem, ino: Ino) -> None:
    most = 0
    content = os.urandom(24 * MEGABYTE)

    async def write(fh: FileHandle, offset: int) -> None:
        nonlocal most
        await fs.write(fh, offset, content[offset : offset + MEGABYTE])
        most = max(most, dirty_bytes(fs))

    async with opened(fs, ino) as fh, trio.open_nursery() as nursery:
        for offset in range(0, len(content), MEGABYTE):
            nursery.start_soon(write, fh, offset)
    assert 0 < most <= DIRTY_BYTES_MAX
    assert await read_file(fs, ino) == content
    assert len(await stored_chunks(fs, ino)) == len(content) // CHUNK_BYTES


async def test_everything_dirty_is_committed_when_the_filesystem_closes(
    fs: Filesystem, service: Service, open_fs: Open, ino: Ino
) -> None:
    other_store = SteeredClient(service)
    async with open_fs(other_store) as other:
        fh = await other.open(ino, os.O_WRONLY)
        await other.write(fh, 0, b"not closed")
        syncs = other_store.syncs
    assert other_store.syncs == syncs + 1
    await wait_all_tasks_blocked()
    assert await read_file(fs, ino) == b"not closed"


async def test_a_cut_that_waited_also_takes_what_was_written_meanwhile(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    gate = Gate()
    async with opened(fs, ino) as fh:
        store.before_commit.append(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.setattr, ino, AttributeChanges(size=100))
            await gate.reached.wait()
            nursery.start_soon(fs.setattr, ino, AttributeChanges(size=4))
            await wait_all_tasks_blocked()
            await fs.write(fh, 0, b"0123456789")
            gate.open()
        assert await fs.read(fh, 0, 100) == b"0123"


@pytest.mark.logs(
    "data could not be written and is lost: 12 bytes in 1 files: no answer within 60 s"
)
async def test_a_store_that_hangs_does_not_hold_up_the_end_for_ever(
    service: Service, open_fs: Open, autojump_clock: MockClock
) -> None:
    store = SteeredClient(service)
    before_s = autojump_clock.current_time()
    async with open_fs(store) as fs:
        fh = await fs.open(await make_file(fs, b"file"), os.O_WRONLY)
        await fs.write(fh, 0, b"never stored")
        store.before_commit += [Gate() for _ in range(100)]
    waited_s = autojump_clock.current_time() - before_s
    assert waited_s <= limits.SHUTDOWN_S + limits.SESSION_KEEPALIVE_S + 1
