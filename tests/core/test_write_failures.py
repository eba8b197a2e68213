"""Commits that fail: bytes are kept while a retry can help, and every loss is reported."""

from __future__ import annotations

import errno
import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.limits import DIRTY_BYTES_MAX, FILE_BYTES_MAX, WRITEBACK_DELAY_S
from aspenfs.types import ROOT_INO, AttributeChanges, FileHandle, Ino
from aspenkv.errors import EngineError, OutcomeUnknownError
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import (
    ROOT,
    Gate,
    SteeredClient,
    dirty_bytes,
    failing,
    fill_the_buffer,
    make_file,
    opened,
    read_file,
    refused,
    turn,
    unlink_unaware,
)

BROKEN = failing(EngineError("the disk is gone"))
UNKNOWN = failing(OutcomeUnknownError("the answer was lost"))


async def goes_well() -> None:
    """Let a commit pass."""


A_WHILE = 2 * WRITEBACK_DELAY_S

kept = pytest.mark.logs("could not be written.*data is kept")
lost = pytest.mark.logs("lost")


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"file")


# --- bytes that are kept --------------------------------------------------------------------------


@kept
async def test_a_commit_in_the_background_is_tried_until_it_is_done(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"kept")
        store.before_commit += [BROKEN] * 3
        for failures in (1, 2, 3):
            await turn(mock_clock, WRITEBACK_DELAY_S)
            assert fs.statistics().data.failures == failures
            assert dirty_bytes(fs) == 4
            assert await fs.read(fh, 0, 100) == b"kept"
        await turn(mock_clock, WRITEBACK_DELAY_S)
        assert dirty_bytes(fs) == 0
        with refused(errno.EIO):
            await fs.flush(fh)  # nobody has been told yet
        await fs.flush(fh)
    assert await read_file(fs, ino) == b"kept"


@kept
async def test_the_next_write_reports_what_failed_in_the_background(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"kept")
        store.before_commit.append(BROKEN)
        await turn(mock_clock, WRITEBACK_DELAY_S)
        with refused(errno.EIO):
            await fs.write(fh, 0, b"refused")
        assert await fs.read(fh, 0, 100) == b"kept"
        assert await fs.write(fh, 4, b" and new") == 8
        assert await fs.read(fh, 0, 100) == b"kept and new"


@kept
@pytest.mark.parametrize("call", ["flush", "fsync"])
async def test_flush_and_fsync_try_again(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock, call: str
) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"kept")
        store.before_commit.append(BROKEN)
        await turn(mock_clock, WRITEBACK_DELAY_S)
        await getattr(fs, call)(fh)
        assert dirty_bytes(fs) == 0
        await fs.write(fh, 0, b"KEPT")  # what is stored after all is no error any more
    assert await read_file(fs, ino) == b"KEPT"


@kept
async def test_an_error_is_told_once(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"kept")
        store.before_commit += [BROKEN] * 2
        await turn(mock_clock, WRITEBACK_DELAY_S)
        with refused(errno.EIO):
            await fs.fsync(fh)
        assert await fs.write(fh, 4, b"!") == 1
        await fs.fsync(fh)
    assert await read_file(fs, ino) == b"kept!"


@pytest.mark.parametrize("call", ["flush", "fsync", "setattr", "truncate", "release"])
async def test_a_call_that_commits_reports_and_keeps(
    fs: Filesystem, store: SteeredClient, ino: Ino, call: str
) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    await fs.write(fh, 0, b"kept")
    store.before_commit.append(BROKEN)
    with refused(errno.EIO):
        match call:
            case "setattr":
                await fs.setattr(ino, AttributeChanges(mode=0o600))
            case "truncate":
                await fs.setattr(ino, AttributeChanges(size=1))
            case _:
                await getattr(fs, call)(fh)
    assert dirty_bytes(fs) == 4
    assert await read_file(fs, ino) == b"kept"
    if call != "release":
        await fs.release(fh)
    else:
        with refused(errno.EBADF):
            await fs.release(fh)  # it is closed all the same
    await fs.sync()
    assert fs.statistics().data[:3] == (0, 0, 0)


