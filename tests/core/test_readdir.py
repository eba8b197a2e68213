"""Listing a directory: each entry once, in order, whatever changes meanwhile."""

from __future__ import annotations

import errno
import os
import random
import stat

import pytest
from trio.testing import wait_all_tasks_blocked

from aspenfs.filesystem import Filesystem
from aspenfs.limits import READDIR_KEPT_NAMES_MAX, READDIR_PAGE_ENTRIES
from aspenfs.types import ROOT_INO, AttributeChanges, DirectoryEntry, FileHandle
from aspenkv.contract import Delete, Put
from aspenkv.service import Service
from tests.core.steering import ROOT, SteeredClient, make_file, names, refused

MANY = 5000


async def fill(fs: Filesystem, count: int) -> list[bytes]:
    """Make files and return their names in the order of a listing."""
    made = [b"%05d" % number for number in range(count)]
    for name in made:
        await fs.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, 0, ROOT)
    return made


async def read_all(fs: Filesystem, fh: FileHandle, limit: int) -> list[DirectoryEntry]:
    found: list[DirectoryEntry] = []
    while entries := await fs.readdir(fh, found[-1].next_offset if found else 0, limit):
        assert len(entries) <= limit
        found += entries
    return found


async def test_a_small_directory(fs: Filesystem) -> None:
    made = await fs.mkdir(ROOT_INO, b"b", 0o750, ROOT)
    await make_file(fs, b"a", b"content")
    await fs.symlink(ROOT_INO, b"\xff", b"target", ROOT)
    fh = await fs.opendir(ROOT_INO)
    entries = await fs.readdir(fh, 0, 100)
    assert [entry.name for entry in entries] == [b"a", b"b", b"\xff"]
    assert [entry.attributes.size for entry in entries] == [7, 0, 6]
    assert entries[1].attributes == await fs.getattr(made.ino)
    assert await fs.readdir(fh, entries[-1].next_offset, 100) == []
    assert await fs.readdir(fh, 0, 0) == []
    await fs.releasedir(fh)
    assert await names(fs, made.ino) == []


async def test_a_large_directory_at_any_page_size(fs: Filesystem) -> None:
    made = await fill(fs, MANY)
    fh = await fs.opendir(ROOT_INO)
    for limit in (7, 100, READDIR_PAGE_ENTRIES, MANY + 1):
        assert [entry.name for entry in await read_all(fs, fh, limit)] == made
    await fs.releasedir(fh)


async def test_one_entry_at_a_time(fs: Filesystem) -> None:
    made = await fill(fs, READDIR_PAGE_ENTRIES + 3)
    assert await names(fs, limit=1) == made


