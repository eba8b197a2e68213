"""A store that cannot be reached for a while: what waits, for how long, and what becomes of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.limits import DIRTY_BYTES_MAX, KV_TIMEOUT_S, SHUTDOWN_AWAY_S
from aspenfs.types import ROOT_INO, Ino
from aspenkv.errors import BusyError
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import (
    ROOT,
    Gate,
    SteeredClient,
    Step,
    dirty_bytes,
    failing,
    fill_the_buffer,
    make_file,
    opened,
    read_file,
    refused,
    unlink_unaware,
)

A_WHILE_S = 5.0
"""Less than SESSION_TTL_S less SESSION_KEEPALIVE_S, so that the session outlives it."""

DATA_WAITS = "data cannot be written: .*; it is kept until it can"
NO_WATCH = "changes by others cannot be followed"

away = pytest.mark.logs(DATA_WAITS, NO_WATCH)


@pytest.fixture(autouse=True)
def _patient_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the session outlive what is tested here; the end of one has its own tests."""
    monkeypatch.setattr(limits, "SESSION_TTL_S", 3600.0)
    monkeypatch.setattr(limits, "SESSION_KEEPALIVE_S", 3600.0)
    monkeypatch.setattr(limits, "ORPHAN_SCAN_S", 3600.0)


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"file", b"old")


async def seconds(clock: MockClock, call: Callable[[], Awaitable[object]], error: int) -> float:
    """Return how long it took until a call was refused."""
    before_s = clock.current_time()
    with refused(error):
        await call()
    return clock.current_time() - before_s


# --- dirty data -----------------------------------------------------------------------------------


@away
async def test_dirty_data_waits_for_the_store_as_long_as_it_takes(
    fs: Filesystem, store: SteeredClient, ino: Ino, autojump_clock: MockClock
) -> None:
    del autojump_clock
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        store.leave()
        await trio.sleep(10 * KV_TIMEOUT_S)
        assert await fs.write(fh, 3, b"er") == 2  # no error of this file
        assert await fs.write(fh, 5, b"!") == 1
        store.come_back()
        await trio.sleep(limits.WRITEBACK_DELAY_S + limits.WRITEBACK_RETRY_MAX_S)
        assert dirty_bytes(fs) == 0
        assert not fs.statistics().data.is_away
        await fs.fsync(fh)  # nothing was lost, so there is nothing to tell
    assert await read_file(fs, ino) == b"newer!"


@pytest.mark.logs(DATA_WAITS)
async def test_a_store_that_is_busy_is_asked_again(
    fs: Filesystem, store: SteeredClient, ino: Ino, autojump_clock: MockClock
) -> None:
    del autojump_clock
    store.before_commit += [failing(BusyError("too many clients"))] * 20
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        await trio.sleep(10 * limits.WRITEBACK_RETRY_MAX_S)
        assert dirty_bytes(fs) == 3
        await trio.sleep(10 * limits.WRITEBACK_RETRY_MAX_S)
        assert dirty_bytes(fs) == 0
        assert fs.statistics().data.failures == 20
        await fs.flush(fh)


@pytest.mark.parametrize("call", ["flush", "fsync"])
@away
async def test_who_waits_for_the_store_is_told_once_and_the_data_is_stored_later(
    fs: Filesystem, store: SteeredClient, ino: Ino, autojump_clock: MockClock, call: str
) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        store.leave()
        waited_s = await seconds(autojump_clock, lambda: getattr(fs, call)(fh), errno.ETIMEDOUT)
        assert waited_s <= KV_TIMEOUT_S
        assert await fs.write(fh, 3, b"er") == 2
        store.come_back()
        await trio.sleep(A_WHILE_S)
        assert dirty_bytes(fs) == 0
        await getattr(fs, call)(fh)
    assert await read_file(fs, ino) == b"newer"


@away
async def test_many_who_wait_for_one_file_wait_no_longer(
    fs: Filesystem, store: SteeredClient, ino: Ino, autojump_clock: MockClock
) -> None:
    waited_s: list[float] = []
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        store.leave()

        async def flush() -> None:
            waited_s.append(await seconds(autojump_clock, lambda: fs.fsync(fh), errno.ETIMEDOUT))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(flush)
                await trio.sleep(A_WHILE_S)
        assert max(waited_s) <= KV_TIMEOUT_S
        store.come_back()
        await fs.fsync(fh)
    assert await read_file(fs, ino) == b"new"


