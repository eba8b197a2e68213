"""How many calls of the store, so round trips of a network, operations take with warm caches.

Single operations first, then what programs make of them.
"""

from __future__ import annotations

import errno
import os

import pytest
from trio.testing import wait_all_tasks_blocked

from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES, INLINE_BYTES_MAX
from aspenfs.types import ROOT_INO, AttributeChanges, FileHandle, Ino
from tests.core.steering import (
    ROOT,
    SteeredClient,
    calls,
    close,
    make_file,
    names,
    opened,
    read_file,
    refused,
)

INLINE = b"content"
CHUNKED = bytes(3 * CHUNK_BYTES)
TIMES = AttributeChanges(atime_ns=5, mtime_ns=6)

contents = pytest.mark.parametrize("content", [INLINE, CHUNKED], ids=["inline", "chunks"])


@pytest.fixture
async def there(fs: Filesystem) -> Ino:
    """A directory all of whose names are known, when the mount has come to rest."""
    made = await fs.mkdir(ROOT_INO, b"there", 0o755, ROOT)
    await make_file(fs, b"first", parent=made.ino)  # takes a range of inode numbers
    await wait_all_tasks_blocked()
    return made.ino


async def create(fs: Filesystem, parent: Ino, name: bytes) -> tuple[FileHandle, Ino]:
    """Do what open(2) with O_CREAT and O_EXCL comes to."""
    fh, made = await fs.create(parent, name, 0o644, os.O_RDWR | os.O_EXCL, ROOT)
    return fh, made.ino


# --- files ----------------------------------------------------------------------------------------


async def test_a_new_file(fs: Filesystem, store: SteeredClient, there: Ino) -> None:
    with calls(store, 2):
        fh, _ = await create(fs, there, b"file")
        await fs.write(fh, 0, INLINE)
        await close(fs, fh)


@contents
async def test_a_file_cut_and_written(
    fs: Filesystem, store: SteeredClient, there: Ino, content: bytes
) -> None:
    ino = await make_file(fs, b"file", content, there)
    with calls(store, 2):
        fh = await fs.open(ino, os.O_WRONLY | os.O_TRUNC)
        await fs.write(fh, 0, content)
        await close(fs, fh)


@contents
async def test_bytes_in_the_middle(
    fs: Filesystem, store: SteeredClient, there: Ino, content: bytes
) -> None:
    ino = await make_file(fs, b"file", content, there)
    with calls(store, 1):
        fh = await fs.open(ino, os.O_WRONLY)
        await fs.write(fh, 1, b"x")
        await close(fs, fh)


@pytest.mark.parametrize("added", [1, INLINE_BYTES_MAX])
@contents
async def test_an_append(
    fs: Filesystem, store: SteeredClient, there: Ino, content: bytes, added: int
) -> None:
    ino = await make_file(fs, b"file", content, there)
    with calls(store, 1):
        fh = await fs.open(ino, os.O_WRONLY | os.O_APPEND)
        await fs.write(fh, 0, bytes(added))
        await close(fs, fh)


async def test_a_cut(fs: Filesystem, store: SteeredClient, there: Ino) -> None:
    ino = await make_file(fs, b"file", CHUNKED, there)
    with calls(store, 1):
        await fs.setattr(ino, AttributeChanges(size=CHUNK_BYTES + 1))


@pytest.mark.parametrize(("content", "count"), [(INLINE, 0), (CHUNKED, 1)])
async def test_a_read(
    fs: Filesystem, store: SteeredClient, there: Ino, content: bytes, count: int
) -> None:
    ino = await make_file(fs, b"file", content, there)
    with calls(store, count):
        assert await read_file(fs, ino) == content
    with calls(store, 0):
        assert await read_file(fs, ino) == content


async def test_fsync(fs: Filesystem, store: SteeredClient, there: Ino) -> None:
    async with opened(fs, await make_file(fs, b"file", INLINE, there)) as fh:
        await fs.write(fh, 0, b"x")
        with calls(store, 2):
            await fs.fsync(fh)
        with calls(store, 1):
            await fs.fsync(fh)


