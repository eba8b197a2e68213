"""What is known of names saves calls of the store: over a network each is a round trip."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.lookup_runs import ALL_NAMES
from aspenfs.types import ROOT_INO, Ino
from aspenkv.errors import OutcomeUnknownError
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import (
    ROOT,
    Gate,
    SteeredClient,
    calls,
    close,
    failing,
    make_file,
    names,
    read_file,
    refused,
)


async def subdirectory(fs: Filesystem, name: bytes = b"d") -> Ino:
    return (await fs.mkdir(ROOT_INO, name, 0o755, ROOT)).ino


async def missing(fs: Filesystem, parent: Ino, name: bytes) -> None:
    with refused(errno.ENOENT):
        await fs.lookup(parent, name)


async def create(fs: Filesystem, parent: Ino, name: bytes) -> Ino:
    """Do what open(O_CREAT), write and close of a small file come to."""
    await missing(fs, parent, name)
    handle, made = await fs.create(parent, name, 0o644, os.O_WRONLY, ROOT)
    await fs.write(handle, 0, b"x" * limits.INLINE_BYTES_MAX)
    await close(fs, handle)
    return made.ino


async def test_a_small_file_in_a_new_directory_takes_two_calls(
    fs: Filesystem, store: SteeredClient
) -> None:
    directory = await subdirectory(fs)
    with calls(store, 2):
        await create(fs, directory, b"one")
    with calls(store, 2):
        await create(fs, directory, b"two")


async def test_names_missing_from_a_listed_directory_take_none(
    fs: Filesystem, peer: Filesystem, store: SteeredClient
) -> None:
    directory = await subdirectory(peer)
    await make_file(peer, b"there", parent=directory)
    await wait_all_tasks_blocked()
    assert await names(fs, directory) == [b"there"]
    with calls(store, 0):
        await missing(fs, directory, b"not there")
        await missing(fs, directory, b"nor this")


async def test_a_directory_made_here_is_known_through_all_that_is_done_in_it(
    fs: Filesystem, store: SteeredClient
) -> None:
    directory = await subdirectory(fs)
    await create(fs, directory, b"a")
    await fs.rename(directory, b"a", directory, b"b", 0)
    await fs.symlink(directory, b"link", b"b", ROOT)
    await fs.mknod(directory, b"pipe", stat.S_IFIFO | 0o600, 0, ROOT)
    await fs.unlink(directory, b"pipe")
    with calls(store, 0):
        await missing(fs, directory, b"a")
        await missing(fs, directory, b"pipe")
        await missing(fs, directory, b"never")
        await fs.lookup(directory, b"b")
        await fs.lookup(directory, b"link")


async def test_what_another_client_makes_ends_the_knowledge(
    fs: Filesystem, peer: Filesystem
) -> None:
    directory = await subdirectory(fs)
    await missing(fs, directory, b"new")
    await wait_all_tasks_blocked()
    await make_file(peer, b"new", parent=directory)
    await wait_all_tasks_blocked()
    assert (await fs.lookup(directory, b"new")).size == 0


async def test_a_listing_that_an_own_change_overtakes_is_no_knowledge(
    fs: Filesystem, peer: Filesystem, store: SteeredClient
) -> None:
    directory = await subdirectory(peer)
    await wait_all_tasks_blocked()
    gate = Gate()
    store.after_scan.append(gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(names, fs, directory)
        await gate.reached.wait()
        await make_file(fs, b"meanwhile", parent=directory)
        gate.open()
    assert (await fs.lookup(directory, b"meanwhile")).size == 0


async def test_a_commit_in_doubt_ends_the_knowledge(fs: Filesystem, store: SteeredClient) -> None:
    directory = await subdirectory(fs)
    store.after_commit.append(failing(OutcomeUnknownError("the answer was lost")))
    with refused(errno.EIO):
        await fs.mkdir(directory, b"perhaps", 0o755, ROOT)
    assert stat.S_ISDIR((await fs.lookup(directory, b"perhaps")).mode)


async def test_a_directory_with_more_names_than_are_kept(
    fs: Filesystem, store: SteeredClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KNOWN_NAME_BYTES", limits.NAMES_CACHE_BYTES_MAX // 3)
    directory = await subdirectory(fs)
    for name in (b"1", b"2", b"3"):
        await create(fs, directory, name)
    with calls(store, 1):
        await missing(fs, directory, b"4")


@pytest.fixture
async def far_store(service: Service) -> SteeredClient:
    return SteeredClient(service)


@pytest.fixture
async def far(fs: Filesystem, far_store: SteeredClient, open_fs: Open) -> AsyncIterator[Filesystem]:
    """The same volume over a network."""
    del fs  # opened first
    async with open_fs(far_store, readahead=True) as far:
        yield far


async def test_lookups_in_order_take_few(
    fs: Filesystem, far: Filesystem, far_store: SteeredClient
) -> None:
    directory = await subdirectory(fs)
    made = {b"%03d" % number: b"content %d" % number for number in range(300)}
    for name, content in made.items():
        await make_file(fs, name, content, parent=directory)
    await wait_all_tasks_blocked()
    before = far_store.gets + far_store.scans
    for name, content in made.items():
        found = await far.lookup(directory, name)
        assert found.size == len(content)
        assert await read_file(far, found.ino) == content
    # One alone, then the first 64, 128, and the rest at once: two calls each.
    assert far_store.gets + far_store.scans - before <= 8


async def test_a_name_that_is_missing_from_a_run_is_missing(
    fs: Filesystem, far: Filesystem
) -> None:
    directory = await subdirectory(fs)
    for name in (b"a", b"c", b"e"):
        await make_file(fs, name, parent=directory)
    await wait_all_tasks_blocked()
    await far.lookup(directory, b"a")
    await missing(far, directory, b"b")
    await far.lookup(directory, b"c")
    await missing(far, directory, b"d")
    await missing(far, directory, b"f")


async def test_what_changes_while_a_run_is_read_is_read_again(
    fs: Filesystem, far: Filesystem, far_store: SteeredClient
) -> None:
    directory = await subdirectory(fs)
    for name in (b"a", b"b", b"c"):
        await make_file(fs, name, parent=directory)
    await wait_all_tasks_blocked()
    await far.lookup(directory, b"a")
    gate = Gate()
    far_store.after_scan.append(gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.lookup, directory, b"b")
        await gate.reached.wait()
        await fs.unlink(directory, b"c")
        await wait_all_tasks_blocked()
        gate.open()
    await missing(far, directory, b"c")


async def test_lookups_in_any_order_take_few(
    fs: Filesystem, far: Filesystem, far_store: SteeredClient
) -> None:
    directory = await subdirectory(fs)
    made = [b"%03d" % number for number in range(200)]
    for name in made:
        await make_file(fs, name, parent=directory)
    await wait_all_tasks_blocked()
    before = far_store.gets + far_store.scans
    for name in reversed(made):
        await far.lookup(directory, name)
    for name in (b"0", b"050-", b"999"):
        await missing(far, directory, name)
    # The beginning and all names are three calls more; each name that was not in it is two.
    assert far_store.gets + far_store.scans - before <= 2 * (200 - limits.LOOKUP_BEGINNING) + 3


async def test_a_name_beyond_what_was_read_is_asked_for_alone(
    fs: Filesystem, far: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = await subdirectory(fs)
    monkeypatch.setattr("aspenfs.lookup_runs.ALL_NAMES", ALL_NAMES._replace(limit=100))
    made = [b"%03d" % number for number in range(120)]
    for name in made:
        await make_file(fs, name, parent=directory)
    await wait_all_tasks_blocked()
    for name in reversed(made[-10:]):
        assert (await far.lookup(directory, name)).nlink == 1
    await missing(far, directory, b"999")


async def test_renaming_in_a_large_directory_takes_few_calls_beside_the_commits(
    fs: Filesystem, far: Filesystem, far_store: SteeredClient
) -> None:
    directory = await subdirectory(fs)
    made = [b"%03d" % number for number in range(200)]
    for name in made:
        await make_file(fs, name, parent=directory)
    await wait_all_tasks_blocked()
    before = far_store.gets + far_store.scans
    for name in made:
        await far.lookup(directory, name)
        await missing(far, directory, b"new-" + name)
        await far.rename(directory, name, directory, b"new-" + name, 0)
    assert far_store.gets + far_store.scans - before <= 20
