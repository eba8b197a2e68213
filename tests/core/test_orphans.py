"""Files without a name: usable while open, gone afterwards, whatever happens in between."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.limits import (
    CHUNK_BYTES,
    ORPHAN_LINGER_S,
    ORPHAN_SCAN_S,
    SESSION_KEEPALIVE_S,
    SESSION_TTL_S,
)
from aspenfs.metadata import encode_orphan
from aspenfs.scans import records_below
from aspenfs.types import ROOT_INO, AttributeChanges, Ino, SessionId
from aspenkv.contract import Put
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import EngineError
from aspenkv.limits import COMMIT_OPS_MAX
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import (
    ROOT,
    Gate,
    SteeredClient,
    check,
    failing,
    make_file,
    opened,
    read_file,
    refused,
    turn,
    unlink_unaware,
)

BROKEN = failing(EngineError("the disk is gone"))


@pytest.fixture
async def ino(fs: Filesystem) -> AsyncIterator[Ino]:
    """A file; after the test nothing of it is left, and that at once."""
    ino = await make_file(fs, b"file", b"content")
    fs.forget(ino, 1)
    yield ino
    await wait_all_tasks_blocked()
    assert await orphans(fs) == []
    with refused(errno.ESTALE):
        await fs.getattr(ino)
    assert (await fs.statfs()).inodes_used == 1
    assert fs.statistics().data[:3] == (0, 0, 0)


async def orphans(fs: Filesystem) -> list[bytes]:
    return [record.key async for record in records_below(fs.kv, fs.keys.orphans())]


# --- while it is open -----------------------------------------------------------------------------


async def test_an_unlinked_file_is_usable_while_it_is_open(fs: Filesystem, ino: Ino) -> None:
    async with opened(fs, ino) as fh:
        await fs.unlink(ROOT_INO, b"file")
        assert (await fs.getattr(ino)).nlink == 0
        assert len(await orphans(fs)) == 1
        assert await fs.read(fh, 0, 100) == b"content"
        await fs.write(fh, 7, bytes(2 * CHUNK_BYTES))
        await fs.fsync(fh)
        await fs.setattr(ino, AttributeChanges(size=10, mode=0o600), fh)
        assert await fs.read(fh, 0, 100) == b"content\0\0\0"
        await fs.setxattr(ino, b"user.x", b"")
        await fs.write(fh, 0, b"dirty")
        async with opened(fs, ino) as again:  # as open("/proc/self/fd/3") does
            assert await fs.read(again, 0, 100) == b"dirtynt\0\0\0"
        assert await fs.read(fh, 0, 100) == b"dirtynt\0\0\0"


async def test_a_file_renamed_over_is_usable_while_it_is_open(fs: Filesystem, ino: Ino) -> None:
    other = await make_file(fs, b"other", b"new")
    async with opened(fs, ino) as fh:
        await fs.rename(ROOT_INO, b"other", ROOT_INO, b"file")
        assert await fs.read(fh, 0, 100) == b"content"
        assert (await fs.lookup(ROOT_INO, b"file")).ino == other
    await fs.unlink(ROOT_INO, b"file")


async def test_the_last_close_removes_it(fs: Filesystem, ino: Ino) -> None:
    first, second = await fs.open(ino, os.O_RDWR), await fs.open(ino, os.O_RDONLY)
    await fs.unlink(ROOT_INO, b"file")
    await fs.release(first)
    assert await fs.read(second, 0, 100) == b"content"
    await fs.release(second)
    assert await orphans(fs) == []


async def test_what_was_known_shows_its_attributes_until_it_is_forgotten(
    fs: Filesystem, ino: Ino
) -> None:
    await fs.lookup(ROOT_INO, b"file")
    async with opened(fs, ino):
        await fs.unlink(ROOT_INO, b"file")
    assert (await fs.getattr(ino)).nlink == 0
    with refused(errno.ESTALE):
        await fs.open(ino, os.O_RDONLY)
    fs.forget(ino, 1)


async def test_what_is_dirty_is_not_committed_for_nobody(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    await fs.unlink(ROOT_INO, b"file")
    await fs.write(fh, 0, bytes(100_000))
    store.commits.clear()
    await fs.flush(fh)
    assert store.commits == []
    await fs.release(fh)
    assert len(store.commits) == 1


# --- races with the last close --------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
async def test_a_close_while_bytes_are_on_their_way(
    fs: Filesystem, store: SteeredClient, ino: Ino, fails: bool
) -> None:
    gate = Gate()

    async def hold() -> None:
        await gate()
        if fails:
            await BROKEN()

    async def fsync() -> None:
        if fails:
            with refused(errno.EIO):
                await fs.fsync(fh)
        else:
            await fs.fsync(fh)

    fh = await fs.open(ino, os.O_RDWR)
    await fs.unlink(ROOT_INO, b"file")
    await fs.write(fh, 0, b"on its way")
    store.before_commit.append(hold)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fsync)
        await gate.reached.wait()
        await fs.write(fh, 0, b"waits")
        nursery.start_soon(fs.release, fh)
        await wait_all_tasks_blocked()
        gate.open()


async def test_two_last_handles_closed_at_once(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    first, second = await fs.open(ino, os.O_RDWR), await fs.open(ino, os.O_RDWR)
    await fs.write(first, 0, b"dirty")
    gate = Gate()
    store.before_commit.append(gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.release, first)
        nursery.start_soon(fs.release, second)
        await gate.reached.wait()
        nursery.start_soon(fs.unlink, ROOT_INO, b"file")
        await wait_all_tasks_blocked()
        gate.open()


@pytest.mark.parametrize("held", ["before", "after"])
async def test_a_close_while_the_last_name_is_being_removed(
    fs: Filesystem, store: SteeredClient, ino: Ino, held: str
) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    gate = Gate()
    (store.before_commit if held == "before" else store.after_commit).append(gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.unlink, ROOT_INO, b"file")
        await gate.reached.wait()
        await fs.release(fh)
        gate.open()


async def test_a_last_name_removed_while_the_close_commits(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    await fs.write(fh, 0, b"dirty")
    gate = Gate()
    store.after_commit.append(gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.release, fh)
        await gate.reached.wait()
        nursery.start_soon(fs.unlink, ROOT_INO, b"file")
        await wait_all_tasks_blocked()
        gate.open()


async def test_an_orphan_whose_removal_failed_is_collected(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    await fs.unlink(ROOT_INO, b"file")
    store.before_commit.append(BROKEN)
    with refused(errno.EIO):
        await fs.release(fh)
    assert len(await orphans(fs)) == 1
    await turn(mock_clock, ORPHAN_SCAN_S)


@pytest.mark.logs("orphans could not be collected.*trying again")
async def test_a_collection_that_fails_is_tried_again(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    await fs.unlink(ROOT_INO, b"file")
    store.before_commit += [BROKEN, BROKEN]
    with refused(errno.EIO):
        await fs.release(fh)
    await turn(mock_clock, ORPHAN_SCAN_S)
    assert len(await orphans(fs)) == 1
    await turn(mock_clock, ORPHAN_SCAN_S)


# --- other clients --------------------------------------------------------------------------------


async def test_others_leave_the_orphans_of_a_live_session(
    fs: Filesystem, peer: Filesystem, ino: Ino, mock_clock: MockClock
) -> None:
    del peer
    async with opened(fs, ino) as fh:
        await fs.unlink(ROOT_INO, b"file")
        for _ in range(10):
            await turn(mock_clock, SESSION_KEEPALIVE_S)
        assert await fs.read(fh, 0, 100) == b"content"
    await turn(mock_clock, ORPHAN_LINGER_S)


async def test_a_file_with_another_name_is_no_orphan(fs: Filesystem, ino: Ino) -> None:
    await fs.link(ino, ROOT_INO, b"other")
    fs.forget(ino, 1)
    async with opened(fs, ino):
        await fs.unlink(ROOT_INO, b"file")
        assert await orphans(fs) == []
    assert await read_file(fs, ino) == b"content"
    await fs.unlink(ROOT_INO, b"other")


async def test_a_file_is_gone_that_a_client_removed_which_has_not_heard_of_this_one(
    fs: Filesystem, peer: Filesystem, ino: Ino
) -> None:
    async with opened(fs, ino) as fh:
        await unlink_unaware(peer, b"file")
        await wait_all_tasks_blocked()
        with refused(errno.ESTALE):
            await fs.read(fh, 0, 100)


@pytest.mark.logs("the session could not be renewed", "the session of this mount lapsed")
async def test_the_orphans_of_a_session_that_lapsed_are_collected_by_others(
    fs: Filesystem, service: Service, open_fs: Open, ino: Ino, mock_clock: MockClock
) -> None:
    store = SteeredClient(service)
    async with open_fs(store) as other:
        fh = await other.open(ino, os.O_RDWR)
        await other.write(fh, 0, bytes(3 * CHUNK_BYTES))
        await other.flush(fh)
        await other.unlink(ROOT_INO, b"file")
        stuck = Gate()
        store.before_keepalive += [stuck] * 9
        for _ in range(int((SESSION_TTL_S + 2 * ORPHAN_SCAN_S) / ORPHAN_SCAN_S) + 1):
            await turn(mock_clock, ORPHAN_SCAN_S)
        assert await orphans(fs) == []
        with refused(errno.ESTALE):
            await other.read(fh, 0, 100)
        stuck.open()
        await turn(mock_clock, SESSION_KEEPALIVE_S)
        with refused(errno.EIO):
            await other.mkdir(ROOT_INO, b"refused", 0o755, ROOT)


@pytest.mark.logs("are lost")
async def test_a_removal_takes_what_its_owner_wrote_meanwhile(
    fs: Filesystem, peer: Filesystem, peer_store: SteeredClient, ino: Ino
) -> None:
    gate = Gate()
    async with opened(fs, ino) as fh:
        await fs.unlink(ROOT_INO, b"file")
        peer_store.before_commit.append(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer._orphans.delete, ino)  # as if the session of fs had lapsed
            await gate.reached.wait()
            await fs.setxattr(ino, b"user.x", b"1")
            await fs.write(fh, 2 * CHUNK_BYTES, b"far")
            await fs.fsync(fh)
            gate.open()
        await fs.write(fh, 0, b"nowhere to go")
        with refused(errno.ESTALE):
            await fs.fsync(fh)


# --- crashes --------------------------------------------------------------------------------------


@pytest.mark.logs("could not be written", "is lost", "the session could not be ended")
async def test_the_orphans_of_a_crash_are_collected_at_the_next_open(open_fs: Open) -> None:
    engine = MemoryEngine()
    async with open_embedded(engine) as service, open_fs(service.connect()) as fs:
        ino = await make_file(fs, b"file", bytes(3 * CHUNK_BYTES))
        await fs.setxattr(ino, b"user.x", b"")
        fh = await fs.open(ino, os.O_RDWR)
        await fs.unlink(ROOT_INO, b"file")
        await fs.write(fh, 0, b"dirty")
        await wait_all_tasks_blocked()
        service.close()  # nothing that the filesystem does from here on has any effect
    async with open_embedded(engine) as service, open_fs(service.connect()) as fs:
        await wait_all_tasks_blocked()
        report = await check(service.connect(), fs)
        assert report.counts[:4] == (1, 1, 0, 0)
        assert report.counts.orphans == 0


# --- large files ----------------------------------------------------------------------------------


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ORPHAN_STEP_CHUNKS", 4)
    monkeypatch.setattr(limits, "UNLINK_AT_ONCE_CHUNKS", 4)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("while_open", [False, True])
async def test_a_large_file_is_removed_in_bounded_steps(
    fs: Filesystem, store: SteeredClient, while_open: bool
) -> None:
    content = bytes(10 * CHUNK_BYTES + 5)
    ino = await make_file(fs, b"large", content)
    fh = await fs.open(ino, os.O_RDWR) if while_open else None
    store.commits.clear()
    await fs.unlink(ROOT_INO, b"large")
    assert len(store.commits) == 1
    gates = [Gate() for _ in range(3)]
    store.before_commit += gates
    async with trio.open_nursery() as nursery:
        if fh is not None:
            nursery.start_soon(fs.release, fh)
        for gate in gates:
            await gate.reached.wait()
            await check(store, fs)  # right after every step
            gate.open()
    await wait_all_tasks_blocked()
    assert len(store.commits) == 1 + 3
    assert all(len(ops) <= COMMIT_OPS_MAX for ops in store.commits)
    assert await orphans(fs) == []
    assert (await fs.statfs()).inodes_used == 1
    fs.forget(ino, 1)
    with refused(errno.ESTALE):
        await fs.getattr(ino)


@pytest.mark.usefixtures("small_steps")
async def test_a_removal_that_stops_half_way_goes_on(
    fs: Filesystem, store: SteeredClient, mock_clock: MockClock
) -> None:
    ino = await make_file(fs, b"large", bytes(10 * CHUNK_BYTES))
    fh = await fs.open(ino, os.O_RDWR)
    await fs.unlink(ROOT_INO, b"large")
    gate = Gate()
    gate.open()
    store.before_commit += [gate, BROKEN]
    with refused(errno.EIO):
        await fs.release(fh)
    await check(store, fs)
    await turn(mock_clock, ORPHAN_SCAN_S)
    assert await orphans(fs) == []


@pytest.mark.usefixtures("small_steps")
async def test_a_large_sparse_file_costs_what_it_holds(
    fs: Filesystem, store: SteeredClient
) -> None:
    ino = await make_file(fs, b"sparse")
    async with opened(fs, ino) as fh:
        for number in range(6):
            await fs.write(fh, number * 2**40, bytes(CHUNK_BYTES))
    store.commits.clear()
    await fs.unlink(ROOT_INO, b"sparse")
    await wait_all_tasks_blocked()
    assert len(store.commits) == 3
    assert await orphans(fs) == []


async def test_a_record_of_an_orphan_that_is_gone_is_removed(
    fs: Filesystem, service: Service, mock_clock: MockClock
) -> None:
    key = fs.keys.orphan(Ino(1000))
    await service.connect().commit([], [Put(key, encode_orphan(SessionId(77)))])
    await turn(mock_clock, ORPHAN_SCAN_S)
    assert await orphans(fs) == []


async def test_orphans_are_looked_through_page_by_page(
    fs: Filesystem, service: Service, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenfs.orphans.SCAN_ENTRIES_MAX", 2)
    kv = service.connect()
    for number in range(1000, 1005):
        await kv.commit([], [Put(fs.keys.orphan(Ino(number)), encode_orphan(SessionId(77)))])
    await turn(mock_clock, ORPHAN_SCAN_S)
    assert await orphans(fs) == []
