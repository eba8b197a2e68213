"""Commits of bytes whose outcome is not known: done once, or said to be lost, but never twice."""

from __future__ import annotations

import errno
import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES, INLINE_BYTES_MAX
from aspenfs.types import ROOT_INO, AttributeChanges, Ino
from aspenkv.errors import OutcomeUnknownError, UnavailableError
from tests.core.steering import (
    Gate,
    SteeredClient,
    dirty_bytes,
    failing,
    make_file,
    opened,
    read_file,
    refused,
)

APPEND = os.O_RDWR | os.O_APPEND
UNKNOWN = failing(OutcomeUnknownError("the answer was lost"))
UNREACHED = failing(UnavailableError("nobody answered"))

lost = pytest.mark.logs("bytes are lost")
was_done = pytest.mark.parametrize("was_done", [True, False])


@pytest.fixture(params=[b"first;", bytes(INLINE_BYTES_MAX) + b"first;"], ids=["inline", "chunks"])
def content(request: pytest.FixtureRequest) -> bytes:
    assert isinstance(request.param, bytes)
    return request.param


@pytest.fixture
async def ino(fs: Filesystem, content: bytes) -> Ino:
    return await make_file(fs, b"log", content)


def lose_answer(store: SteeredClient, *, was_done: bool) -> None:
    (store.after_commit if was_done else store.before_commit).append(UNKNOWN)


# --- appends --------------------------------------------------------------------------------------


@was_done
async def test_an_append_whose_answer_is_lost_is_done_once(
    fs: Filesystem, store: SteeredClient, ino: Ino, content: bytes, was_done: bool
) -> None:
    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b"second;")
        lose_answer(store, was_done=was_done)
        with refused(errno.EIO):
            await fs.flush(fh)
        assert await fs.read(fh, len(content), 100) == b"second;"
        await fs.write(fh, 0, b"third;")
        assert await fs.read(fh, len(content), 100) == b"second;third;"
        await fs.flush(fh)
        assert dirty_bytes(fs) == 0
    assert await read_file(fs, ino) == content + b"second;third;"


@was_done
async def test_nor_is_it_done_twice_if_more_answers_are_lost(
    fs: Filesystem, store: SteeredClient, ino: Ino, content: bytes, was_done: bool
) -> None:
    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b"second;")
        lose_answer(store, was_done=was_done)
        with refused(errno.EIO):
            await fs.flush(fh)
        fs._caches.meta.clear()
        store.before_get.append(UNREACHED)
        with refused(errno.ETIMEDOUT):
            await fs.flush(fh)
        if not was_done:
            store.before_commit.append(UNREACHED)
            with refused(errno.ETIMEDOUT):
                await fs.flush(fh)
            store.after_commit.append(UNKNOWN)
            with refused(errno.EIO):
                await fs.flush(fh)
        await fs.flush(fh)
    assert await read_file(fs, ino) == content + b"second;"


@pytest.mark.logs("data cannot be written")
@was_done
async def test_the_background_finds_out_too(
    fs: Filesystem,
    store: SteeredClient,
    ino: Ino,
    content: bytes,
    autojump_clock: MockClock,
    was_done: bool,
) -> None:
    del autojump_clock
    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b"second;")
        lose_answer(store, was_done=was_done)
        await trio.sleep(limits.WRITEBACK_DELAY_S + limits.WRITEBACK_RETRY_MAX_S)
        assert dirty_bytes(fs) == 0
        await fs.write(fh, 0, b"third;")
    assert await read_file(fs, ino) == content + b"second;third;"


async def test_an_append_that_arrives_late_is_not_done_after_it_was_done_again(
    fs: Filesystem, store: SteeredClient, ino: Ino, content: bytes
) -> None:
    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b"second;")
        store.hold_back()
        with refused(errno.EIO):
            await fs.flush(fh)
        await fs.flush(fh)
        assert (await store.deliver()).failed_check is not None
    assert await read_file(fs, ino) == content + b"second;"


async def test_an_append_that_arrives_while_it_is_done_again_is_done_once(
    fs: Filesystem, store: SteeredClient, ino: Ino, content: bytes
) -> None:
    async def deliver() -> None:
        assert (await store.deliver()).failed_check is None

    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b"second;")
        store.hold_back()
        with refused(errno.EIO):
            await fs.flush(fh)
        store.before_commit.append(deliver)
        await fs.flush(fh)
    assert await read_file(fs, ino) == content + b"second;"