# --- names ----------------------------------------------------------------------------------------


async def test_a_directory(fs: Filesystem, store: SteeredClient, there: Ino) -> None:
    with calls(store, 1):
        await fs.mkdir(there, b"directory", 0o755, ROOT)
    with calls(store, 1):
        await fs.rmdir(there, b"directory")


async def test_a_directory_that_is_not_empty(
    fs: Filesystem, store: SteeredClient, there: Ino
) -> None:
    made = await fs.mkdir(there, b"directory", 0o755, ROOT)
    await make_file(fs, b"file", parent=made.ino)
    with calls(store, 1), refused(errno.ENOTEMPTY):
        await fs.rmdir(there, b"directory")


async def test_links(fs: Filesystem, store: SteeredClient, there: Ino) -> None:
    ino = await make_file(fs, b"file", INLINE, there)
    with calls(store, 1):
        await fs.symlink(there, b"symlink", b"target", ROOT)
    with calls(store, 1):
        await fs.link(ino, there, b"link")


@contents
async def test_a_removed_name(
    fs: Filesystem, store: SteeredClient, there: Ino, content: bytes
) -> None:
    await make_file(fs, b"file", content, there)
    with calls(store, 1):
        await fs.unlink(there, b"file")


@contents
async def test_a_removed_name_of_an_open_file(
    fs: Filesystem, store: SteeredClient, there: Ino, content: bytes
) -> None:
    fh = await fs.open(await make_file(fs, b"file", content, there), os.O_RDONLY)
    with calls(store, 1):
        await fs.unlink(there, b"file")
    with calls(store, 2):
        await close(fs, fh)


@contents
async def test_a_rename(fs: Filesystem, store: SteeredClient, there: Ino, content: bytes) -> None:
    await make_file(fs, b"file", content, there)
    await make_file(fs, b"old", content, there)
    elsewhere = (await fs.mkdir(there, b"elsewhere", 0o755, ROOT)).ino
    with calls(store, 1):
        await fs.rename(there, b"file", there, b"new")
    with calls(store, 1):
        await fs.rename(there, b"new", there, b"old")
    with calls(store, 1):
        await fs.rename(there, b"old", elsewhere, b"new")


async def test_a_rename_of_a_directory(fs: Filesystem, store: SteeredClient, there: Ino) -> None:
    parent = there
    for name in (b"a", b"b", b"c"):
        parent = (await fs.mkdir(parent, name, 0o755, ROOT)).ino
    for name in (b"moved", b"replaced"):
        await fs.mkdir(there, name, 0o755, ROOT)
    with calls(store, 1):
        await fs.rename(there, b"moved", there, b"replaced")
    with calls(store, 1):
        await fs.rename(there, b"replaced", there, b"moved")
    with calls(store, 2):  # the way up is read anew: see Namespace._guard_move
        await fs.rename(there, b"moved", parent, b"moved")


async def test_a_listing(fs: Filesystem, store: SteeredClient, there: Ino) -> None:
    with calls(store, 1):
        assert await names(fs, there) == [b"first"]
    with calls(store, 0):
        assert await names(fs, there) == [b"first"]
    await make_file(fs, b"second", parent=there)
    with calls(store, 1):
        assert await names(fs, there) == [b"first", b"second"]


# --- attributes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        AttributeChanges(mode=0o600),
        AttributeChanges(uid=1, gid=1),
        TIMES,
        AttributeChanges(size=3),
    ],
)
async def test_attributes_of_a_clean_file(
    fs: Filesystem, store: SteeredClient, there: Ino, changes: AttributeChanges
) -> None:
    ino = await make_file(fs, b"file", INLINE, there)
    with calls(store, 1):
        await fs.setattr(ino, changes)
    with calls(store, 0):
        await fs.getattr(ino)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        (AttributeChanges(mode=0o600), 1),
        (AttributeChanges(uid=1, gid=1), 1),
        (TIMES, 1),
        (AttributeChanges(size=3), 2),
    ],
)
async def test_attributes_of_a_file_that_was_written(
    fs: Filesystem, store: SteeredClient, there: Ino, changes: AttributeChanges, count: int
) -> None:
    fh, ino = await create(fs, there, b"file")
    await fs.write(fh, 0, INLINE)
    with calls(store, count):
        await fs.setattr(ino, changes, fh)
        await fs.getattr(ino)
        await close(fs, fh)


