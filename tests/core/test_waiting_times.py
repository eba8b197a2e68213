"""Times set on a file whose bytes wait for a commit: they wait too, but nobody here can tell."""

from __future__ import annotations

import errno
import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.limits import WRITEBACK_DELAY_S
from aspenfs.metadata import clamp_ns, decode_times
from aspenfs.types import ROOT_INO, AttributeChanges, Ino
from aspenkv.contract import Put
from aspenkv.errors import EngineError, OutcomeUnknownError
from tests.core.steering import (
    Gate,
    SteeredClient,
    Step,
    calls,
    dirty_bytes,
    failing,
    make_file,
    opened,
    read_file,
    refused,
    turn,
    unlink_unaware,
)

APPEND = os.O_RDWR | os.O_APPEND
ATIME_NS = 5
MTIME_NS = 6
TIMES = AttributeChanges(atime_ns=ATIME_NS, mtime_ns=MTIME_NS)
BROKEN = failing(EngineError("the disk is gone"))
UNKNOWN = failing(OutcomeUnknownError("the answer was lost"))


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"file", b"old content")


async def times(fs: Filesystem, ino: Ino) -> tuple[int, int]:
    """Return atime and mtime as stat(2) shows them."""
    shown = await fs.getattr(ino)
    return shown.atime_ns, shown.mtime_ns


async def stored_times(peer: Filesystem, ino: Ino) -> tuple[int, int]:
    """Return atime and mtime as another client sees them."""
    await wait_all_tasks_blocked()
    return await times(peer, ino)


