"""Files that one mount removes while another has them open: they stay until the last close.

``fs`` and ``peer`` are two mounts of one volume; ``peer`` removes, ``fs`` has it open.
"""

from __future__ import annotations

import errno
import os
import random
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.limits import (
    CHUNK_BYTES,
    HOLD_RETRY_S,
    ORPHAN_LINGER_S,
    ORPHAN_SCAN_S,
)
from aspenfs.metadata import encode_orphan
from aspenfs.scans import records_below
from aspenfs.types import ROOT_INO, AttributeChanges, Ino, SessionId
from aspenkv.contract import Put
from aspenkv.errors import EngineError, WatchGapError
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
    names,
    opened,
    read_file,
    refused,
)

BROKEN = failing(EngineError("the disk is gone"))
INLINE = b"content"
CHUNKED = bytes(range(256)) * (3 * CHUNK_BYTES // 256)

MOMENT_S = 0.01

contents = pytest.mark.parametrize("content", [INLINE, CHUNKED], ids=["inline", "chunks"])


@pytest.fixture
async def ino(fs: Filesystem, peer: Filesystem) -> Ino:
    """A file that both mounts have heard of."""
    ino = await make_file(fs, b"file", INLINE)
    await wait_all_tasks_blocked()
    assert await read_file(peer, ino) == INLINE
    return ino


async def orphans(fs: Filesystem) -> list[bytes]:
    """Return the keys of all orphan records and holds."""
    return [record.key async for record in records_below(fs.kv, fs.keys.orphans())]


def session_of(fs: Filesystem) -> SessionId:
    return fs._orphans._session.id


def has_peers(fs: Filesystem) -> bool:
    return fs._orphans._session.has_peers


async def wait(seconds: float) -> None:
    """Let time pass, and what is due then happen; a moment more, for there may be conflicts."""
    await trio.sleep(seconds + MOMENT_S)
    await wait_all_tasks_blocked()


async def require_nothing_left(fs: Filesystem) -> None:
    """Require that the volume is as empty as a new one."""
    report = await check(fs.kv, fs)
    assert (report.counts.inodes, report.counts.chunks) == (1, 0)
    assert await orphans(fs) == []
    assert (await fs.statfs()).inodes_used == 1


# --- as on a local disk ---------------------------------------------------------------------------


@contents
@pytest.mark.parametrize("how", ["unlink", "rename over"])
async def test_it_is_usable_where_it_is_open(
    fs: Filesystem, peer: Filesystem, autojump_clock: MockClock, content: bytes, how: str
) -> None:
    del autojump_clock
    ino = await make_file(fs, b"file", content)
    await make_file(fs, b"other", b"new")
    async with opened(fs, ino) as fh:
        if how == "unlink":
            await peer.unlink(ROOT_INO, b"file")
            await peer.unlink(ROOT_INO, b"other")
        else:
            await peer.rename(ROOT_INO, b"other", ROOT_INO, b"file")
        await wait_all_tasks_blocked()
        for _ in range(3):
            assert await fs.read(fh, 0, len(content)) == content
            assert (await fs.getattr(ino)).nlink == 0
            await wait(ORPHAN_SCAN_S)
        changed = (content[:1] + b"written" + content[8:])[: len(content) - 1]
        await fs.write(fh, 1, b"written")
        await fs.fsync(fh)
        await fs.setattr(ino, AttributeChanges(size=len(content) - 1), fh)
        await fs.setxattr(ino, b"user.x", b"1")
        await wait(ORPHAN_SCAN_S)
        assert await fs.read(fh, 0, len(content)) == changed
        await check(fs.kv, fs)
    await wait(ORPHAN_LINGER_S)
    if how == "rename over":
        assert await names(fs) == [b"file"]
        await fs.unlink(ROOT_INO, b"file")
        await wait(ORPHAN_LINGER_S)
    await require_nothing_left(fs)


async def test_what_nobody_has_open_is_gone_when_its_time_is_up(
    fs: Filesystem, peer: Filesystem, ino: Ino, autojump_clock: MockClock
) -> None:
    del autojump_clock
    await peer.unlink(ROOT_INO, b"file")
    await wait(0.9 * ORPHAN_LINGER_S)
    assert len(await orphans(fs)) == 1
    await wait(0.1 * ORPHAN_LINGER_S)
    await require_nothing_left(fs)
    with refused(errno.ESTALE):
        await fs.getattr(ino)


async def test_it_can_still_be_opened_by_who_looked_its_name_up_before(
    fs: Filesystem, peer: Filesystem, ino: Ino, autojump_clock: MockClock
) -> None:
    del autojump_clock
    await peer.unlink(ROOT_INO, b"file")
    await wait(0.5 * ORPHAN_LINGER_S)
    async with opened(fs, ino) as fh:
        await wait(ORPHAN_SCAN_S)
        assert await fs.read(fh, 0, 100) == INLINE
        async with opened(fs, ino) as again:
            assert await fs.read(again, 0, 100) == INLINE
        await wait(ORPHAN_SCAN_S)
        assert await fs.read(fh, 0, 100) == INLINE
    await wait(0)
    await require_nothing_left(fs)


async def test_its_name_is_gone_at_once(fs: Filesystem, peer: Filesystem, ino: Ino) -> None:
    await peer.unlink(ROOT_INO, b"file")
    await wait_all_tasks_blocked()
    assert await names(fs) == []
    for call in (fs.lookup, fs.unlink):
        with refused(errno.ENOENT):
            await call(ROOT_INO, b"file")
    with refused(errno.ESTALE):  # Linux walks the path again, and finds no such name
        await fs.link(ino, ROOT_INO, b"again")
    assert (await fs.getattr(ino)).nlink == 0


async def test_a_name_that_is_in_the_cache_and_means_no_file_any_more_is_no_name(
    fs: Filesystem, peer: Filesystem, ino: Ino
) -> None:
    await fs.lookup(ROOT_INO, b"file")
    await peer.unlink(ROOT_INO, b"file")
    fs._caches.invalidate_key(fs.keys.inode(ino))  # as if it had been forgotten for its age
    with refused(errno.ENOENT):  # the event has not been heard yet
        await fs.lookup(ROOT_INO, b"file")
    with refused(errno.ENOENT):
        await fs.unlink(ROOT_INO, b"file")


@pytest.mark.parametrize("call", ["lookup", "rename"])
async def test_a_name_that_is_replaced_whenever_it_was_read_is_there_all_the_time(
    fs: Filesystem,
    peer: Filesystem,
    store: SteeredClient,
    ino: Ino,
    autojump_clock: MockClock,
    call: str,
) -> None:
    del autojump_clock
    await make_file(fs, b"other")
    await wait_all_tasks_blocked()
    fs._caches.clear()

    async def replace() -> None:
        await make_file(peer, b"new")
        await peer.rename(ROOT_INO, b"new", ROOT_INO, b"file")

    if call == "lookup":
        store.after_get += [replace] * 10
        found = (await fs.lookup(ROOT_INO, b"file")).ino
        store.after_get.clear()
        assert await read_file(fs, found) == b""
    else:
        store.after_get += [replace] * 10
        await fs.rename(ROOT_INO, b"other", ROOT_INO, b"file")
        store.after_get.clear()
        assert (await fs.lookup(ROOT_INO, b"file")).size == 0
    await fs.unlink(ROOT_INO, b"file")
    del ino


@pytest.mark.parametrize("first", ["remover", "other"])
async def test_it_stays_until_the_last_of_both_has_closed_it(
    fs: Filesystem, peer: Filesystem, ino: Ino, autojump_clock: MockClock, first: str
) -> None:
    del autojump_clock
    clients = (peer, fs) if first == "remover" else (fs, peer)
    handles = [await client.open(ino, os.O_RDWR) for client in clients]
    await peer.unlink(ROOT_INO, b"file")
    await wait(ORPHAN_SCAN_S)
    await clients[0].release(handles[0])
    await wait(ORPHAN_SCAN_S)
    assert await clients[1].read(handles[1], 0, 100) == INLINE
    await clients[1].release(handles[1])
    await wait(ORPHAN_LINGER_S)
    await require_nothing_left(fs)


async def test_what_the_remover_wrote_is_seen_by_the_others(
    fs: Filesystem, peer: Filesystem, ino: Ino, autojump_clock: MockClock
) -> None:
    del autojump_clock
    async with opened(fs, ino) as fh:
        async with opened(peer, ino) as theirs:
            await peer.unlink(ROOT_INO, b"file")
            await peer.write(theirs, 0, b"written")
        await wait(ORPHAN_LINGER_S)
        assert await fs.read(fh, 0, 100) == b"written"
    await wait(0)
    await require_nothing_left(fs)


async def test_three_mounts(
    fs: Filesystem,
    peer: Filesystem,
    ino: Ino,
    service: Service,
    open_fs: Open,
    autojump_clock: MockClock,
) -> None:
    del autojump_clock
    async with open_fs(service.connect()) as third:
        handles = [await client.open(ino, os.O_RDWR) for client in (fs, third)]
        await peer.unlink(ROOT_INO, b"file")
        await wait(ORPHAN_LINGER_S)
        assert len(await orphans(fs)) == 3
        await third.release(handles[1])
        await wait(ORPHAN_SCAN_S)
        assert await fs.read(handles[0], 0, 100) == INLINE
        await fs.release(handles[0])
        await wait(0)
        await require_nothing_left(fs)


@pytest.mark.parametrize("store_of_second", ["store", "peer_store"])
async def test_two_who_give_up_at_the_same_time_leave_nothing(
    fs: Filesystem,
    peer: Filesystem,
    ino: Ino,
    store: SteeredClient,
    peer_store: SteeredClient,
    autojump_clock: MockClock,
    store_of_second: str,
) -> None:
    del autojump_clock
    fh = await fs.open(ino, os.O_RDWR)
    await peer.unlink(ROOT_INO, b"file")
    await wait_all_tasks_blocked()
    gate = Gate()
    second = store if store_of_second == "store" else peer_store
    second.before_commit.append(gate)
    await fs.release(fh)
    await wait(ORPHAN_LINGER_S)
    assert gate.reached.is_set()
    gate.open()
    await wait(0)
    await require_nothing_left(fs)


# --- races with the hold --------------------------------------------------------------------------


async def test_a_hold_that_comes_too_late_is_refused(
    fs: Filesystem, peer: Filesystem, ino: Ino, store: SteeredClient, autojump_clock: MockClock
) -> None:
    del autojump_clock
    gate = Gate()
    async with opened(fs, ino) as fh:
        store.before_commit.append(gate)
        await peer.unlink(ROOT_INO, b"file")
        await wait(ORPHAN_LINGER_S)
        await require_nothing_left(peer)
        gate.open()
        await wait_all_tasks_blocked()
        with refused(errno.ESTALE):
            await fs.read(fh, 0, 100)
    await require_nothing_left(fs)


async def test_a_hold_that_comes_while_the_file_is_being_removed_keeps_it(
    fs: Filesystem, peer: Filesystem, ino: Ino, peer_store: SteeredClient, autojump_clock: MockClock
) -> None:
    del autojump_clock
    gate = Gate()
    await peer.unlink(ROOT_INO, b"file")
    peer_store.before_commit.append(gate)
    await wait(ORPHAN_LINGER_S)
    assert gate.reached.is_set()
    async with opened(fs, ino) as fh:
        await wait_all_tasks_blocked()
        gate.open()
        await wait(ORPHAN_SCAN_S)
        assert await fs.read(fh, 0, 100) == INLINE
    await wait(0)
    await require_nothing_left(fs)


async def test_a_hold_that_is_gone_when_the_file_is_handed_over(
    fs: Filesystem, peer: Filesystem, ino: Ino, peer_store: SteeredClient, autojump_clock: MockClock
) -> None:
    del autojump_clock
    fh = await fs.open(ino, os.O_RDWR)
    await peer.unlink(ROOT_INO, b"file")
    await wait_all_tasks_blocked()
    gate = Gate()
    passed = Gate()
    passed.open()
    # Its commits: all at once, which fails; this one alone, which fails; handing over.
    peer_store.before_commit += [passed, passed, gate]
    await gate.reached.wait()
    await fs.release(fh)
    await wait_all_tasks_blocked()
    gate.open()
    await wait(0)
    await require_nothing_left(fs)


async def test_a_close_while_the_hold_is_on_its_way(
    fs: Filesystem, peer: Filesystem, ino: Ino, store: SteeredClient, autojump_clock: MockClock
) -> None:
    del autojump_clock
    gate = Gate()
    fh = await fs.open(ino, os.O_RDWR)
    store.before_commit.append(gate)
    await peer.unlink(ROOT_INO, b"file")
    await gate.reached.wait()
    await fs.release(fh)
    gate.open()
    await wait(ORPHAN_LINGER_S)
    await require_nothing_left(fs)


async def test_a_file_opened_again_while_its_hold_is_given_up(
    fs: Filesystem, peer: Filesystem, ino: Ino, store: SteeredClient, autojump_clock: MockClock
) -> None:
    del autojump_clock
    fh = await fs.open(ino, os.O_RDWR)
    await peer.unlink(ROOT_INO, b"file")
    await wait_all_tasks_blocked()
    gate = Gate()
    store.before_commit.append(gate)
    await fs.release(fh)
    await gate.reached.wait()
    async with opened(fs, ino) as again:
        gate.open()
        await wait(ORPHAN_SCAN_S)
        assert await fs.read(again, 0, 100) == INLINE
    await wait(0)
    await require_nothing_left(fs)


@pytest.mark.logs("removed files cannot be kept open: the disk is gone; trying again")
async def test_a_hold_that_fails_is_tried_again(
    fs: Filesystem, peer: Filesystem, ino: Ino, store: SteeredClient, autojump_clock: MockClock
) -> None:
    del autojump_clock
    async with opened(fs, ino) as fh:
        store.before_commit += [BROKEN, BROKEN]
        await peer.unlink(ROOT_INO, b"file")
        for _ in range(2):
            await wait(HOLD_RETRY_S)
        await wait(ORPHAN_SCAN_S)
        assert await fs.read(fh, 0, 100) == INLINE


async def test_a_hold_that_arrives_after_the_close_is_found_and_removed(
    fs: Filesystem,
    peer: Filesystem,
    ino: Ino,
    store: SteeredClient,
    autojump_clock: MockClock,
) -> None:
    del autojump_clock
    async with opened(peer, ino) as theirs:
        async with opened(fs, ino):
            await peer.unlink(ROOT_INO, b"file")
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert len(await orphans(fs)) == 1
        late = Put(fs.keys.hold(ino, session_of(fs)), b"", fs._orphans._session.lease)
        await store.commit([], [late])
        for _ in range(2):
            await wait(ORPHAN_SCAN_S)
        assert len(await orphans(fs)) == 1
        assert await peer.read(theirs, 0, 100) == INLINE
    await wait(ORPHAN_LINGER_S)
    await require_nothing_left(fs)


async def test_a_mount_that_missed_the_removal_holds_it_after_its_next_look(
    fs: Filesystem, peer: Filesystem, ino: Ino, store: SteeredClient, autojump_clock: MockClock
) -> None:
    del autojump_clock
    async with opened(peer, ino), opened(fs, ino) as fh:
        for watch in store._watches:
            watch.fail(WatchGapError("the test lets this mount miss something"))
        await peer.unlink(ROOT_INO, b"file")
        await wait(1.0)
        assert len(await orphans(fs)) == 1
        await peer.mkdir(ROOT_INO, b"news", 0o755, ROOT)
        await wait_all_tasks_blocked()
        assert len(await orphans(fs)) == 2
        assert await fs.read(fh, 0, 100) == INLINE
    await wait(ORPHAN_LINGER_S)
    await fs.rmdir(ROOT_INO, b"news")
    await require_nothing_left(fs)


async def test_a_read_only_mount_holds_nothing(
    fs: Filesystem,
    peer: Filesystem,
    ino: Ino,
    service: Service,
    open_fs: Open,
    autojump_clock: MockClock,
) -> None:
    del autojump_clock
    del peer
    async with (
        open_fs(service.connect(), read_only=True) as reader,
        opened(reader, ino, os.O_RDONLY) as fh,
    ):
        await fs.unlink(ROOT_INO, b"file")
        await wait_all_tasks_blocked()
        assert await reader.read(fh, 0, 100) == INLINE
        await wait(ORPHAN_LINGER_S)
        with refused(errno.ESTALE):
            await reader.read(fh, 0, 100)


# --- mounts that come and go ----------------------------------------------------------------------


async def test_a_mount_knows_whether_it_is_alone(
    fs: Filesystem, service: Service, open_fs: Open, store: SteeredClient
) -> None:
    assert not has_peers(fs)
    async with open_fs(service.connect()) as other:
        await wait_all_tasks_blocked()
        assert has_peers(fs)
        assert has_peers(other)
    await wait_all_tasks_blocked()
    assert not has_peers(fs)
    await make_file(fs, b"file", CHUNKED)
    commits = len(store.commits)
    await fs.unlink(ROOT_INO, b"file")
    assert len(store.commits) == commits + 1
    await require_nothing_left(fs)


async def test_a_session_that_comes_while_the_sessions_are_read_counts(
    fs: Filesystem, store: SteeredClient, service: Service, open_fs: Open
) -> None:
    gate = Gate()
    store.after_scan.append(gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs._orphans._session.live_sessions)
        await gate.reached.wait()
        async with open_fs(service.connect()):
            await wait_all_tasks_blocked()
            gate.open()
            await wait_all_tasks_blocked()
            assert has_peers(fs)


@pytest.mark.parametrize("is_open", [True, False])
async def test_the_remover_ends_before_the_time_is_up(
    fs: Filesystem,
    ino: Ino,
    service: Service,
    open_fs: Open,
    autojump_clock: MockClock,
    is_open: bool,
) -> None:
    del autojump_clock
    async with AsyncExitStack() as stack:
        fh = await stack.enter_async_context(opened(fs, ino)) if is_open else None
        async with open_fs(service.connect()) as other:
            await other.unlink(ROOT_INO, b"file")
        await wait(2 * ORPHAN_SCAN_S)
        if fh is not None:
            assert await fs.read(fh, 0, 100) == INLINE
    await wait(ORPHAN_LINGER_S)
    await require_nothing_left(fs)


async def test_the_remover_ends_last(service: Service, open_fs: Open) -> None:
    async with open_fs(service.connect()) as remover, open_fs(service.connect()) as other:
        ino = await make_file(remover, b"file", CHUNKED)
        fh = await other.open(ino, os.O_RDONLY)
        await remover.unlink(ROOT_INO, b"file")
        await wait_all_tasks_blocked()
        await other.release(fh)
    await require_nothing_left_in(service, remover)


async def require_nothing_left_in(service: Service, fs: Filesystem) -> None:
    """Require the same as require_nothing_left of a volume that is not mounted any more."""
    report = await check(service.connect(), fs)
    assert (report.counts.inodes, report.counts.chunks, report.counts.orphans) == (1, 0, 0)


async def test_a_holder_that_ends_last_removes_what_it_held(
    service: Service, open_fs: Open
) -> None:
    async with open_fs(service.connect()) as holder:
        async with open_fs(service.connect()) as remover:
            ino = await make_file(remover, b"file", CHUNKED)
            fh = await holder.open(ino, os.O_RDONLY)
            await remover.unlink(ROOT_INO, b"file")
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert await holder.read(fh, 0, 10) == CHUNKED[:10]
        await holder.release(fh)
    await require_nothing_left_in(service, holder)


@pytest.mark.logs("the session could not be ended")
async def test_the_last_one_whose_store_fails_leaves_it_to_the_next_mount(
    service: Service, open_fs: Open
) -> None:
    store = SteeredClient(service)
    async with open_fs(store) as remover:
        async with open_fs(service.connect()):
            await make_file(remover, b"file", CHUNKED)
            await remover.unlink(ROOT_INO, b"file")
        await wait_all_tasks_blocked()
        store.before_commit += [BROKEN] * 2
    assert (await check(service.connect(), remover)).counts.orphans == 1
    async with open_fs(service.connect()) as fs:
        await service.connect().revoke(remover._orphans._session.lease)
        await wait_all_tasks_blocked()
    await require_nothing_left_in(service, fs)


@pytest.mark.logs("the session of this mount lapsed")
@pytest.mark.parametrize("dead", ["holder", "remover", "both"])
async def test_sessions_that_lapse(
    fs: Filesystem,
    ino: Ino,
    service: Service,
    open_fs: Open,
    autojump_clock: MockClock,
    dead: str,
) -> None:
    """Ended behind the mount's back, as a lease that lapses ends it with all that hangs on it."""
    del autojump_clock

    async def lapse(client: Filesystem) -> None:
        await service.connect().revoke(client._orphans._session.lease)

    holder_store, remover_store = SteeredClient(service), SteeredClient(service)
    async with open_fs(holder_store) as holder, open_fs(remover_store) as remover:
        fh = await holder.open(ino, os.O_RDONLY)
        await remover.unlink(ROOT_INO, b"file")
        await wait(0.5 * ORPHAN_LINGER_S)
        if dead in ("remover", "both"):
            await lapse(remover)
        if dead in ("holder", "both"):
            await lapse(holder)
        await wait(ORPHAN_SCAN_S)
        await wait(ORPHAN_LINGER_S)
        if dead == "remover":
            assert await holder.read(fh, 0, 100) == INLINE
            await holder.release(fh)
            await wait(0)
        await require_nothing_left(fs)


@contents
async def test_an_orphan_of_a_dead_session_lingers_too_and_is_removed_by_all_at_once(
    fs: Filesystem,
    peer: Filesystem,
    store: SteeredClient,
    peer_store: SteeredClient,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
) -> None:
    """Who has it open may not have heard of it before its remover died."""
    del autojump_clock
    monkeypatch.setattr(limits, "ORPHAN_STEP_CHUNKS", 2)
    monkeypatch.setattr(limits, "UNLINK_AT_ONCE_CHUNKS", 2)
    store.yields = peer_store.yields = True
    ino = await make_file(fs, b"file", content)
    await peer.unlink(ROOT_INO, b"file")
    dead = Put(fs.keys.orphan(ino), encode_orphan(SessionId(77)))
    peer._orphans._lingering.take_due(float("inf"), 10)
    await fs.kv.commit([], [dead])
    for client in (fs, peer):
        client._orphans.collect_soon()
    await wait(0.9 * ORPHAN_LINGER_S)
    assert len(await orphans(fs)) == 1
    await wait(0.1 * ORPHAN_LINGER_S)
    await require_nothing_left(fs)


# --- many, and large ------------------------------------------------------------------------------


@contents
async def test_many_are_removed_together(
    fs: Filesystem,
    peer: Filesystem,
    peer_store: SteeredClient,
    autojump_clock: MockClock,
    content: bytes,
) -> None:
    del autojump_clock
    count = 200
    held = [await make_file(peer, b"%d" % number, content) for number in range(count)][100]
    async with opened(fs, held) as fh:
        for number in range(count):
            await peer.unlink(ROOT_INO, b"%d" % number)
        peer_store.commits.clear()
        await wait(2 * ORPHAN_LINGER_S)
        assert await fs.read(fh, 0, len(content)) == content
        # One batch meets the file that is held, and is removed file by file.
        assert len(peer_store.commits) < limits.ORPHANS_AT_ONCE + count / 10
        assert max(map(len, peer_store.commits)) <= COMMIT_OPS_MAX
        assert (await check(fs.kv, fs)).counts.inodes == 2
    await wait(0)
    await require_nothing_left(fs)


async def test_beyond_the_limit_the_oldest_goes_at_once(
    fs: Filesystem, peer: Filesystem, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    del autojump_clock
    monkeypatch.setattr(limits, "ORPHANS_LINGERING_MAX", 2)
    inos = [await make_file(peer, b"%d" % number) for number in range(3)]
    for number in range(3):
        await peer.unlink(ROOT_INO, b"%d" % number)
    await wait_all_tasks_blocked()
    assert await orphans(fs) == [fs.keys.orphan(ino) for ino in inos[1:]]
    await wait(ORPHAN_LINGER_S)
    await require_nothing_left(fs)


async def test_what_was_forgotten_is_found_again(
    fs: Filesystem, peer: Filesystem, ino: Ino, autojump_clock: MockClock
) -> None:
    del autojump_clock
    await peer.unlink(ROOT_INO, b"file")
    peer._orphans._lingering.take_due(float("inf"), 10)
    await wait(ORPHAN_SCAN_S)
    await wait(ORPHAN_LINGER_S)
    await require_nothing_left(fs)
    del ino


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_large_file(
    fs: Filesystem,
    peer: Filesystem,
    peer_store: SteeredClient,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    is_open: bool,
) -> None:
    del autojump_clock
    monkeypatch.setattr(limits, "ORPHAN_STEP_CHUNKS", 4)
    monkeypatch.setattr(limits, "UNLINK_AT_ONCE_CHUNKS", 4)
    ino = await make_file(peer, b"large", bytes(10 * CHUNK_BYTES))
    await make_file(peer, b"small", INLINE)
    async with AsyncExitStack() as stack:
        fh = await stack.enter_async_context(opened(fs, ino)) if is_open else None
        for name in (b"large", b"small"):
            await peer.unlink(ROOT_INO, name)
        peer_store.commits.clear()
        await wait(ORPHAN_LINGER_S)
        if fh is None:
            assert len(peer_store.commits) == 1 + 3
        else:
            await wait(ORPHAN_SCAN_S)
            assert len(await fs.read(fh, 0, 20 * CHUNK_BYTES)) == 10 * CHUNK_BYTES
    await wait(0)
    await require_nothing_left(fs)


@pytest.mark.logs("orphans could not be removed: the disk is gone; trying again later")
async def test_a_removal_that_fails_is_tried_again(
    fs: Filesystem, peer: Filesystem, ino: Ino, peer_store: SteeredClient, autojump_clock: MockClock
) -> None:
    del autojump_clock
    del ino
    await peer.unlink(ROOT_INO, b"file")
    peer_store.before_commit.append(BROKEN)
    await wait(ORPHAN_LINGER_S)
    assert len(await orphans(fs)) == 1
    await wait(ORPHAN_LINGER_S)
    await require_nothing_left(fs)


@pytest.mark.logs("cannot be removed: damaged record", "cannot be removed: format version")
async def test_damage_does_not_keep_the_others(
    fs: Filesystem, peer: Filesystem, ino: Ino, autojump_clock: MockClock
) -> None:
    del autojump_clock
    others = [await make_file(peer, b"%d" % number) for number in range(3)]
    for name in (b"file", b"0", b"1", b"2"):
        await peer.unlink(ROOT_INO, name)
    damaged = (fs.keys.inode(others[0]), fs.keys.orphan(others[1]))
    before = await fs.kv.get(damaged)
    await fs.kv.commit([], [Put(key, b"damaged") for key in damaged])
    peer._caches.clear()
    await wait(ORPHAN_LINGER_S)
    assert await orphans(fs) == [fs.keys.orphan(each) for each in others[:2]]
    found = [Put(key, record.value) for key, record in zip(damaged, before, strict=True) if record]
    await fs.kv.commit([], found)
    peer._caches.clear()
    await wait(ORPHAN_SCAN_S)
    await wait(ORPHAN_LINGER_S)
    await require_nothing_left(fs)
    del ino


# --- storms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
async def test_whoever_opens_a_name_can_read_it_while_others_replace_it(
    fs: Filesystem,
    peer: Filesystem,
    store: SteeredClient,
    peer_store: SteeredClient,
    autojump_clock: MockClock,
    seed: int,
) -> None:
    """Content never changes under a handle, is never lost, and nothing is left at the end."""
    del autojump_clock
    store.yields = peer_store.yields = True
    dice = random.Random(seed)
    await make_file(fs, b"file", b"0" * 100)
    is_over = False

    async def replace(client: Filesystem, number: int) -> None:
        for round_number in range(20):
            name = b"new%d" % number
            size = dice.choice((100, 5000, 2 * CHUNK_BYTES))
            await make_file(client, name, b"%d" % (round_number % 10) * size)
            await client.rename(ROOT_INO, name, ROOT_INO, b"file")
            await trio.sleep(dice.random() * 2 * ORPHAN_LINGER_S)

    async def read(client: Filesystem) -> None:
        while not is_over:
            found = await client.lookup(ROOT_INO, b"file")
            async with opened(client, found.ino, os.O_RDONLY) as fh:
                first = await client.read(fh, 0, 4 * CHUNK_BYTES)
                assert len(set(first)) == 1
                await trio.sleep(dice.random() * 3 * ORPHAN_LINGER_S)
                assert await client.read(fh, 0, 4 * CHUNK_BYTES) == first
            await trio.sleep(dice.random())

    async with trio.open_nursery() as nursery:
        for client in (fs, peer):
            for _ in range(2):
                nursery.start_soon(read, client)
        async with trio.open_nursery() as writers:
            for number, client in enumerate((fs, peer)):
                writers.start_soon(replace, client, number)
        is_over = True
    await trio.sleep(2 * ORPHAN_LINGER_S)
    assert await orphans(fs) == []
    assert (await check(fs.kv, fs)).counts.inodes == 2