async def test_extended_attributes(fs: Filesystem, store: SteeredClient, there: Ino) -> None:
    ino = await make_file(fs, b"file", INLINE, there)
    with calls(store, 0), refused(errno.ENODATA):
        await fs.getxattr(ino, b"security.capability")  # as a kernel asks before every write
    with calls(store, 1):
        await fs.setxattr(ino, b"user.one", b"1")
    with calls(store, 2):
        await fs.setxattr(ino, b"user.two", b"2")
    with calls(store, 2):
        for _ in range(2):
            assert await fs.getxattr(ino, b"user.one") == b"1"
    with calls(store, 2):
        for _ in range(2):
            with refused(errno.ENODATA):
                await fs.getxattr(ino, b"security.capability")


# --- what programs do -----------------------------------------------------------------------------


async def extract(fs: Filesystem, store: SteeredClient, parent: Ino, owner: int, mode: int) -> int:
    """Do as `tar x` and `cp -p` with one file; return how many calls it took."""
    before = store.calls
    fh, ino = await create(fs, parent, b"extracted")
    await fs.write(fh, 0, INLINE)
    await fs.setattr(ino, TIMES, fh)
    await fs.setattr(ino, AttributeChanges(uid=owner, gid=owner), fh)
    await fs.setattr(ino, AttributeChanges(mode=mode), fh)
    await close(fs, fh)
    taken = store.calls - before
    shown = await fs.getattr(ino)
    assert (shown.atime_ns, shown.mtime_ns) == TIMES[4:6]
    assert (shown.uid, shown.gid, shown.mode & 0o7777) == (owner, owner, mode)
    return taken


async def test_tar_extracts_a_file(fs: Filesystem, store: SteeredClient, there: Ino) -> None:
    assert await extract(fs, store, there, 0, 0o644) == 3


async def test_tar_extracts_a_file_of_another_user(
    fs: Filesystem, store: SteeredClient, there: Ino
) -> None:
    assert await extract(fs, store, there, 1000, 0o6755) == 3


async def test_git_checks_out_a_file(fs: Filesystem, store: SteeredClient, there: Ino) -> None:
    with calls(store, 2):
        fh, ino = await create(fs, there, b"file")
        await fs.write(fh, 0, INLINE)
        await close(fs, fh)
        await fs.getattr(ino)


async def test_an_editor_saves_a_file(fs: Filesystem, store: SteeredClient, there: Ino) -> None:
    await make_file(fs, b"file", INLINE, there)
    with calls(store, 4):
        fh, _ = await create(fs, there, b".file.tmp")
        await fs.write(fh, 0, INLINE)
        await fs.fsync(fh)
        await close(fs, fh)
        await fs.rename(there, b".file.tmp", there, b"file")


async def test_sqlite_commits_a_transaction(
    fs: Filesystem, store: SteeredClient, there: Ino
) -> None:
    """With a rollback journal; the directory is synced once the journal is."""
    async with opened(fs, await make_file(fs, b"db", CHUNKED, there)) as database:
        directory = await fs.opendir(there)
        with calls(store, 9):
            journal, _ = await create(fs, there, b"db-journal")
            await fs.write(journal, 0, bytes(512))
            await fs.write(journal, 512, bytes(4096))
            await fs.fsync(journal)
            await fs.fsyncdir(directory)
            await fs.write(journal, 0, b"how many pages")
            await fs.fsync(journal)
            await fs.write(database, 4096, bytes(4096))
            await fs.fsync(database)
            await close(fs, journal)
            await fs.unlink(there, b"db-journal")
        await fs.releasedir(directory)
