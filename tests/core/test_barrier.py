# ruff: noqa: ARG001  # fixtures that act by being there; usefixtures does not know async ones
"""What was done on another mount is seen by the next open here, however late the feed is."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.types import ROOT_INO, AttributeChanges, CoherenceLevel, Ino
from aspenkv.errors import UnavailableError
from aspenkv.limits import DELEGATION_S
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import (
    ROOT,
    Gate,
    SteeredClient,
    Step,
    calls,
    failing,
    make_file,
    names,
    read_file,
    refused,
    turn,
)


async def content(fs: Filesystem, ino: Ino) -> bytes:
    """Open a file as the kernel does that has walked to it over names it knew, and read it."""
    fh = await fs.open(ino, os.O_RDONLY)
    try:
        return await fs.read(fh, 0, 1 << 20)
    finally:
        await fs.release(fh)


async def replace(fs: Filesystem, name: bytes, new: bytes) -> Ino:
    """Put a new file in the place of one, as who wants no half-written file to be seen."""
    ino = await make_file(fs, b"temporary", new)
    await fs.rename(ROOT_INO, b"temporary", ROOT_INO, name)
    return ino


@pytest.fixture
async def ino(fs: Filesystem, peer: Filesystem) -> Ino:
    """A file that the kernels of both mounts know by its name."""
    ino = await make_file(fs, b"file", b"old")
    await wait_all_tasks_blocked()
    assert (await peer.lookup(ROOT_INO, b"file")).ino == ino
    assert await content(peer, ino) == b"old"
    return ino


@pytest.fixture
async def late(store: SteeredClient, nursery: trio.Nursery) -> AsyncIterator[None]:
    """The feed of ``fs`` comes late: only when somebody waits for it."""
    store.hold_feed()

    async def release() -> None:
        await wait_all_tasks_blocked()
        store.release_feed()
        await wait_all_tasks_blocked()
        store.hold_feed()

    async def asked() -> None:
        store.before_newest.append(asked)
        nursery.start_soon(release)

    store.before_newest.append(asked)
    yield
    store.before_newest.clear()
    store.release_feed()


# --- open -----------------------------------------------------------------------------------------


async def test_what_was_written(fs: Filesystem, peer: Filesystem, ino: Ino, late: None) -> None:
    fh = await peer.open(ino, os.O_WRONLY | os.O_TRUNC)
    await peer.write(fh, 0, b"new")
    await peer.flush(fh)
    assert await content(fs, ino) == b"new"
    await peer.release(fh)


async def test_a_file_that_was_replaced_is_to_be_looked_up_again(
    fs: Filesystem, peer: Filesystem, ino: Ino, late: None
) -> None:
    new = await replace(peer, b"file", b"new")
    with refused(errno.ESTALE):
        await fs.open(ino, os.O_RDONLY)
    assert (await fs.lookup(ROOT_INO, b"file")).ino == new
    assert await content(fs, new) == b"new"


async def test_so_is_one_that_lives_on_under_another_name(
    fs: Filesystem, peer: Filesystem, ino: Ino, late: None
) -> None:
    await peer.rename(ROOT_INO, b"file", ROOT_INO, b"moved")
    with refused(errno.ESTALE):
        await fs.open(ino, os.O_RDONLY)
    assert (await fs.lookup(ROOT_INO, b"moved")).ino == ino
    fh = await fs.open(ino, os.O_RDONLY, is_retry=True)
    assert await fs.read(fh, 0, 9) == b"old"
    await fs.release(fh)


async def test_so_is_one_below_a_directory_that_was_moved(
    fs: Filesystem, peer: Filesystem, late: None
) -> None:
    upper = (await peer.mkdir(ROOT_INO, b"upper", 0o755, ROOT)).ino
    lower = (await peer.mkdir(upper, b"lower", 0o755, ROOT)).ino
    file = await make_file(peer, b"file", b"old", parent=lower)
    for parent, name in ((ROOT_INO, b"upper"), (upper, b"lower"), (lower, b"file")):
        await fs.lookup(parent, name)
    assert await content(fs, file) == b"old"
    await peer.rename(ROOT_INO, b"upper", ROOT_INO, b"moved")
    with refused(errno.ESTALE):
        await fs.open(file, os.O_RDONLY)
    with refused(errno.ESTALE):
        await fs.opendir(lower)


async def test_a_directory_is_listed_as_it_is(
    fs: Filesystem, peer: Filesystem, ino: Ino, late: None
) -> None:
    assert await names(fs) == [b"file"]
    await make_file(peer, b"more")
    assert await names(fs) == [b"file", b"more"]


async def test_a_name_that_the_kernel_was_told_long_ago_is_asked_for_no_more(
    fs: Filesystem, peer: Filesystem, ino: Ino, mock_clock: MockClock
) -> None:
    await peer.rename(ROOT_INO, b"file", ROOT_INO, b"moved")
    with refused(errno.ESTALE):
        await fs.open(ino, os.O_RDONLY)
    await fs.lookup(ROOT_INO, b"moved")
    with refused(errno.ESTALE):  # a request over the old name may still be on its way
        await fs.open(ino, os.O_RDONLY)
    await turn(mock_clock, limits.OUTDATED_NAME_S)
    assert await content(fs, ino) == b"old"
    assert fs.known_names() == [(ROOT_INO, b"moved")]


async def test_a_name_that_this_mount_moved_is_the_kernels_too(
    fs: Filesystem, peer: Filesystem, ino: Ino
) -> None:
    await peer.setattr(ino, AttributeChanges(mode=0o600))
    await make_file(peer, b"other")
    await fs.rename(ROOT_INO, b"file", ROOT_INO, b"moved")
    assert await content(fs, ino) == b"old"
    other = (await fs.lookup(ROOT_INO, b"other")).ino
    await fs.rename(ROOT_INO, b"moved", ROOT_INO, b"other", 2)
    assert await content(fs, ino) == b"old"
    assert await content(fs, other) == b""
    await fs.link(ino, ROOT_INO, b"second")
    await fs.unlink(ROOT_INO, b"other")
    assert await content(fs, ino) == b"old"


# --- what the caches deny -------------------------------------------------------------------------


async def test_a_missing_name_is_asked_for_again(
    fs: Filesystem, peer: Filesystem, ino: Ino, late: None
) -> None:
    with refused(errno.ENOENT):
        await fs.lookup(ROOT_INO, b"soon")
    made = await make_file(peer, b"soon")
    assert (await fs.lookup(ROOT_INO, b"soon")).ino == made


async def test_a_name_that_the_kernel_asks_for_again_is_looked_at(
    fs: Filesystem, peer: Filesystem, ino: Ino, late: None
) -> None:
    """Linux does before it says EEXIST: O_EXCL on a name that it knows (LOOKUP_EXCL)."""
    await peer.unlink(ROOT_INO, b"file")
    with refused(errno.ENOENT):
        await fs.lookup(ROOT_INO, b"file")


Change = Callable[[Filesystem, Ino], Awaitable[object]]

CHANGES: dict[str, Change] = {
    "mkdir": lambda fs, _: fs.mkdir(ROOT_INO, b"name", 0o755, ROOT),
    "link": lambda fs, ino: fs.link(ino, ROOT_INO, b"name"),
    "create": lambda fs, _: make_file(fs, b"name"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_name_that_others_removed_can_be_made(
    fs: Filesystem, peer: Filesystem, ino: Ino, change: Change, late: None
) -> None:
    await make_file(peer, b"name")
    assert b"name" in await names(fs)
    await peer.unlink(ROOT_INO, b"name")
    await change(fs, ino)


async def test_a_name_that_others_made_can_be_moved_and_removed(
    fs: Filesystem, peer: Filesystem, ino: Ino, late: None
) -> None:
    assert await names(fs) == [b"file"]
    await make_file(peer, b"one")
    await fs.rename(ROOT_INO, b"one", ROOT_INO, b"two")
    await peer.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    await fs.rmdir(ROOT_INO, b"directory")
    await make_file(peer, b"three")
    await fs.unlink(ROOT_INO, b"three")
    assert await names(fs) == [b"file", b"two"]


async def test_an_error_that_is_true_costs_one_barrier(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    asked = store.newest_calls
    with refused(errno.EEXIST):
        await make_file(fs, b"file")
    assert store.newest_calls == asked + 1


# --- names and bytes that are replaced while they are read ---------------------------------------


async def replace_directory(fs: Filesystem) -> Ino:
    """Put a new directory in the place of one: nothing of that lingers."""
    made = await fs.mkdir(ROOT_INO, b"temporary", 0o755, ROOT)
    await fs.rename(ROOT_INO, b"temporary", ROOT_INO, b"directory")
    return made.ino


@pytest.fixture
async def replaced(fs: Filesystem, peer: Filesystem, store: SteeredClient) -> AsyncIterator[Step]:
    """Replace a directory, of which ``fs`` is told afterwards."""
    await peer.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    await wait_all_tasks_blocked()
    store.hold_feed()

    async def step() -> None:
        await replace_directory(peer)

    yield step
    store.release_feed()


async def test_a_name_that_is_replaced_while_it_is_looked_up_is_there(
    fs: Filesystem, store: SteeredClient, replaced: Step
) -> None:
    store.after_get.append(replaced)  # the entry was read, the inode not yet
    assert (await fs.lookup(ROOT_INO, b"directory")).nlink == 2


async def test_a_name_that_is_replaced_while_it_is_listed_is_there(
    fs: Filesystem, store: SteeredClient, replaced: Step
) -> None:
    store.after_scan.append(replaced)
    fh = await fs.opendir(ROOT_INO)
    assert [entry.name for entry in await fs.readdir(fh, 0, 10)] == [b"directory"]
    await fs.releasedir(fh)


async def test_a_name_that_is_removed_while_it_is_listed_is_not_there(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, replaced: Step
) -> None:
    async def remove() -> None:
        await peer.rmdir(ROOT_INO, b"directory")

    store.after_scan.append(remove)
    fh = await fs.opendir(ROOT_INO)
    assert await fs.readdir(fh, 0, 10) == []
    await fs.releasedir(fh)


async def test_what_was_cut_while_it_was_read_is_not_zeros(
    fs: Filesystem, peer: Filesystem, store: SteeredClient
) -> None:
    old, new = b"o" * (3 * limits.CHUNK_BYTES), b"n" * limits.CHUNK_BYTES
    ino = await make_file(peer, b"large", old)
    await fs.lookup(ROOT_INO, b"large")
    fh = await fs.open(ino, os.O_RDONLY)
    store.hold_feed()
    writing = await peer.open(ino, os.O_WRONLY | os.O_TRUNC)
    await peer.write(writing, 0, new)
    await peer.release(writing)
    assert await fs.read(fh, 0, len(old)) == new
    assert await fs.read(fh, len(new), 100) == b""
    await fs.release(fh)
    store.release_feed()


# --- what a barrier costs, and what when there is none -------------------------------------------


async def test_those_who_open_at_once_ask_once(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    gate = Gate()
    store.before_newest.append(gate)
    asked = store.newest_calls
    async with trio.open_nursery() as nursery:
        nursery.start_soon(content, fs, ino)
        await gate.reached.wait()
        for _ in range(10):
            nursery.start_soon(content, fs, ino)
        await wait_all_tasks_blocked()
        gate.open()
    assert store.newest_calls == asked + 2  # the first, and all those who came while it asked


async def test_an_open_makes_no_other_call(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    await peer.setattr(ROOT_INO, AttributeChanges(mode=0o711))
    await wait_all_tasks_blocked()
    await fs.getattr(ROOT_INO)
    with calls(store, 0):
        assert await content(fs, ino) == b"old"


@pytest.mark.logs("changes by others cannot be followed.*the server told nothing")
async def test_a_feed_that_does_not_come_is_given_up(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, ino: Ino, autojump_clock: MockClock
) -> None:
    store.hold_feed()
    await peer.setattr(ino, AttributeChanges(mode=0o600))
    before_s = autojump_clock.current_time()
    assert await content(fs, ino) == b"old"
    assert autojump_clock.current_time() - before_s == limits.BARRIER_S
    store.release_feed()
    await wait_all_tasks_blocked()
    assert fs.hears_of_changes


@pytest.mark.logs("changes by others cannot be followed.*broken")
async def test_a_server_that_cannot_say_how_far_it_is(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    store.before_newest.append(failing(UnavailableError("broken")))
    assert await content(fs, ino) == b"old"
    await wait_all_tasks_blocked()
    assert fs.hears_of_changes
    asked = store.newest_calls
    assert await content(fs, ino) == b"old"
    assert store.newest_calls == asked + 1


@pytest.mark.logs("changes by others cannot be followed: the test took the store away")
async def test_a_barrier_ends_with_its_watch(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, ino: Ino, mock_clock: MockClock
) -> None:
    store.hold_feed()
    await peer.setattr(ino, AttributeChanges(mode=0o600))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(content, fs, ino)
        await wait_all_tasks_blocked()
        store.leave()
        store.release_feed()
        await wait_all_tasks_blocked()
        assert not fs.hears_of_changes
        store.come_back()
        await turn(mock_clock, limits.TXN_BACKOFF_MAX_S)
    assert fs.hears_of_changes


# --- alone ----------------------------------------------------------------------------------------


class TestAlone:
    """One mount, to which the store promises that nobody else commits."""

    @pytest.fixture
    def gives_delegations(self) -> bool:
        return True

    async def test_who_is_alone_asks_once_in_a_while(
        self, fs: Filesystem, store: SteeredClient, mock_clock: MockClock
    ) -> None:
        ino = await make_file(fs, b"file", b"content")
        await content(fs, ino)
        asked = store.newest_calls
        for _ in range(5):
            await content(fs, ino)
            with refused(errno.ENOENT):
                await fs.lookup(ROOT_INO, b"missing")
        assert store.newest_calls == asked
        assert 0 < fs.kernel_lifetimes().exact_s < DELEGATION_S
        await turn(mock_clock, DELEGATION_S)
        assert fs.kernel_lifetimes().exact_s == 0
        await content(fs, ino)
        assert store.newest_calls == asked + 1

    async def test_who_comes_second_waits_and_then_nobody_is_alone(
        self, fs: Filesystem, service: Service, open_fs: Open, autojump_clock: MockClock
    ) -> None:
        ino = await make_file(fs, b"file", b"content")
        await content(fs, ino)
        before_s = autojump_clock.current_time()
        async with open_fs(SteeredClient(service)) as peer:
            assert autojump_clock.current_time() - before_s >= DELEGATION_S
            await peer.rename(ROOT_INO, b"file", ROOT_INO, b"moved")
            with refused(errno.ESTALE):
                await fs.open(ino, os.O_RDONLY)
            assert fs.kernel_lifetimes().exact_s == 0


async def test_what_is_written_is_stored_soon_while_others_may_look(
    fs: Filesystem, peer: Filesystem, ino: Ino, mock_clock: MockClock
) -> None:
    fh = await fs.open(ino, os.O_WRONLY | os.O_APPEND)
    await fs.write(fh, 0, b" line")
    await turn(mock_clock, limits.WRITEBACK_SHARED_DELAY_S)
    assert await content(peer, ino) == b"old line"
    await fs.release(fh)


# --- the other levels -----------------------------------------------------------------------------


async def test_strictly_every_look_is_a_barrier(
    service: Service, peer: Filesystem, open_fs: Open, ino: Ino
) -> None:
    store = SteeredClient(service)
    async with open_fs(store, coherence=CoherenceLevel.STRICT) as strict:
        assert strict.kernel_lifetimes() == (0, 0, 0)
        await strict.lookup(ROOT_INO, b"file")
        asked = store.newest_calls
        await peer.setattr(ino, AttributeChanges(mode=0o600))
        assert (await strict.lookup(ROOT_INO, b"file")).mode & 0o777 == 0o600
        await peer.setattr(ino, AttributeChanges(mode=0o644))
        assert (await strict.getattr(ino)).mode & 0o777 == 0o644
        assert store.newest_calls == asked + 2


async def test_by_time_alone_nobody_follows_anything(
    service: Service, peer: Filesystem, open_fs: Open, ino: Ino, mock_clock: MockClock
) -> None:
    store = SteeredClient(service)
    async with open_fs(store, coherence=CoherenceLevel.TTL) as lazy:
        assert lazy.kernel_lifetimes() == (limits.KERNEL_TTL_S,) * 3
        assert not lazy.hears_of_changes
        assert await read_file(lazy, ino) == b"old"
        fh = await peer.open(ino, os.O_WRONLY)
        await peer.write(fh, 0, b"new")
        await peer.release(fh)
        await wait_all_tasks_blocked()
        assert await content(lazy, ino) == b"old"
        await turn(mock_clock, limits.META_CACHE_TTL_S)
        assert await content(lazy, ino) == b"new"
        assert store.newest_calls == 0