async def test_they_take_no_call_and_are_seen_at_once_and_by_others_after_a_close(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    before = await fs.getattr(ino)
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        with calls(store, 0):
            shown = await fs.setattr(ino, TIMES)
            assert (shown.atime_ns, shown.mtime_ns) == (ATIME_NS, MTIME_NS)
            assert shown.ctime_ns > before.ctime_ns
            assert await fs.getattr(ino) == shown
            assert (await fs.lookup(ROOT_INO, b"file")) == shown
        assert await stored_times(peer, ino) == (before.atime_ns, before.mtime_ns)
        with calls(store, 1):
            await fs.flush(fh)
        assert await fs.getattr(ino) == shown
    assert await stored_times(peer, ino) == (ATIME_NS, MTIME_NS)
    assert await read_file(peer, ino) == b"new content"


async def test_on_an_open_file_that_is_clean_they_do_not_wait(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    async with opened(fs, ino):
        with calls(store, 1):
            await fs.setattr(ino, TIMES)
        assert await stored_times(peer, ino) == (ATIME_NS, MTIME_NS)


async def test_the_background_commits_them_too(
    fs: Filesystem, peer: Filesystem, ino: Ino, mock_clock: MockClock
) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        await fs.setattr(ino, TIMES)
        await turn(mock_clock, WRITEBACK_DELAY_S)
        assert await stored_times(peer, ino) == (ATIME_NS, MTIME_NS)


async def test_the_last_of_them_hold(fs: Filesystem, peer: Filesystem, ino: Ino) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        await fs.setattr(ino, AttributeChanges(atime_ns=1, mtime_ns=2))
        await fs.setattr(ino, AttributeChanges(atime_ns=3))
        assert await times(fs, ino) == (3, 2)
        await fs.setattr(ino, AttributeChanges(mtime_ns=4))
        assert await times(fs, ino) == (3, 4)
    assert await stored_times(peer, ino) == (3, 4)


async def test_bytes_written_later_set_the_mtime_and_leave_the_atime(
    fs: Filesystem, peer: Filesystem, ino: Ino
) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        earlier = await fs.setattr(ino, TIMES)
        await fs.write(fh, 0, b"NEW")
        shown = await fs.getattr(ino)
        assert shown.atime_ns == ATIME_NS
        assert shown.mtime_ns == shown.ctime_ns > earlier.ctime_ns
    assert await stored_times(peer, ino) == (ATIME_NS, shown.mtime_ns)


async def test_they_are_shown_as_they_can_be_stored(fs: Filesystem, ino: Ino) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        await fs.setattr(ino, AttributeChanges(atime_ns=2**100, mtime_ns=-(2**100)))
        shown = await times(fs, ino)
        assert shown == (clamp_ns(2**100), clamp_ns(-(2**100)))
        await fs.flush(fh)
        assert await times(fs, ino) == shown


async def test_they_come_with_the_last_bytes_of_many(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    async with opened(fs, ino) as fh:
        for number in range(limits.COMMIT_EXTENTS_MAX + 1):
            await fs.write(fh, 10 * number, b"x")
        await fs.setattr(ino, TIMES)
        store.commits.clear()
        await fs.flush(fh)
    key = fs.keys.times(ino)
    stored = [
        decode_times(key, bytes(op.value)).mtime_ns
        for ops in store.commits
        for op in ops
        if isinstance(op, Put) and op.key == key
    ]
    assert len(stored) == 2
    assert stored[0] > MTIME_NS
    assert stored[1] == MTIME_NS


@pytest.mark.parametrize("fails", [False, True])
async def test_set_while_the_bytes_are_on_their_way(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, ino: Ino, fails: bool
) -> None:
    gate = Gate()

    async def hold() -> None:
        await gate()
        if fails:
            await BROKEN()

    async def flush() -> None:
        if fails:
            with refused(errno.EIO):
                await fs.flush(fh)
        else:
            await fs.flush(fh)

    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        store.before_commit.append(hold)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            await gate.reached.wait()
            await fs.setattr(ino, TIMES)
            assert await times(fs, ino) == (ATIME_NS, MTIME_NS)
            gate.open()
        assert await times(fs, ino) == (ATIME_NS, MTIME_NS)
        assert dirty_bytes(fs) == (3 if fails else 0)
    assert await stored_times(peer, ino) == (ATIME_NS, MTIME_NS)
    assert fs.statistics().data[:3] == (0, 0, 0)


@pytest.mark.parametrize("step", [BROKEN, UNKNOWN], ids=["failed", "unknown"])
@pytest.mark.parametrize("was_done", [False, True])
@pytest.mark.parametrize("meanwhile", ["nothing", "atime", "bytes"])
async def test_a_commit_that_fails_keeps_them(
    fs: Filesystem,
    peer: Filesystem,
    store: SteeredClient,
    ino: Ino,
    step: Step,
    was_done: bool,
    meanwhile: str,
) -> None:
    gate = Gate()

    async def hold_and_fail() -> None:
        await gate()
        await step()

    async def flush() -> None:
        with refused(errno.EIO):
            await fs.flush(fh)

    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        await fs.setattr(ino, TIMES)
        (store.after_commit if was_done else store.before_commit).append(hold_and_fail)
        expected = ATIME_NS, MTIME_NS
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            await gate.reached.wait()
            if meanwhile == "atime":
                await fs.setattr(ino, AttributeChanges(atime_ns=7))
                expected = 7, MTIME_NS
            elif meanwhile == "bytes":
                await fs.write(fh, 3, b"er")
                expected = ATIME_NS, (await fs.getattr(ino)).mtime_ns
                assert expected[1] > MTIME_NS
            assert await times(fs, ino) == expected
            gate.open()
        assert await times(fs, ino) == expected
    assert await stored_times(peer, ino) == expected


async def test_they_follow_an_append_in_a_commit_of_their_own(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b" and more")
        await fs.setattr(ino, TIMES)
        store.before_commit.append(UNKNOWN)
        with refused(errno.EIO):
            await fs.flush(fh)
        assert await times(fs, ino) == (ATIME_NS, MTIME_NS)
        await fs.flush(fh)
    assert await stored_times(peer, ino) == (ATIME_NS, MTIME_NS)
    assert await read_file(peer, ino) == b"old content and more"


async def test_set_again_while_they_are_on_their_way_alone(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    gate = Gate()

    async def pass_by() -> None:
        """Let the commit of the appended bytes go first."""

    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b" and more")
        await fs.setattr(ino, TIMES)
        store.before_commit += [pass_by, gate]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.flush, fh)
            await gate.reached.wait()
            assert dirty_bytes(fs) == 0
            assert await times(fs, ino) == (ATIME_NS, MTIME_NS)
            await fs.setattr(ino, AttributeChanges(atime_ns=7))
            assert await times(fs, ino) == (7, MTIME_NS)
            gate.open()
    assert await stored_times(peer, ino) == (7, MTIME_NS)


async def test_they_are_cut_off_by_a_cut(fs: Filesystem, ino: Ino) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        await fs.setattr(ino, TIMES)
        shown = await fs.setattr(ino, AttributeChanges(size=1), fh)
        assert shown.atime_ns == ATIME_NS
        assert shown.mtime_ns > MTIME_NS
        await fs.flush(fh)
        assert await fs.getattr(ino) == shown


async def test_a_change_of_the_mode_takes_them_along(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        await fs.setattr(ino, TIMES)
        with calls(store, 1):
            shown = await fs.setattr(ino, AttributeChanges(mode=0o600))
            assert (shown.atime_ns, shown.mtime_ns) == (ATIME_NS, MTIME_NS)
    assert await stored_times(peer, ino) == (ATIME_NS, MTIME_NS)


async def test_they_do_not_turn_the_ctime_back(fs: Filesystem, ino: Ino) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        await fs.setattr(ino, TIMES)
        await fs.rename(ROOT_INO, b"file", ROOT_INO, b"renamed")
        renamed = await fs.getattr(ino)
        await fs.flush(fh)
        assert await fs.getattr(ino) == renamed


async def test_the_file_may_be_removed_meanwhile(fs: Filesystem, ino: Ino) -> None:
    fh = await fs.open(ino, os.O_RDWR)
    await fs.write(fh, 0, b"new")
    await fs.setattr(ino, TIMES)
    await fs.unlink(ROOT_INO, b"file")
    assert await times(fs, ino) == (ATIME_NS, MTIME_NS)
    await fs.release(fh)
    assert fs.statistics().data[:3] == (0, 0, 0)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(os.O_RDWR, marks=pytest.mark.logs("3 bytes are lost")),
        pytest.param(APPEND, marks=pytest.mark.logs("3 bytes are lost", "the times set are lost")),
    ],
)
async def test_they_are_lost_with_a_file_that_another_client_removed(
    fs: Filesystem, peer: Filesystem, ino: Ino, flags: int
) -> None:
    async with opened(fs, ino, flags) as fh:
        await fs.write(fh, 0, b"new")
        await fs.setattr(ino, TIMES)
        await unlink_unaware(peer, b"file")
        await wait_all_tasks_blocked()
        with refused(errno.ESTALE):
            await fs.setattr(ino, TIMES)
        with refused(errno.ESTALE):
            await fs.fsync(fh)
        await fs.fsync(fh)  # told once
    assert fs.statistics().data[:3] == (0, 0, 0)


@pytest.mark.logs("could not be written")
async def test_a_file_with_an_error_to_be_told_tells_it(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"new")
        store.before_commit.append(BROKEN)
        await turn(mock_clock, WRITEBACK_DELAY_S)
        with refused(errno.EIO):
            await fs.setattr(ino, TIMES)
        await fs.setattr(ino, TIMES)
        await fs.flush(fh)
        assert await times(fs, ino) == (ATIME_NS, MTIME_NS)