async def test_a_listing_costs_a_scan_and_a_read_a_page(
    fs: Filesystem, store: SteeredClient
) -> None:
    await fill(fs, READDIR_PAGE_ENTRIES + 1)
    fs._caches.clear()
    store.gets = store.scans = 0
    await names(fs, limit=32)
    assert store.scans <= 3
    assert store.gets <= 2 * (READDIR_PAGE_ENTRIES // 32 + 1)


async def test_a_small_directory_is_listed_from_the_cache(
    fs: Filesystem, store: SteeredClient
) -> None:
    made = await fill(fs, 10)
    await names(fs)
    store.gets = store.scans = 0
    assert await names(fs) == made
    assert (store.gets, store.scans) == (0, 0)


async def test_removing_everything_while_listing(fs: Filesystem) -> None:
    await fill(fs, 1000)
    fh = await fs.opendir(ROOT_INO)
    offset = 0
    removed = 0
    while entries := await fs.readdir(fh, offset, 33):
        for entry in entries:
            await fs.unlink(ROOT_INO, entry.name)
        removed += len(entries)
        offset = entries[-1].next_offset
    assert removed == 1000
    await fs.releasedir(fh)
    assert await names(fs) == []


async def test_what_others_change_meanwhile_skips_and_repeats_nothing(
    fs: Filesystem, peer: Filesystem
) -> None:
    made = await fill(fs, 600)
    fh = await fs.opendir(ROOT_INO)
    dice = random.Random(7)
    untouched = set(made)
    found: list[bytes] = []
    offset = 0
    number = 0
    while entries := await fs.readdir(fh, offset, 20):
        found += [entry.name for entry in entries]
        offset = entries[-1].next_offset
        for _ in range(5):
            victim = dice.choice(sorted(untouched))
            untouched.discard(victim)
            await peer.unlink(ROOT_INO, victim)
            number += 1
            await peer.mknod(ROOT_INO, b"%05d.%d" % (dice.randrange(600), number), 0o644, 0, ROOT)
        await wait_all_tasks_blocked()
    assert found == sorted(set(found))
    assert untouched <= set(found)
    await fs.releasedir(fh)


async def test_going_on_from_any_offset_that_was_given_out(fs: Filesystem) -> None:
    made = await fill(fs, READDIR_KEPT_NAMES_MAX + 700)
    fh = await fs.opendir(ROOT_INO)
    entries = await read_all(fs, fh, 200)
    dice = random.Random(3)
    for index in [0, 1, len(made) - 1, *dice.sample(range(len(made)), 40)]:
        after = await fs.readdir(fh, entries[index].next_offset, 3)
        assert [entry.name for entry in after] == made[index + 1 : index + 4]
        assert [entry.next_offset for entry in after] == [
            entry.next_offset for entry in entries[index + 1 : index + 4]
        ]
    await fs.releasedir(fh)


async def test_a_rewind_sees_what_is_new(fs: Filesystem) -> None:
    await fill(fs, 3)
    fh = await fs.opendir(ROOT_INO)
    assert len(await read_all(fs, fh, 2)) == 3
    await fs.mknod(ROOT_INO, b"new", 0o644, 0, ROOT)
    await fs.unlink(ROOT_INO, b"00001")
    found = [entry.name for entry in await read_all(fs, fh, 2)]
    assert found == [b"00000", b"00002", b"new"]
    await fs.releasedir(fh)


async def test_an_offset_that_was_never_given_out(fs: Filesystem) -> None:
    await fill(fs, 3)
    fh = await fs.opendir(ROOT_INO)
    for offset in (-1, 1, 1000):
        with refused(errno.EINVAL):
            await fs.readdir(fh, offset, 10)
    await fs.releasedir(fh)


async def test_entries_are_no_lookups_until_they_are_remembered(fs: Filesystem) -> None:
    made = await fs.mknod(ROOT_INO, b"file", 0o644, 0, ROOT)
    fs.forget(made.ino, 1)
    fh = await fs.opendir(ROOT_INO)
    (entry,) = await fs.readdir(fh, 0, 10)
    assert fs.known_inodes() == []
    fs.remember(fh, entry.attributes.ino, entry.name)
    assert fs.known_inodes() == [made.ino]
    assert fs.known_names() == [(ROOT_INO, b"file")]
    await fs.releasedir(fh)


async def test_attributes_are_those_of_now(fs: Filesystem) -> None:
    fh, made = await fs.create(ROOT_INO, b"file", 0o644, os.O_RDWR, ROOT)
    await fs.write(fh, 0, b"dirty")
    directory = await fs.opendir(ROOT_INO)
    (entry,) = await fs.readdir(directory, 0, 10)
    assert entry.attributes.size == 5
    await fs.setattr(made.ino, AttributeChanges(mode=0o600))
    (entry,) = await fs.readdir(directory, 0, 10)
    assert stat.S_IMODE(entry.attributes.mode) == 0o600
    await fs.releasedir(directory)
    await fs.release(fh)


async def test_an_entry_whose_inode_went_during_the_listing_is_left_out(
    fs: Filesystem, peer: Filesystem
) -> None:
    await fill(fs, 5)
    fh = await fs.opendir(ROOT_INO)
    first = await fs.readdir(fh, 0, 1)
    await peer.unlink(ROOT_INO, b"00002")
    await wait_all_tasks_blocked()
    rest = await fs.readdir(fh, first[-1].next_offset, 10)
    assert [entry.name for entry in rest] == [b"00001", b"00003", b"00004"]
    await fs.releasedir(fh)


@pytest.mark.parametrize("reader", ["readdir", "lookup"])
async def test_a_name_without_an_inode_is_no_name(
    service: Service, fs: Filesystem, reader: str
) -> None:
    ino = await make_file(fs, b"damaged")
    await make_file(fs, b"sound")
    kv = service.connect()
    keys = (fs.keys.inode(ino), fs.keys.times(ino))
    records = await kv.get(keys)
    await kv.commit([], [Delete(key) for key in keys])
    await wait_all_tasks_blocked()
    if reader == "readdir":
        assert await names(fs) == [b"sound"]
    else:
        with refused(errno.ENOENT):
            await fs.lookup(ROOT_INO, b"damaged")
        with refused(errno.ENOENT):
            await fs.unlink(ROOT_INO, b"damaged")
    whole = [Put(key, record.value) for key, record in zip(keys, records, strict=True) if record]
    await kv.commit([], whole)
