"""What other clients change: seen after the event, told to the listener, nothing else dropped."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import pyfuse3
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import aspenkv.watches
from aspenfs.filesystem import Filesystem
from aspenfs.keys import ParsedKey
from aspenfs.limits import (
    CHUNK_BYTES,
    KERNEL_ATTR_TIMEOUT_S,
    KERNEL_ENTRY_TIMEOUT_S,
    LATE_COMMIT_S,
    META_CACHE_TTL_S,
    READ_ATTEMPTS_MAX,
    TXN_BACKOFF_FIRST_S,
    TXN_BACKOFF_MAX_S,
    WATCH_CATCH_UP_S,
)
from aspenfs.operations import Operations
from aspenfs.types import ROOT_INO, AttributeChanges, Ino
from aspenkv.contract import WatchEvent
from aspenkv.errors import TooManyError
from aspenkv.service import Service
from aspenkv.watches import PrefixWatch
from tests.core.conftest import Open
from tests.core.steering import (
    ROOT,
    Gate,
    SteeredClient,
    make_file,
    names,
    opened,
    read_file,
    refused,
    turn,
    unlink_unaware,
)

NO_CONTEXT = cast("pyfuse3.RequestContext", SimpleNamespace(uid=0, gid=0, pid=0, umask=0))
"""A caller in another pid namespace."""


@pytest.fixture
async def told(fs: Filesystem) -> AsyncIterator[list[ParsedKey | None]]:
    """What the listener of ``fs`` is told."""
    heard: list[ParsedKey | None] = []
    fs.listen(heard.append)
    yield heard
    fs.listen(None)


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    ino = await make_file(fs, b"file", b"content")
    assert await names(fs) == [b"file"]
    assert await read_file(fs, ino) == b"content"
    return ino


# --- what is seen ---------------------------------------------------------------------------------


async def test_new_attributes(fs: Filesystem, peer: Filesystem, ino: Ino) -> None:
    await peer.setattr(ino, AttributeChanges(mode=0o600, mtime_ns=5))
    await wait_all_tasks_blocked()
    assert await fs.getattr(ino) == await peer.getattr(ino)


async def test_new_times_alone(fs: Filesystem, peer: Filesystem, ino: Ino) -> None:
    await peer.setattr(ino, AttributeChanges(mtime_ns=5))
    await wait_all_tasks_blocked()
    assert (await fs.getattr(ino)).mtime_ns == 5


async def test_new_names(fs: Filesystem, peer: Filesystem, ino: Ino) -> None:
    del ino
    with refused(errno.ENOENT):
        await fs.lookup(ROOT_INO, b"new")
    await peer.mkdir(ROOT_INO, b"new", 0o755, ROOT)
    await wait_all_tasks_blocked()
    assert (await fs.lookup(ROOT_INO, b"new")).nlink == 2
    assert await names(fs) == [b"file", b"new"]
    assert (await fs.getattr(ROOT_INO)).nlink == 3


async def test_names_that_moved_or_went(fs: Filesystem, peer: Filesystem, ino: Ino) -> None:
    await peer.rename(ROOT_INO, b"file", ROOT_INO, b"moved")
    await wait_all_tasks_blocked()
    with refused(errno.ENOENT):
        await fs.lookup(ROOT_INO, b"file")
    assert (await fs.lookup(ROOT_INO, b"moved")).ino == ino
    await unlink_unaware(peer, b"moved")
    await wait_all_tasks_blocked()
    assert await names(fs) == []
    with refused(errno.ESTALE):
        await fs.getattr(ino)


@pytest.mark.parametrize("size", [100, 3 * CHUNK_BYTES])
async def test_new_content(fs: Filesystem, peer: Filesystem, size: int) -> None:
    ino = await make_file(fs, b"file", b"x" * size)
    assert await read_file(fs, ino) == b"x" * size
    async with opened(peer, ino) as fh:
        await peer.write(fh, size // 2, b"NEW")
    await wait_all_tasks_blocked()
    expected = b"x" * (size // 2) + b"NEW" + b"x" * (size - size // 2 - 3)
    assert await read_file(fs, ino) == expected
    await peer.setattr(ino, AttributeChanges(size=size // 2 + 1))
    await peer.setattr(ino, AttributeChanges(size=size))
    await wait_all_tasks_blocked()
    assert await read_file(fs, ino) == expected[: size // 2 + 1].ljust(size, b"\0")
    async with opened(peer, ino, os.O_WRONLY | os.O_TRUNC):
        pass
    await wait_all_tasks_blocked()
    assert await read_file(fs, ino) == b""


async def test_new_xattrs(fs: Filesystem, peer: Filesystem, ino: Ino) -> None:
    with refused(errno.ENODATA):
        await fs.getxattr(ino, b"user.x")
    await peer.setxattr(ino, b"user.x", b"1")
    await wait_all_tasks_blocked()
    assert await fs.getxattr(ino, b"user.x") == b"1"


async def test_a_change_from_a_stale_cache_is_made_on_what_is_there(
    fs: Filesystem, peer: Filesystem, ino: Ino
) -> None:
    await peer.setattr(ino, AttributeChanges(uid=7))  # the event has not been heard yet
    assert (await fs.setattr(ino, AttributeChanges(gid=8))).uid == 7
    assert fs.statistics().transactions.conflicts == 1


# --- what the listener is told, and what stays ----------------------------------------------------


async def test_the_listener_is_told_every_key(
    fs: Filesystem, peer: Filesystem, told: list[ParsedKey | None]
) -> None:
    ino = await make_file(peer, b"file", bytes(CHUNK_BYTES))
    await wait_all_tasks_blocked()
    found = set(told)
    assert {
        ParsedKey("D", ROOT_INO, b"file"),
        ParsedKey("I", ino),
        ParsedKey("I.meta", ino),
        ParsedKey("I.meta", ROOT_INO),
        ParsedKey("C", ino),
    } <= found
    assert None not in found
    told.clear()
    await peer.unlink(ROOT_INO, b"file")
    await wait_all_tasks_blocked()
    assert {ParsedKey("D", ROOT_INO, b"file"), ParsedKey("I", ino)} <= set(told)
    told.clear()
    fs.listen(None)
    await peer.mkdir(ROOT_INO, b"unheard", 0o755, ROOT)
    await wait_all_tasks_blocked()
    assert told == []


async def test_own_changes_are_told_to_nobody_and_drop_nothing(
    fs: Filesystem, store: SteeredClient, told: list[ParsedKey | None]
) -> None:
    ino = await make_file(fs, b"file", b"content")
    await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    await fs.rename(ROOT_INO, b"directory", ROOT_INO, b"renamed")
    await fs.setattr(ino, AttributeChanges(mode=0o600))
    await wait_all_tasks_blocked()
    assert told == []
    gets = store.gets
    assert (await fs.lookup(ROOT_INO, b"file")).mode & 0o777 == 0o600
    assert (await fs.lookup(ROOT_INO, b"renamed")).nlink == 2
    with refused(errno.ENOENT):
        await fs.lookup(ROOT_INO, b"directory")
    assert (await fs.getattr(ROOT_INO)).nlink == 3
    assert await read_file(fs, ino) == b"content"
    assert store.gets == gets


async def test_a_change_elsewhere_drops_nothing_here(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    other = await make_file(peer, b"other", b"x")
    await wait_all_tasks_blocked()
    await fs.lookup(ROOT_INO, b"file")
    gets = store.gets
    await peer.setattr(other, AttributeChanges(mode=0o600))
    await wait_all_tasks_blocked()
    assert (await fs.lookup(ROOT_INO, b"file")).ino == ino
    assert store.gets == gets


async def test_what_is_cached_lasts_while_the_watch_lives(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    gets = store.gets
    await turn(mock_clock, 10 * META_CACHE_TTL_S)
    await fs.getattr(ino)
    assert store.gets == gets


# --- a watch that breaks --------------------------------------------------------------------------


async def test_a_client_that_fell_behind_forgets_everything(
    fs: Filesystem,
    peer: Filesystem,
    store: SteeredClient,
    ino: Ino,
    told: list[ParsedKey | None],
    monkeypatch: pytest.MonkeyPatch,
    mock_clock: MockClock,
) -> None:
    monkeypatch.setattr(aspenkv.watches, "WATCH_BACKLOG_EVENTS_MAX", 2)
    for mode in range(5):  # nobody else runs in between
        await peer.setattr(ino, AttributeChanges(mode=mode))
    await wait_all_tasks_blocked()
    gets = store.gets
    assert (await fs.getattr(ino)).mode & 0o777 == 4
    assert (await fs.lookup(ROOT_INO, b"file")).ino == ino
    assert store.gets > gets
    assert None in told
    told.clear()
    await turn(mock_clock, TXN_BACKOFF_FIRST_S)
    assert told == [None]  # a new watch is open, and what came before it is not known
    await peer.setattr(ino, AttributeChanges(mode=0o777))
    await wait_all_tasks_blocked()
    assert (await fs.getattr(ino)).mode & 0o777 == 0o777


async def test_without_a_watch_what_is_cached_has_its_time_to_live(
    service: Service, open_fs: Open, fs: Filesystem, ino: Ino, mock_clock: MockClock
) -> None:
    store = SteeredClient(service)
    async with open_fs(store) as other:
        service.store._hub.close()  # every watch ends, and none is opened again
        await wait_all_tasks_blocked()
        assert (await other.getattr(ino)).mode & 0o777 == 0o644
        await fs.setattr(ino, AttributeChanges(mode=0o600))
        assert (await other.getattr(ino)).mode & 0o777 == 0o644
        await turn(mock_clock, META_CACHE_TTL_S)
        assert (await other.getattr(ino)).mode & 0o777 == 0o600


async def test_without_a_watch_a_change_is_made_on_what_is_there_all_the_same(
    service: Service, open_fs: Open, fs: Filesystem, ino: Ino, autojump_clock: MockClock
) -> None:
    store = SteeredClient(service)
    async with open_fs(store) as other:
        service.store._hub.close()
        await wait_all_tasks_blocked()
        assert (await other.lookup(ROOT_INO, b"file")).uid == 0
        await fs.setattr(ino, AttributeChanges(uid=7))
        await fs.rename(ROOT_INO, b"file", ROOT_INO, b"moved")
        before_s = autojump_clock.current_time()
        assert (await other.setattr(ino, AttributeChanges(gid=8))).uid == 7
        with refused(errno.ENOENT):
            await other.unlink(ROOT_INO, b"file")
        assert other.statistics().transactions.conflicts == 2
        assert autojump_clock.current_time() - before_s < META_CACHE_TTL_S


@pytest.mark.logs("changes by others cannot be followed.*trying again")
async def test_a_watch_that_cannot_be_opened_again_is_tried_again(
    fs: Filesystem,
    peer: Filesystem,
    ino: Ino,
    monkeypatch: pytest.MonkeyPatch,
    mock_clock: MockClock,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(aspenkv.watches, "WATCH_BACKLOG_EVENTS_MAX", 1)
        patch.setattr(aspenkv.watches, "WATCHES_MAX", 0)
        for mode in range(3):
            await peer.setattr(ino, AttributeChanges(mode=mode))
        for _ in range(5):
            await turn(mock_clock, TXN_BACKOFF_MAX_S)
        assert (await fs.getattr(ino)).mode & 0o777 == 2
    await turn(mock_clock, TXN_BACKOFF_MAX_S)
    await fs.getattr(ino)
    await peer.setattr(ino, AttributeChanges(mode=0o777))
    await wait_all_tasks_blocked()
    assert (await fs.getattr(ino)).mode & 0o777 == 0o777


async def test_a_mount_that_can_follow_nobody_does_not_start(
    service: Service, open_fs: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aspenkv.watches, "WATCHES_MAX", 0)
    with pytest.raises(TooManyError):
        async with open_fs(service.connect()):
            pass
    status = await service.connect().status()
    assert (status.leases, status.watches) == (0, 0)


async def test_an_inode_that_changes_with_every_look_is_seen_all_the_same(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, ino: Ino
) -> None:
    modes = iter(range(100))

    async def change() -> None:
        await peer.setattr(ino, AttributeChanges(mode=next(modes)))
        await wait_all_tasks_blocked()

    await change()
    store.after_get += [change] * READ_ATTEMPTS_MAX
    assert (await fs.getattr(ino)).mode & 0o777 < READ_ATTEMPTS_MAX
    assert store.after_get == []


async def test_an_entry_that_changes_while_it_is_listed_is_listed_as_it_is(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, ino: Ino
) -> None:
    async def change() -> None:
        await peer.setattr(ino, AttributeChanges(mode=0o600))
        await wait_all_tasks_blocked()

    await peer.setattr(ino, AttributeChanges(mode=0o601))
    await wait_all_tasks_blocked()
    store.after_get.append(change)
    fh = await fs.opendir(ROOT_INO)
    (entry,) = await fs.readdir(fh, 0, 10)
    assert entry.attributes.mode & 0o777 == 0o600
    await fs.releasedir(fh)


async def test_writes_to_one_chunk_by_two_clients_keep_every_byte(
    fs: Filesystem, peer: Filesystem
) -> None:
    ino = await make_file(fs, b"chunked", bytes(2 * CHUNK_BYTES))
    await wait_all_tasks_blocked()
    async with opened(fs, ino) as ours, opened(peer, ino) as theirs:
        for at in range(0, 100, 10):
            await fs.write(ours, at, b"o" * 5)
            await peer.write(theirs, at + 5, b"t" * 5)
        await fs.flush(ours)
        await peer.flush(theirs)
        await wait_all_tasks_blocked()
        for client, fh in ((fs, ours), (peer, theirs)):
            assert await client.read(fh, 0, 100) == b"ooooottttt" * 10
    assert fs.statistics().transactions.conflicts == 0
    assert peer.statistics().transactions.conflicts == 0


async def test_a_hole_that_two_clients_fill_is_counted_once(
    fs: Filesystem, store: SteeredClient, peer: Filesystem
) -> None:
    ino = await make_file(fs, b"sparse")
    await fs.setattr(ino, AttributeChanges(size=3 * CHUNK_BYTES))
    await wait_all_tasks_blocked()

    async def fill() -> None:
        async with opened(peer, ino) as fh:
            await peer.write(fh, CHUNK_BYTES + 5, b"theirs")

    async with opened(fs, ino) as fh:
        await fs.write(fh, CHUNK_BYTES, b"ours")
        store.before_commit.append(fill)
        await fs.flush(fh)
    assert (await fs.getattr(ino)).allocated_bytes == CHUNK_BYTES
    assert (await read_file(fs, ino))[CHUNK_BYTES:][:11] == b"ours\0theirs"


# --- a store that is away ------------------------------------------------------------------------

AWAY = pytest.mark.logs("changes by others cannot be followed")


@AWAY
async def test_what_is_cached_answers_for_its_time_to_live_while_the_store_is_away(
    fs: Filesystem,
    store: SteeredClient,
    ino: Ino,
    told: list[ParsedKey | None],
    mock_clock: MockClock,
) -> None:
    await turn(mock_clock, 10 * META_CACHE_TTL_S)  # long cached, and right all the time
    store.leave()
    await turn(mock_clock, META_CACHE_TTL_S / 2)
    assert told == [None]  # the kernel's copies
    assert not fs.hears_of_changes
    gets = store.gets
    assert (await fs.lookup(ROOT_INO, b"file")).ino == ino
    assert await read_file(fs, ino) == b"content"
    assert store.gets == gets
    await turn(mock_clock, META_CACHE_TTL_S / 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.getattr, ino)
        await wait_all_tasks_blocked()
        assert store.gets > gets
        store.come_back()


@AWAY
async def test_a_watch_goes_on_where_it_broke(
    fs: Filesystem,
    peer: Filesystem,
    store: SteeredClient,
    ino: Ino,
    told: list[ParsedKey | None],
    mock_clock: MockClock,
) -> None:
    other = await make_file(fs, b"other", b"x")
    store.leave()
    await wait_all_tasks_blocked()
    await peer.setattr(ino, AttributeChanges(mode=0o600))
    store.come_back()
    told.clear()
    await turn(mock_clock, TXN_BACKOFF_MAX_S)
    assert fs.hears_of_changes
    assert ParsedKey("I", ino) in told
    assert None not in told
    gets = store.gets
    assert (await fs.getattr(other)).size == 1  # it was kept
    assert store.gets == gets
    assert (await fs.getattr(ino)).mode & 0o777 == 0o600
    await turn(mock_clock, 10 * META_CACHE_TTL_S)
    gets = store.gets
    await fs.getattr(other)
    assert store.gets == gets


@AWAY
async def test_a_watch_that_missed_what_the_store_has_forgotten_drops_everything(
    fs: Filesystem,
    peer: Filesystem,
    store: SteeredClient,
    ino: Ino,
    told: list[ParsedKey | None],
    monkeypatch: pytest.MonkeyPatch,
    mock_clock: MockClock,
) -> None:
    monkeypatch.setattr(aspenkv.watches, "HISTORY_EVENTS_MAX", 1)
    store.leave()
    await wait_all_tasks_blocked()
    for mode in (0o600, 0o640):
        await peer.setattr(ino, AttributeChanges(mode=mode))
    store.come_back()
    told.clear()
    for _ in range(3):
        await turn(mock_clock, TXN_BACKOFF_MAX_S)
    assert fs.hears_of_changes
    assert set(told) == {None}
    assert (await fs.getattr(ino)).mode & 0o777 == 0o640


@AWAY
async def test_the_caches_are_live_again_only_when_all_that_was_missed_is_applied(
    fs: Filesystem,
    peer: Filesystem,
    store: SteeredClient,
    ino: Ino,
    mock_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate()

    class LateWatch(PrefixWatch):
        """A watch whose events are a while on their way."""

        async def __anext__(self) -> WatchEvent:
            await gate()
            return await super().__anext__()

    store.leave()
    await wait_all_tasks_blocked()
    await peer.setattr(ino, AttributeChanges(mode=0o600))
    monkeypatch.setattr(aspenkv.watches, "PrefixWatch", LateWatch)
    store.come_back()
    await turn(mock_clock, TXN_BACKOFF_MAX_S)
    await turn(mock_clock, WATCH_CATCH_UP_S)
    assert not fs.hears_of_changes
    await turn(mock_clock, META_CACHE_TTL_S)
    assert (await fs.getattr(ino)).mode & 0o777 == 0o600
    gate.open()
    await turn(mock_clock, WATCH_CATCH_UP_S)
    assert fs.hears_of_changes


@AWAY
async def test_the_kernel_believes_nothing_while_it_is_not_told_of_changes(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    served = Operations(fs)

    async def timeouts() -> tuple[float, float, float]:
        found = await served.lookup(ROOT_INO, b"file", NO_CONTEXT)
        absent = await served.lookup(ROOT_INO, b"absent", NO_CONTEXT)
        return found.entry_timeout, found.attr_timeout, absent.entry_timeout

    assert await timeouts() == (KERNEL_ENTRY_TIMEOUT_S, KERNEL_ATTR_TIMEOUT_S, 0)
    assert (await served.open(ino, os.O_RDONLY, NO_CONTEXT)).keep_cache
    store.leave()
    await wait_all_tasks_blocked()
    assert await timeouts() == (0, 0, 0)
    assert not (await served.open(ino, os.O_RDONLY, NO_CONTEXT)).keep_cache
    store.come_back()
    await turn(mock_clock, TXN_BACKOFF_MAX_S)
    assert await timeouts() == (KERNEL_ENTRY_TIMEOUT_S, KERNEL_ATTR_TIMEOUT_S, 0)


async def test_a_commit_of_our_own_that_is_done_late_is_seen(
    fs: Filesystem,
    store: SteeredClient,
    ino: Ino,
    told: list[ParsedKey | None],
    mock_clock: MockClock,
) -> None:
    store.hold_back()
    with refused(errno.EIO):
        await fs.mkdir(ROOT_INO, b"late", 0o755, ROOT)
    await wait_all_tasks_blocked()
    assert fs.hears_of_changes
    assert await names(fs) == [b"file"]
    await store.deliver()
    await wait_all_tasks_blocked()
    assert await names(fs) == [b"file", b"late"]
    assert ParsedKey("D", ROOT_INO, b"late") in told

    await turn(mock_clock, LATE_COMMIT_S)
    await wait_all_tasks_blocked()
    told.clear()
    await fs.setattr(ino, AttributeChanges(mode=0o600))
    await wait_all_tasks_blocked()
    assert told == []  # our own commits are left out again


async def test_more_doubts_only_make_the_time_longer(
    fs: Filesystem, store: SteeredClient, ino: Ino, mock_clock: MockClock
) -> None:
    for _ in range(3):
        store.hold_back()
        with refused(errno.EIO):
            await fs.setattr(ino, AttributeChanges(mode=0o600))
        await turn(mock_clock, 0.9 * LATE_COMMIT_S)
    await store.deliver()
    await wait_all_tasks_blocked()
    assert (await fs.getattr(ino)).mode & 0o777 == 0o600
