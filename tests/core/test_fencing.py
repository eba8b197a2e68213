"""A mount whose session lapsed while it could not reach the store: it changes nothing any more."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs.filesystem import Filesystem
from aspenfs.keys import ParsedKey
from aspenfs.limits import (
    CHUNK_BYTES,
    DIRTY_BYTES_MAX,
    ORPHAN_SCAN_S,
    SESSION_KEEPALIVE_S,
    SESSION_TTL_S,
    WRITEBACK_DELAY_S,
)
from aspenfs.scans import records_below
from aspenfs.types import ROOT_INO, AttributeChanges, Ino
from aspenkv.contract import Delete
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import (
    ROOT,
    SteeredClient,
    check,
    dirty_bytes,
    fill_the_buffer,
    make_file,
    names,
    opened,
    read_file,
    refused,
    turn,
)

LAPSED = "the session of this mount lapsed: changes are refused; mount again"


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"file", b"content")


async def keys_below(fs: Filesystem, prefix: bytes) -> list[bytes]:
    return [record.key async for record in records_below(fs.kv, prefix)]


@pytest.fixture
def other_store(service: Service) -> SteeredClient:
    return SteeredClient(service)


@pytest.fixture
async def other(
    fs: Filesystem, ino: Ino, other_store: SteeredClient, open_fs: Open
) -> AsyncIterator[Filesystem]:
    """A mount that has looked at the file."""
    async with open_fs(other_store) as other:
        assert (await other.lookup(ROOT_INO, b"file")).ino == ino
        yield other
    assert (await check(fs.kv, fs)).counts.orphans == 0


async def end_session(fs: Filesystem, other: Filesystem) -> None:
    """Let the session of ``other`` lapse, without telling it."""
    await fs.kv.commit([], [Delete(fs.keys.session(other._orphans._session.id))])


@pytest.mark.logs(
    "changes by others cannot be followed",
    "the session could not be renewed",
    "orphans could not be collected",
    "data cannot be written",
    LAPSED,
    "could not be written",
    "some data could not be written and is lost",
)
async def test_a_mount_that_was_cut_off_does_not_overwrite_what_others_did_meanwhile(
    fs: Filesystem,
    other: Filesystem,
    other_store: SteeredClient,
    ino: Ino,
    mock_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    orphan = await make_file(other, b"orphan", bytes(3 * CHUNK_BYTES))
    held, fh = await other.open(orphan, os.O_RDWR), await other.open(ino, os.O_RDWR)
    await other.unlink(ROOT_INO, b"orphan")
    await other.write(fh, 0, b"LATE")
    sessions = await keys_below(fs, fs.keys.sessions())
    usages = await keys_below(fs, fs.keys.usages())
    other_store.leave()

    await turn(mock_clock, SESSION_TTL_S / 2)
    await turn(mock_clock, SESSION_TTL_S / 2)
    assert len(await keys_below(fs, fs.keys.sessions())) == len(sessions) - 1
    for _ in range(2):
        await turn(mock_clock, ORPHAN_SCAN_S)
    assert len(await keys_below(fs, fs.keys.usages())) < len(usages)
    assert (await check(fs.kv, fs)).counts.orphans == 0
    async with opened(fs, ino) as theirs:
        await fs.write(theirs, 0, b"NEWER!!")

    commits = len(other_store.commits)
    other_store.come_back()
    await turn(mock_clock, WRITEBACK_DELAY_S)
    with refused(errno.EIO):
        await other.fsync(fh)
    with refused(errno.EIO):
        await other.mkdir(ROOT_INO, b"refused", 0o755, ROOT)
    assert len(other_store.commits) == commits
    assert await read_file(fs, ino) == b"NEWER!!"
    assert await names(other) == [b"file"]
    await other.release(held)
    await turn(mock_clock, SESSION_KEEPALIVE_S)  # the keepalive hears of it too
    assert [record.levelname for record in caplog.records].count("CRITICAL") == 1


@pytest.mark.logs(LAPSED)
async def test_the_first_change_after_the_lapse_is_refused(
    fs: Filesystem, other: Filesystem, other_store: SteeredClient, ino: Ino
) -> None:
    await other.mkdir(ROOT_INO, b"before", 0o755, ROOT)
    await end_session(fs, other)
    commits = len(other_store.commits)
    heard: list[ParsedKey | None] = []
    other.listen(heard.append)
    with refused(errno.EIO):
        await other.setattr(ino, AttributeChanges(mode=0o600))
    assert heard == [None]  # the kernel is to keep nothing
    with refused(errno.EIO):
        await other.mkdir(ROOT_INO, b"after", 0o755, ROOT)
    assert heard == [None]
    other.listen(None)
    assert len(other_store.commits) == commits
    assert other.statistics().transactions.conflicts == 0
    assert await read_file(other, ino) == b"content"
    assert await names(other) == [b"before", b"file"]


@pytest.mark.logs(LAPSED)
async def test_a_lapse_counts_more_than_a_conflict(
    fs: Filesystem, other: Filesystem, other_store: SteeredClient, ino: Ino
) -> None:
    async def lapse_and_change() -> None:
        await end_session(fs, other)
        await fs.setattr(ino, AttributeChanges(mode=0o640))

    other_store.before_commit.append(lapse_and_change)
    with refused(errno.EIO):
        await other.setattr(ino, AttributeChanges(uid=1))
    assert other.statistics().transactions.conflicts == 0


@pytest.mark.logs(LAPSED, "could not be written", "some data could not be written and is lost")
async def test_bytes_that_may_not_be_written_any_more_are_reported_and_never_tried_again(
    fs: Filesystem,
    other: Filesystem,
    ino: Ino,
    mock_clock: MockClock,
) -> None:
    fh = await other.open(ino, os.O_RDWR)
    await other.write(fh, 0, b"refused")
    await end_session(fs, other)
    for _ in range(2):
        await turn(mock_clock, WRITEBACK_DELAY_S)
    failures = other.statistics().data.failures
    assert failures > 0
    for _ in range(3):
        await turn(mock_clock, WRITEBACK_DELAY_S)
    assert other.statistics().data.failures == failures
    for call in (other.flush, other.fsync):
        with refused(errno.EIO):
            await call(fh)
    assert dirty_bytes(other) == 7
    assert await other.read(fh, 0, 100) == b"refused"
    assert await read_file(fs, ino) == b"content"


@pytest.mark.logs(LAPSED, "could not be written", "some data could not be written and is lost")
async def test_a_full_buffer_that_may_not_be_written_any_more_refuses_writes(
    fs: Filesystem, other: Filesystem, ino: Ino
) -> None:
    handles = await fill_the_buffer(other)
    fh = await other.open(ino, os.O_RDWR)
    await end_session(fs, other)
    for _ in range(3):
        with refused(errno.EIO):
            await other.write(fh, 0, b"no room")
    assert dirty_bytes(other) == DIRTY_BYTES_MAX
    for handle in handles:
        assert await other.read(handle, 0, 1) == b"\0"


@pytest.mark.logs(LAPSED)
async def test_a_mount_that_lapsed_leaves_orphans_to_others(
    fs: Filesystem, other: Filesystem, other_store: SteeredClient, mock_clock: MockClock
) -> None:
    ino = await make_file(other, b"orphan", b"x")
    held = await other.open(ino, os.O_RDONLY)
    await other.unlink(ROOT_INO, b"orphan")
    await end_session(fs, other)
    await other.release(held)
    await wait_all_tasks_blocked()
    scans = other_store.scans
    other._orphans.collect_soon()
    for _ in range(3):
        await turn(mock_clock, ORPHAN_SCAN_S)
    assert other_store.scans <= scans + 4  # one more look, which was refused