@away
async def test_a_file_closed_while_the_store_is_away_is_stored_later(
    fs: Filesystem, store: SteeredClient, ino: Ino, autojump_clock: MockClock
) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    await fs.write(fh, 0, b"new")
    store.leave()
    await seconds(autojump_clock, lambda: fs.release(fh), errno.ETIMEDOUT)
    store.come_back()
    await trio.sleep(A_WHILE_S)
    assert fs.statistics().data[:3] == (0, 0, 0)
    assert await read_file(fs, ino) == b"new"


@away
async def test_commits_that_nobody_asked_for_are_few_at_a_time(
    fs: Filesystem, store: SteeredClient, autojump_clock: MockClock
) -> None:
    del autojump_clock
    handles = []
    for number in range(3 * limits.FLUSHES_MAX):
        fh, _ = await fs.create(ROOT_INO, b"%d" % number, 0o644, os.O_RDWR, ROOT)
        await fs.write(fh, 0, b"new")
        handles.append(fh)
    store.leave()
    for _ in range(100):
        await trio.sleep(1)
        assert store.waiting <= limits.FLUSHES_MAX + 1  # and the watch
    store.come_back()
    await trio.sleep(A_WHILE_S)
    assert dirty_bytes(fs) == 0
    for fh in handles:
        await fs.release(fh)


@pytest.mark.logs(DATA_WAITS, NO_WATCH, "bytes are lost")
async def test_a_store_that_refuses_is_not_away(
    fs: Filesystem,
    store: SteeredClient,
    peer: Filesystem,
    ino: Ino,
    autojump_clock: MockClock,
) -> None:
    del autojump_clock
    fh = await fs.open(ino, os.O_RDWR)
    await fs.write(fh, 0, b"nowhere to go")
    store.leave()
    await trio.sleep(2 * KV_TIMEOUT_S)
    assert fs.statistics().data.is_away
    await unlink_unaware(peer, b"file")
    store.come_back()
    await trio.sleep(A_WHILE_S)
    assert not fs.statistics().data.is_away
    with refused(errno.ESTALE):
        await fs.release(fh)


# --- a full buffer --------------------------------------------------------------------------------


@away
async def test_a_writer_waits_for_room_as_long_as_a_call_does(
    fs: Filesystem, store: SteeredClient, ino: Ino, autojump_clock: MockClock
) -> None:
    handles = await fill_the_buffer(fs)
    async with opened(fs, ino) as fh:
        store.leave()
        waited_s = await seconds(
            autojump_clock, lambda: fs.write(fh, 0, b"no room"), errno.ETIMEDOUT
        )
        assert waited_s == KV_TIMEOUT_S
        assert dirty_bytes(fs) == DIRTY_BYTES_MAX
        await trio.sleep(A_WHILE_S)
        store.come_back()
        assert await fs.write(fh, 0, b"room") == 4
    for handle in handles:
        await fs.release(handle)
    assert await read_file(fs, ino) == b"room"