async def test_a_file_closed_with_bytes_that_failed_is_committed_later(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    await fs.write(fh, 0, b"kept")
    store.before_commit.append(BROKEN)
    with refused(errno.EIO):
        await fs.release(fh)
    assert fs.statistics().handles == 0
    assert (await fs.getattr(ino)).size == 4
    await turn(mock_clock, A_WHILE)
    assert fs.statistics().data[:3] == (0, 0, 0)
    assert await read_file(fs, ino) == b"kept"


@pytest.mark.parametrize("answered", [False, True])
async def test_bytes_written_during_a_commit_that_fails_stay_the_newest(
    fs: Filesystem, store: SteeredClient, ino: Ino, answered: bool
) -> None:
    gate = Gate()

    async def hold_and_fail() -> None:
        await gate()
        await UNKNOWN()

    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"0123456789")
        (store.after_commit if answered else store.before_commit).append(hold_and_fail)
        async with trio.open_nursery() as nursery:

            async def flush() -> None:
                with refused(errno.EIO):
                    await fs.flush(fh)

            nursery.start_soon(flush)
            await gate.reached.wait()
            await fs.write(fh, 2, b"NEW")
            gate.open()
        assert await fs.read(fh, 0, 100) == b"01NEW56789"
    assert await read_file(fs, ino) == b"01NEW56789"


async def test_a_large_write_that_fails_half_way_loses_no_byte(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    content = os.urandom(3 * limits.COMMIT_DATA_BYTES_MAX)
    async with opened(fs, ino) as fh:
        half = len(content) // 2
        await fs.write(fh, half, content[half:])
        await fs.write(fh, 0, content[:half])
        store.before_commit += [goes_well, BROKEN]
        with refused(errno.EIO):
            await fs.fsync(fh)
        assert await fs.read(fh, 0, len(content)) == content
        await fs.fsync(fh)
    assert await read_file(fs, ino) == content


async def test_too_many_conflicts_are_an_error_and_no_loss(
    fs: Filesystem,
    store: SteeredClient,
    peer: Filesystem,
    ino: Ino,
    autojump_clock: MockClock,
) -> None:
    mode = 0

    async def conflict() -> None:
        nonlocal mode
        mode = (mode + 1) % 0o777
        await peer.setattr(ino, AttributeChanges(mode=mode))

    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"kept")
        store.before_commit += [conflict] * limits.TXN_ATTEMPTS_MAX
        before_s = autojump_clock.current_time()
        with refused(errno.EBUSY):
            await fs.fsync(fh)
        waited_s = autojump_clock.current_time() - before_s
        assert waited_s < limits.TXN_ATTEMPTS_MAX * limits.TXN_BACKOFF_MAX_S
        assert fs.statistics().transactions.conflicts >= limits.TXN_ATTEMPTS_MAX
        await fs.fsync(fh)
    assert await read_file(fs, ino) == b"kept"


@pytest.mark.logs("could not be written")
async def test_sync_tries_every_file(fs: Filesystem, store: SteeredClient) -> None:
    handles: list[FileHandle] = []
    for name in (b"one", b"two"):
        fh, _ = await fs.create(ROOT_INO, name, 0o644, os.O_RDWR, ROOT)
        await fs.write(fh, 0, name)
        handles.append(fh)
    store.before_commit.append(BROKEN)
    with refused(errno.EIO):
        await fs.sync()
    assert fs.statistics().data.dirty_files == 1
    for fh in handles:
        await fs.release(fh)