@was_done
async def test_changes_that_leave_the_bytes_alone_do_not_matter(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, ino: Ino, content: bytes, was_done: bool
) -> None:
    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b"second;")
        lose_answer(store, was_done=was_done)
        with refused(errno.EIO):
            await fs.flush(fh)
        await peer.setattr(ino, AttributeChanges(mode=0o600))
        await peer.link(ino, ROOT_INO, b"link")
        await fs.flush(fh)
    assert await read_file(fs, ino) == content + b"second;"


@lost
@was_done
async def test_an_append_that_nobody_can_tell_of_any_more_is_reported_and_not_repeated(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, ino: Ino, content: bytes, was_done: bool
) -> None:
    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b"second;")
        lose_answer(store, was_done=was_done)
        with refused(errno.EIO):
            await fs.flush(fh)
        async with opened(peer, ino, APPEND) as theirs:
            await peer.write(theirs, 0, b"theirs;")
        await wait_all_tasks_blocked()
        with refused(errno.EIO):
            await fs.fsync(fh)
        await fs.fsync(fh)  # told once
        await fs.write(fh, 0, b"third;")
    done = b"second;" if was_done else b""
    assert await read_file(fs, ino) == content + done + b"theirs;third;"


@was_done
async def test_a_cancelled_append_is_done_once(
    fs: Filesystem, store: SteeredClient, ino: Ino, content: bytes, was_done: bool
) -> None:
    gate = Gate()
    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b"second;")
        (store.after_commit if was_done else store.before_commit).append(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.fsync, fh)
            await gate.reached.wait()
            nursery.cancel_scope.cancel()
        await fs.fsync(fh)
    assert await read_file(fs, ino) == content + b"second;"


async def test_a_conflict_is_no_doubt(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, ino: Ino, content: bytes
) -> None:
    async def append() -> None:
        async with opened(peer, ino, APPEND) as theirs:
            await peer.write(theirs, 0, b"theirs;")

    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b"second;")
        store.before_commit.append(append)
        fs._caches.meta.clear()
        store.after_get += [_pass, UNREACHED]
        with refused(errno.ETIMEDOUT):
            await fs.flush(fh)
        await fs.flush(fh)
    assert await read_file(fs, ino) == content + b"theirs;second;"


async def _pass() -> None:
    """Let a call pass."""


@was_done
async def test_an_orphan_with_bytes_in_doubt_can_be_closed(
    fs: Filesystem, store: SteeredClient, ino: Ino, was_done: bool
) -> None:
    fh = await fs.open(ino, APPEND)
    await fs.write(fh, 0, b"second;")
    lose_answer(store, was_done=was_done)
    with refused(errno.EIO):
        await fs.flush(fh)
    await fs.unlink(ROOT_INO, b"log")
    await fs.release(fh)
    assert fs.statistics().data[:3] == (0, 0, 0)


# --- bytes at fixed offsets -----------------------------------------------------------------------


async def test_an_old_commit_that_arrives_late_does_not_overwrite_newer_bytes(
    fs: Filesystem, store: SteeredClient
) -> None:
    ino = await make_file(fs, b"file", bytes(CHUNK_BYTES))
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"old")
        store.hold_back()
        with refused(errno.EIO):
            await fs.flush(fh)
        await fs.write(fh, 0, b"new")
        await fs.flush(fh)
        assert (await store.deliver()).failed_check is not None
        await fs.write(fh, 3, b"er")
    assert (await read_file(fs, ino))[:5] == b"newer"


async def test_only_the_first_commit_after_a_doubt_pays_for_it(
    fs: Filesystem, store: SteeredClient
) -> None:
    ino = await make_file(fs, b"file", bytes(CHUNK_BYTES))
    async with opened(fs, ino) as fh:
        for expected_ops in (None, 3, 2):
            await fs.write(fh, 0, b"x")
            if expected_ops is None:
                store.hold_back()
                with refused(errno.EIO):
                    await fs.flush(fh)
            else:
                await fs.flush(fh)
                assert len(store.commits[-1]) == expected_ops


async def test_the_inodes_in_doubt_are_bounded(
    fs: Filesystem, store: SteeredClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DOUBTFUL_INODES_MAX", 2)
    inos = [await make_file(fs, b"%d" % number) for number in range(3)]
    for ino in inos:
        store.before_commit.append(UNKNOWN)
        with refused(errno.EIO):
            await fs.setattr(ino, AttributeChanges(mode=0o600))
    assert list(fs._transactions._doubtful) == inos[1:]