async def test_a_writer_waits_longer_while_others_are_stored(
    fs: Filesystem, store: SteeredClient, ino: Ino, autojump_clock: MockClock
) -> None:
    def slow(number: int) -> Step:
        return partial(trio.sleep, 0.9 * KV_TIMEOUT_S * number)

    handles = await fill_the_buffer(fs)
    async with opened(fs, ino) as fh:
        store.before_commit += [slow(number + 1) for number in range(len(handles))]
        before_s = autojump_clock.current_time()
        assert await fs.write(fh, 0, bytes(DIRTY_BYTES_MAX // 8)) == DIRTY_BYTES_MAX // 8
        assert autojump_clock.current_time() - before_s > KV_TIMEOUT_S
    for handle in handles:
        await fs.release(handle)


async def test_the_files_that_wait_are_bounded_too(
    fs: Filesystem, store: SteeredClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DIRTY_FILES_MAX", 3)
    handles = []
    for number in range(5):
        fh, _ = await fs.create(ROOT_INO, b"%d" % number, 0o644, os.O_RDWR, ROOT)
        handles.append(fh)
    gate = Gate()
    for fh in handles[:3]:
        await fs.write(fh, 0, b"x")
    store.before_commit.append(gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.write, handles[3], 0, b"x")
        await gate.reached.wait()
        await fs.write(handles[1], 1, b"x")  # one of those that wait already
        await wait_all_tasks_blocked()
        assert fs.statistics().data.dirty_files == 3
        gate.open()
    assert fs.statistics().data.dirty_files == 3
    for fh in handles:
        await fs.release(fh)


# --- all other calls ------------------------------------------------------------------------------


@pytest.mark.logs(NO_WATCH)
async def test_what_is_not_cached_fails_in_time(
    fs: Filesystem, store: SteeredClient, ino: Ino, autojump_clock: MockClock
) -> None:
    fh = await fs.opendir(ROOT_INO)
    store.leave()
    fs._caches.clear()
    for call in (
        fs.statfs,
        lambda: fs.lookup(ROOT_INO, b"file"),
        lambda: fs.getattr(ino),
        lambda: fs.open(ino, os.O_RDONLY),
        lambda: fs.readdir(fh, 0, 10),
        lambda: fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT),
        lambda: fs.unlink(ROOT_INO, b"file"),
        lambda: fs.rename(ROOT_INO, b"file", ROOT_INO, b"new", 0),
        lambda: fs.getxattr(ino, b"user.x"),
        lambda: fs.fsyncdir(fh),
    ):
        assert await seconds(autojump_clock, call, errno.ETIMEDOUT) == KV_TIMEOUT_S
    store.come_back()
    await fs.releasedir(fh)
    assert await read_file(fs, ino) == b"old"


@pytest.mark.logs(NO_WATCH)
async def test_closing_a_file_that_has_nothing_to_write_needs_no_store(
    fs: Filesystem, store: SteeredClient, ino: Ino, autojump_clock: MockClock
) -> None:
    async with opened(fs, ino) as fh:
        store.leave()
        fs._caches.clear()
        before_s = autojump_clock.current_time()
        await fs.flush(fh)
        assert autojump_clock.current_time() == before_s
        store.come_back()


# --- the end of a mount ---------------------------------------------------------------------------


@pytest.mark.logs(
    DATA_WAITS,
    NO_WATCH,
    "inode .* could not be written",
    "some data could not be written and is lost: 7 bytes in 2 files: the test took the store away",
)
async def test_a_mount_that_ends_while_the_store_is_away_says_what_is_lost(
    service: Service, open_fs: Open, autojump_clock: MockClock
) -> None:
    store = SteeredClient(service)
    async with open_fs(store) as fs:
        for name in (b"one", b"four"):
            fh, _ = await fs.create(ROOT_INO, name, 0o644, os.O_RDWR, ROOT)
            await fs.write(fh, 0, name)
        await trio.sleep(0.1)
        store.leave()
        before_s = autojump_clock.current_time()
    waited_s = autojump_clock.current_time() - before_s
    assert waited_s <= KV_TIMEOUT_S + limits.SESSION_CALL_S


@pytest.mark.logs(
    DATA_WAITS,
    NO_WATCH,
    "inode .* could not be written",
    "some data could not be written and is lost: 4 bytes in 1 files: the test took the store away",
)
async def test_a_store_known_to_be_away_is_not_waited_for_again(
    service: Service, open_fs: Open, autojump_clock: MockClock
) -> None:
    store = SteeredClient(service)
    async with open_fs(store) as fs:
        fh, _ = await fs.create(ROOT_INO, b"file", 0o644, os.O_RDWR, ROOT)
        await fs.write(fh, 0, b"lost")
        await trio.sleep(0.1)
        store.leave()
        await trio.sleep(2 * KV_TIMEOUT_S)
        before_s = autojump_clock.current_time()
    waited_s = autojump_clock.current_time() - before_s
    assert waited_s <= SHUTDOWN_AWAY_S + limits.SESSION_CALL_S


@pytest.mark.logs(NO_WATCH, "the last changes may not survive a power cut of the store")
async def test_a_mount_that_ends_without_a_last_sync_says_so(
    service: Service, open_fs: Open, autojump_clock: MockClock
) -> None:
    store = SteeredClient(service)
    async with open_fs(store) as fs:
        await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
        await trio.sleep(0.1)
        store.leave()
        before_s = autojump_clock.current_time()
    assert autojump_clock.current_time() - before_s <= KV_TIMEOUT_S + limits.SESSION_CALL_S