@kept
async def test_a_full_buffer_that_cannot_be_stored_refuses_writes_and_recovers(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    handles = await fill_the_buffer(fs)
    async with opened(fs, ino) as fh:
        store.before_commit.append(BROKEN)
        with refused(errno.EIO):
            await fs.write(fh, 0, b"no room")
        assert dirty_bytes(fs) == DIRTY_BYTES_MAX
        assert await fs.write(fh, 0, b"room") == 4
        assert dirty_bytes(fs) <= DIRTY_BYTES_MAX
    with refused(errno.EIO):
        await fs.write(handles[0], 0, b"x")  # the file whose bytes failed is told, too
    for handle in handles:
        await fs.release(handle)


@pytest.mark.logs("could not be written", "some data could not be written and is lost")
async def test_what_cannot_be_stored_at_the_end_is_said_so(
    fs: Filesystem, service: Service, open_fs: Open, ino: Ino
) -> None:
    del fs
    store = SteeredClient(service)
    async with open_fs(store) as other:
        fh = await other.open(ino, os.O_WRONLY)
        await other.write(fh, 0, b"lost")
        store.before_commit.append(BROKEN)


# --- bytes that no retry can store ----------------------------------------------------------------


@pytest.mark.parametrize("call", ["flush", "fsync", "release"])
@lost
async def test_a_file_that_another_client_removed_is_stale(
    fs: Filesystem, peer: Filesystem, ino: Ino, call: str
) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    await fs.write(fh, 0, b"nowhere to go")
    await unlink_unaware(peer, b"file")
    with refused(errno.ESTALE):
        await getattr(fs, call)(fh)
    assert dirty_bytes(fs) == 0
    if call != "release":
        with refused(errno.ESTALE):
            await fs.read(fh, 0, 1)
        await fs.flush(fh)  # told once
        await fs.release(fh)
    fs.forget(ino, 1)
    assert fs.statistics().data[:3] == (0, 0, 0)


@lost
@pytest.mark.parametrize("call", ["write", "flush", "fsync", "release", "setattr"])
async def test_a_loss_in_the_background_is_reported_by_the_next_call(
    fs: Filesystem, peer: Filesystem, ino: Ino, mock_clock: MockClock, call: str
) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    await fs.write(fh, 0, b"nowhere to go")
    await unlink_unaware(peer, b"file")
    await turn(mock_clock, A_WHILE)
    assert dirty_bytes(fs) == 0
    with refused(errno.ESTALE):
        if call == "write":
            await fs.write(fh, 0, b"more")
        elif call == "setattr":
            await fs.setattr(ino, AttributeChanges(mode=0o600))
        else:
            await getattr(fs, call)(fh)
    if call != "release":
        await fs.release(fh)


@lost
async def test_a_loss_after_the_last_close_is_in_the_log(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, ino: Ino, mock_clock: MockClock
) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    await fs.write(fh, 0, b"nowhere to go")
    store.before_commit.append(BROKEN)
    with refused(errno.EIO):
        await fs.release(fh)
    await unlink_unaware(peer, b"file")
    await turn(mock_clock, A_WHILE)
    assert fs.statistics().data[:3] == (0, 0, 0)


@lost
async def test_an_append_beyond_the_largest_file_is_lost_and_said_so(
    fs: Filesystem, ino: Ino
) -> None:
    await fs.setattr(ino, AttributeChanges(size=FILE_BYTES_MAX - 3))
    async with opened(fs, ino, os.O_WRONLY | os.O_APPEND) as fh:
        await fs.write(fh, 0, b"four")
        with refused(errno.EFBIG):
            await fs.fsync(fh)
        await fs.fsync(fh)
        await fs.write(fh, 0, b"3!!")
    assert (await fs.getattr(ino)).size == FILE_BYTES_MAX


@lost
async def test_a_loss_is_reported_although_later_bytes_are_stored(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    await fs.setattr(ino, AttributeChanges(size=FILE_BYTES_MAX - 3))
    gate = Gate()
    async with opened(fs, ino, os.O_WRONLY | os.O_APPEND) as log, opened(fs, ino) as fh:
        await fs.write(log, 0, b"lost")
        store.before_get.append(gate)
        fs._caches.meta.clear()
        await turn(mock_clock, A_WHILE)
        await gate.reached.wait()
        await fs.write(fh, 0, b"stored")  # taken while the commit that fails is in flight
        gate.open()
        await wait_all_tasks_blocked()
        with refused(errno.EFBIG):
            await fs.fsync(fh)
        assert await fs.read(fh, 0, 6) == b"stored"
