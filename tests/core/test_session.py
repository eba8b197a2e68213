"""A mount's session: its lease, its inode numbers, its counters, and how it ends."""

from __future__ import annotations

import errno
import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.errors import LeaseLostError, errno_of
from aspenfs.filesystem import Filesystem
from aspenfs.limits import ORPHAN_SCAN_S, SESSION_KEEPALIVE_S, SESSION_TTL_S
from aspenfs.scans import records_below
from aspenfs.types import NO_SESSION, ROOT_INO, AttributeChanges, SessionId
from aspenkv.contract import Add
from aspenkv.errors import EngineError
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import (
    ROOT,
    Gate,
    SteeredClient,
    check,
    failing,
    make_file,
    read_file,
    refused,
    turn,
)

BROKEN = failing(EngineError("the disk is gone"))


async def keys_below(fs: Filesystem, prefix: bytes) -> list[bytes]:
    return [record.key async for record in records_below(fs.kv, prefix)]


# --- the lease ------------------------------------------------------------------------------------


async def test_a_session_lives_as_long_as_its_mount(
    fs: Filesystem, service: Service, open_fs: Open, mock_clock: MockClock
) -> None:
    assert len(await keys_below(fs, fs.keys.sessions())) == 1
    async with open_fs(service.connect()):
        for _ in range(5):
            await turn(mock_clock, SESSION_KEEPALIVE_S)
        assert len(await keys_below(fs, fs.keys.sessions())) == 2
    assert len(await keys_below(fs, fs.keys.sessions())) == 1


@pytest.mark.logs("the session could not be renewed.*trying again")
async def test_a_keepalive_that_fails_is_tried_again(
    fs: Filesystem, store: SteeredClient, mock_clock: MockClock
) -> None:
    store.before_keepalive.append(BROKEN)
    for _ in range(4):
        await turn(mock_clock, SESSION_KEEPALIVE_S)
    await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)


@pytest.mark.logs("the session could not be renewed: no answer; trying again")
async def test_a_keepalive_that_hangs_is_tried_again_before_the_lease_lapses(
    fs: Filesystem, store: SteeredClient, autojump_clock: MockClock
) -> None:
    del autojump_clock
    store.before_keepalive += [Gate(), Gate()]  # never opened
    await trio.sleep(SESSION_TTL_S + SESSION_KEEPALIVE_S)
    await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)


async def test_a_session_number_that_is_taken_is_not_used_again(
    fs: Filesystem, service: Service, open_fs: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = await keys_below(fs, fs.keys.sessions())
    taken = int.from_bytes(key[-8:], "big")
    numbers = [taken, taken, 7]
    monkeypatch.setattr("aspenfs.session.secrets.randbits", lambda _bits: numbers.pop(0))
    async with open_fs(service.connect()):
        assert fs.keys.session(SessionId(7)) in await keys_below(fs, fs.keys.sessions())


async def test_a_session_is_on_stable_storage_before_its_mount_answers(
    fs: Filesystem, store: SteeredClient
) -> None:
    del fs
    assert store.syncs == 1


@pytest.mark.logs(
    "the session could not be renewed: no answer; trying again",
    "the session of this mount lapsed: changes are refused; mount again",
    "could not be written",
    "some data could not be written and is lost",
)
async def test_a_mount_whose_session_lapsed_changes_nothing_more(
    fs: Filesystem, service: Service, open_fs: Open, mock_clock: MockClock
) -> None:
    ino = await make_file(fs, b"file", b"content")
    store = SteeredClient(service)
    async with open_fs(store) as other:
        fh = await other.open(ino, os.O_RDWR)
        stuck = Gate()
        store.before_keepalive += [stuck] * 9
        for _ in range(int(SESSION_TTL_S / SESSION_KEEPALIVE_S) + 1):
            await turn(mock_clock, SESSION_KEEPALIVE_S)
        stuck.open()
        await wait_all_tasks_blocked()

        commits = len(store.commits)
        with pytest.raises(LeaseLostError) as caught:
            await other.mkdir(ROOT_INO, b"refused", 0o755, ROOT)
        assert errno_of(caught.value) == errno.EIO
        with refused(errno.EIO):
            await other.setattr(ino, AttributeChanges(mode=0o600))
        await other.write(fh, 0, b"refused")
        with refused(errno.EIO):
            await other.fsync(fh)
        assert len(store.commits) == commits
        assert await other.read(fh, 0, 100) == b"refused"  # what is known can still be read
        assert (await other.getattr(ROOT_INO)).nlink == 2
    assert await read_file(fs, ino) == b"content"


@pytest.mark.logs("the session could not be ended")
async def test_a_session_that_cannot_be_ended_lapses(
    fs: Filesystem, service: Service, open_fs: Open, mock_clock: MockClock
) -> None:
    store = SteeredClient(service)
    async with open_fs(store) as other:
        await make_file(other, b"file", b"12345")
        await wait_all_tasks_blocked()
        store.before_commit.append(BROKEN)
    assert len(await keys_below(fs, fs.keys.sessions())) == 2
    for _ in range(5):
        await turn(mock_clock, ORPHAN_SCAN_S)
    assert len(await keys_below(fs, fs.keys.sessions())) == 1
    # The counters were folded by who found them, each exactly once.
    assert len(await keys_below(fs, fs.keys.usages())) <= 4
    await check(service.connect(), fs)


# --- inode numbers --------------------------------------------------------------------------------


async def test_inode_numbers_are_taken_in_ranges_and_never_twice(
    fs: Filesystem,
    peer: Filesystem,
    store: SteeredClient,
    peer_store: SteeredClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "INO_RANGE_COUNT", 3)
    store.yields = peer_store.yields = True
    found: list[int] = []

    async def make(client: Filesystem, name: bytes) -> None:
        made = await client.mknod(ROOT_INO, name, 0o644, 0, ROOT)
        found.append(made.ino)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(make, fs, b"a%d" % number)
            nursery.start_soon(make, peer, b"b%d" % number)
    assert len(set(found)) == 40
    assert min(found) > ROOT_INO


async def test_a_range_that_cannot_be_taken_is_an_error_and_no_end(
    fs: Filesystem, store: SteeredClient
) -> None:
    store.before_commit.append(BROKEN)
    with refused(errno.EIO):
        await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)


# --- counters -------------------------------------------------------------------------------------


async def test_counters_of_an_unknown_session_are_folded_once_by_all(
    fs: Filesystem, service: Service, open_fs: Open
) -> None:
    await make_file(fs, b"file", b"x" * 100)
    kv = service.connect()
    dead = fs.keys.usage_bytes(NO_SESSION)[:-9] + (77).to_bytes(8, "big")
    await kv.commit([], [Add(dead + b"b", 50), Add(fs.keys.usage_bytes(NO_SESSION), -50)])

    async def join() -> None:
        store = SteeredClient(service)
        store.yields = True
        async with open_fs(store):
            await wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(join)
    assert [key for key in await keys_below(fs, fs.keys.usages()) if key.startswith(dead)] == []
    await check(kv, fs)
