"""Names and inodes: what each call does, and every errno that it documents."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.errors import FilesystemError
from aspenfs.filesystem import Filesystem
from aspenfs.namespace import RENAME_EXCHANGE, RENAME_NOREPLACE, Found
from aspenfs.nodes import Node
from aspenfs.types import ROOT_INO, AttributeChanges, FileHandle, Ino
from aspenkv.errors import EngineError, OutcomeUnknownError
from tests.core.steering import (
    ALICE,
    NOBODYS_INO,
    ROOT,
    Gate,
    SteeredClient,
    failing,
    make_file,
    names,
    opened,
    read_file,
    refused,
)

LONG = b"n" * (limits.NAME_BYTES_MAX + 1)
LONGEST = b"n" * limits.NAME_BYTES_MAX
MAKERS = ["mknod", "mkdir", "symlink", "create", "link"]


async def make(fs: Filesystem, how: str, parent: Ino, name: bytes) -> None:
    """Make a name in one of the ways there are."""
    match how:
        case "mknod":
            await fs.mknod(parent, name, stat.S_IFREG | 0o644, 0, ROOT)
        case "mkdir":
            await fs.mkdir(parent, name, 0o755, ROOT)
        case "symlink":
            await fs.symlink(parent, name, b"target", ROOT)
        case "create":
            fh, _ = await fs.create(parent, name, 0o644, os.O_RDWR | os.O_EXCL, ROOT)
            await fs.release(fh)
        case "link":
            found = await fs.lookup(ROOT_INO, b"linked")
            await fs.link(found.ino, parent, name)


@pytest.fixture(params=MAKERS)
async def how(request: pytest.FixtureRequest, fs: Filesystem) -> str:
    await make_file(fs, b"linked")
    return str(request.param)


# --- what all makers of names have in common ------------------------------------------------------


async def test_a_name_can_be_made_once(fs: Filesystem, how: str) -> None:
    await make(fs, how, ROOT_INO, b"name")
    with refused(errno.EEXIST):
        await make(fs, how, ROOT_INO, b"name")


async def test_any_bytes_up_to_the_limit_make_a_name(fs: Filesystem, how: str) -> None:
    for name in (LONGEST, b"\xff\xfe not UTF-8", b"...", b"a.meta", b"a\n", b" "):
        await make(fs, how, ROOT_INO, name)
        assert (await fs.lookup(ROOT_INO, name)).ino


async def test_a_longer_name_is_refused(fs: Filesystem, how: str) -> None:
    with refused(errno.ENAMETOOLONG):
        await make(fs, how, ROOT_INO, LONG)


async def test_a_name_that_no_file_can_have_is_refused(fs: Filesystem, how: str) -> None:
    for name in (b".", b".."):
        with refused(errno.EEXIST):
            await make(fs, how, ROOT_INO, name)
    for name in (b"", b"a/b", b"a\x00b"):
        with refused(errno.EINVAL):
            await make(fs, how, ROOT_INO, name)


async def test_nothing_can_be_made_where_no_directory_is(fs: Filesystem, how: str) -> None:
    gone = await fs.mkdir(ROOT_INO, b"gone", 0o755, ROOT)
    await fs.rmdir(ROOT_INO, b"gone")
    with refused(errno.ENOENT):
        await make(fs, how, gone.ino, b"name")
    with refused(errno.ENOTDIR):
        await make(fs, how, (await fs.lookup(ROOT_INO, b"linked")).ino, b"name")


async def test_a_new_name_touches_its_directory(fs: Filesystem, how: str) -> None:
    before = await fs.getattr(ROOT_INO)
    await make(fs, how, ROOT_INO, b"name")
    after = await fs.getattr(ROOT_INO)
    assert after.mtime_ns == after.ctime_ns > before.ctime_ns
    assert after.nlink == before.nlink + (how == "mkdir")


async def test_making_a_name_is_one_commit(fs: Filesystem, store: SteeredClient, how: str) -> None:
    await make(fs, how, ROOT_INO, b"first")  # may take inode numbers
    store.commits.clear()
    await make(fs, how, ROOT_INO, b"second")
    assert len(store.commits) == 1


# --- mknod, mkdir, symlink ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
async def test_mknod_makes_every_special_file(fs: Filesystem, kind: int) -> None:
    made = await fs.mknod(ROOT_INO, b"special", kind | 0o4751, 0x0102, ALICE)
    assert made == await fs.lookup(ROOT_INO, b"special")
    is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    assert (made.mode, made.nlink) == (kind | 0o4751, 1)
    assert made.rdev == (0x0102 if is_device else 0)
    assert (made.uid, made.gid) == (ALICE.uid, ALICE.gid)
    assert (made.size, made.allocated_bytes) == (0, 0)
    assert made.atime_ns == made.mtime_ns == made.ctime_ns == made.btime_ns


async def test_mknod_makes_a_regular_file_if_no_type_is_given(fs: Filesystem) -> None:
    made = await fs.mknod(ROOT_INO, b"file", 0o600, 0, ROOT)
    assert made.mode == stat.S_IFREG | 0o600
    assert await read_file(fs, made.ino) == b""


@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFLNK])
async def test_mknod_makes_no_directory_and_no_symlink(fs: Filesystem, kind: int) -> None:
    with refused(errno.EINVAL):
        await fs.mknod(ROOT_INO, b"name", kind | 0o777, 0, ROOT)


async def test_mkdir_counts_links(fs: Filesystem) -> None:
    above = await fs.mkdir(ROOT_INO, b"above", 0o1770, ALICE)
    assert (above.mode, above.nlink, above.uid) == (stat.S_IFDIR | 0o1770, 2, ALICE.uid)
    await fs.mkdir(above.ino, b"below", 0o755, ROOT)
    assert (await fs.getattr(above.ino)).nlink == 3


async def test_a_directory_can_have_only_so_many_subdirectories(
    fs: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "NLINK_MAX", 3)
    await fs.mkdir(ROOT_INO, b"one", 0o755, ROOT)
    with refused(errno.EMLINK):
        await fs.mkdir(ROOT_INO, b"two", 0o755, ROOT)


async def test_a_set_group_id_directory_hands_its_group_down(fs: Filesystem) -> None:
    shared = await fs.mkdir(ROOT_INO, b"shared", 0o2775, ALICE)
    below = await fs.mkdir(shared.ino, b"below", 0o755, ROOT)
    file = await fs.mknod(shared.ino, b"file", 0o644, 0, ROOT)
    link = await fs.symlink(shared.ino, b"link", b"target", ROOT)
    assert (below.gid, stat.S_IMODE(below.mode)) == (ALICE.gid, 0o2755)
    assert (file.gid, stat.S_IMODE(file.mode)) == (ALICE.gid, 0o644)
    assert (link.gid, link.uid) == (ALICE.gid, ROOT.uid)


async def test_symlink_and_readlink(fs: Filesystem) -> None:
    target = b"t" * limits.SYMLINK_BYTES_MAX
    made = await fs.symlink(ROOT_INO, b"link", target, ALICE)
    assert (made.mode, made.size) == (stat.S_IFLNK | 0o777, len(target))
    assert await fs.readlink(made.ino) == target


async def test_a_symlink_needs_a_target_of_a_possible_length(fs: Filesystem) -> None:
    with refused(errno.ENAMETOOLONG):
        await fs.symlink(ROOT_INO, b"link", b"t" * (limits.SYMLINK_BYTES_MAX + 1), ROOT)
    with refused(errno.ENOENT):
        await fs.symlink(ROOT_INO, b"link", b"", ROOT)


async def test_readlink_reads_nothing_else(fs: Filesystem) -> None:
    with refused(errno.EINVAL):
        await fs.readlink(ROOT_INO)
    with refused(errno.ESTALE):
        await fs.readlink(NOBODYS_INO)


# --- lookup, forget, getattr ----------------------------------------------------------------------


async def test_lookup_of_what_is_and_is_not(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"content")
    found = await fs.lookup(ROOT_INO, b"file")
    assert (found.ino, found.size) == (ino, 7)
    assert found == await fs.getattr(ino)
    with refused(errno.ENOENT):
        await fs.lookup(ROOT_INO, b"absent")
    with refused(errno.ENAMETOOLONG):
        await fs.lookup(ROOT_INO, LONG)


async def test_lookup_of_dot_and_dot_dot(fs: Filesystem) -> None:
    above = await fs.mkdir(ROOT_INO, b"above", 0o755, ROOT)
    below = await fs.mkdir(above.ino, b"below", 0o755, ROOT)
    assert (await fs.lookup(below.ino, b".")).ino == below.ino
    assert (await fs.lookup(below.ino, b"..")).ino == above.ino
    assert (await fs.lookup(above.ino, b"..")).ino == ROOT_INO
    assert (await fs.lookup(ROOT_INO, b"..")).ino == ROOT_INO
    await fs.rename(above.ino, b"below", ROOT_INO, b"moved")
    assert (await fs.lookup(below.ino, b"..")).ino == ROOT_INO
    file = await make_file(fs, b"file")
    with refused(errno.ENOTDIR):
        await fs.lookup(file, b"..")
    with refused(errno.ESTALE):
        await fs.lookup(NOBODYS_INO, b".")


async def test_a_stale_inode_has_no_attributes(fs: Filesystem) -> None:
    with refused(errno.ESTALE):
        await fs.getattr(NOBODYS_INO)


async def test_lookups_are_counted_until_forgotten(fs: Filesystem) -> None:
    made = await fs.mknod(ROOT_INO, b"file", 0o644, 0, ROOT)
    await fs.lookup(ROOT_INO, b"file")
    await fs.link(made.ino, ROOT_INO, b"link")
    assert fs.known_inodes() == [made.ino]
    fs.forget(made.ino, 2)
    assert fs.known_inodes() == [made.ino]
    fs.forget(made.ino, 1)
    assert fs.known_inodes() == []
    assert fs.statistics().known_inodes == 0


async def test_a_removed_inode_shows_its_attributes_until_it_is_forgotten(fs: Filesystem) -> None:
    file = await fs.mknod(ROOT_INO, b"file", 0o644, 0, ALICE)
    directory = await fs.mkdir(ROOT_INO, b"directory", 0o755, ALICE)
    await fs.unlink(ROOT_INO, b"file")
    await fs.rmdir(ROOT_INO, b"directory")
    for made in (file, directory):
        shown = await fs.getattr(made.ino)
        assert shown == made._replace(nlink=0)
        fs.forget(made.ino, 1)
        with refused(errno.ESTALE):
            await fs.getattr(made.ino)


# --- link, unlink, rmdir --------------------------------------------------------------------------


async def test_link_gives_one_more_name(fs: Filesystem) -> None:
    ino = await make_file(fs, b"one", b"content")
    before = await fs.getattr(ino)
    directory = await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    linked = await fs.link(ino, directory.ino, b"two")
    assert (linked.ino, linked.nlink) == (ino, 2)
    assert linked.ctime_ns > before.ctime_ns
    assert linked.mtime_ns == before.mtime_ns
    await fs.unlink(ROOT_INO, b"one")
    assert (await fs.lookup(directory.ino, b"two")).nlink == 1
    assert await read_file(fs, ino) == b"content"


async def test_what_cannot_be_linked(fs: Filesystem, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    with refused(errno.EPERM):
        await fs.link(directory.ino, ROOT_INO, b"name")
    with refused(errno.ESTALE):
        await fs.link(NOBODYS_INO, ROOT_INO, b"name")
    ino = await make_file(fs, b"file")
    async with opened(fs, ino):
        await fs.unlink(ROOT_INO, b"file")
        with refused(errno.ESTALE):
            await fs.link(ino, ROOT_INO, b"name")
    monkeypatch.setattr(limits, "NLINK_MAX", 1)
    with refused(errno.EMLINK):
        await fs.link(await make_file(fs, b"other"), ROOT_INO, b"name")


async def test_a_name_that_exists_is_seen_before_a_directory_that_cannot_be_linked(
    fs: Filesystem,
) -> None:
    directory = await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    with refused(errno.EEXIST):
        await fs.link(directory.ino, ROOT_INO, b"directory")


async def test_unlink_touches_what_it_leaves(fs: Filesystem) -> None:
    ino = await make_file(fs, b"one", b"content")
    linked = await fs.link(ino, ROOT_INO, b"two")
    root = await fs.getattr(ROOT_INO)
    await fs.unlink(ROOT_INO, b"two")
    left = await fs.getattr(ino)
    assert (left.nlink, left.mtime_ns) == (1, linked.mtime_ns)
    assert left.ctime_ns > linked.ctime_ns
    assert (await fs.getattr(ROOT_INO)).mtime_ns > root.mtime_ns
    assert await names(fs) == [b"one"]


async def test_what_unlink_refuses(fs: Filesystem) -> None:
    await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    with refused(errno.EISDIR):
        await fs.unlink(ROOT_INO, b"directory")
    with refused(errno.ENOENT):
        await fs.unlink(ROOT_INO, b"absent")
    with refused(errno.ENAMETOOLONG):
        await fs.unlink(ROOT_INO, LONG)


async def test_rmdir_removes_an_empty_directory(fs: Filesystem) -> None:
    made = await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    await fs.rmdir(ROOT_INO, b"directory")
    assert (await fs.getattr(ROOT_INO)).nlink == 2
    assert await names(fs) == []
    assert await names(fs, made.ino) == []  # still open in a shell, for example


async def test_what_rmdir_refuses(fs: Filesystem) -> None:
    made = await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    await make_file(fs, b"file", parent=made.ino)
    with refused(errno.ENOTEMPTY):
        await fs.rmdir(ROOT_INO, b"directory")
    with refused(errno.ENOTDIR):
        await fs.rmdir(made.ino, b"file")
    with refused(errno.ENOENT):
        await fs.rmdir(ROOT_INO, b"absent")
    with refused(errno.EINVAL):
        await fs.rmdir(made.ino, b".")
    with refused(errno.ENOTEMPTY):
        await fs.rmdir(made.ino, b"..")


# --- rename ---------------------------------------------------------------------------------------


async def test_rename_moves_a_file(fs: Filesystem, store: SteeredClient) -> None:
    ino = await make_file(fs, b"old", b"content")
    directory = await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    before = await fs.getattr(ino)
    store.commits.clear()
    await fs.rename(ROOT_INO, b"old", directory.ino, b"new")
    assert len(store.commits) == 1
    assert await names(fs) == [b"directory"]
    moved = await fs.lookup(directory.ino, b"new")
    assert (moved.ino, moved.mtime_ns) == (ino, before.mtime_ns)
    assert moved.ctime_ns > before.ctime_ns
    root, above = await fs.getattr(ROOT_INO), await fs.getattr(directory.ino)
    assert root.mtime_ns == root.ctime_ns == above.mtime_ns == above.ctime_ns > before.ctime_ns


async def test_rename_moves_a_directory_and_its_links(fs: Filesystem) -> None:
    above = await fs.mkdir(ROOT_INO, b"above", 0o755, ROOT)
    moved = await fs.mkdir(ROOT_INO, b"moved", 0o755, ROOT)
    await make_file(fs, b"file", parent=moved.ino)
    await fs.rename(ROOT_INO, b"moved", above.ino, b"below")
    assert (await fs.getattr(ROOT_INO)).nlink == 3
    assert (await fs.getattr(above.ino)).nlink == 3
    assert (await fs.lookup(moved.ino, b"..")).ino == above.ino
    assert await names(fs, moved.ino) == [b"file"]


async def test_rename_within_a_directory(fs: Filesystem) -> None:
    made = await fs.mkdir(ROOT_INO, b"old", 0o755, ROOT)
    await fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    assert (await fs.lookup(ROOT_INO, b"new")).ino == made.ino
    assert (await fs.getattr(ROOT_INO)).nlink == 3


async def test_rename_replaces_a_file(fs: Filesystem) -> None:
    old, new = await make_file(fs, b"old", b"old"), await make_file(fs, b"new", b"new")
    await fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    assert await names(fs) == [b"new"]
    assert (await fs.lookup(ROOT_INO, b"new")).ino == old
    fs.forget(new, 1)
    with refused(errno.ESTALE):
        await fs.getattr(new)


async def test_rename_replaces_one_of_two_names(fs: Filesystem) -> None:
    old, new = await make_file(fs, b"old", b"old"), await make_file(fs, b"new", b"new")
    await fs.link(new, ROOT_INO, b"other")
    await fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    assert (await fs.getattr(new)).nlink == 1
    assert (await fs.getattr(old)).nlink == 1
    assert await read_file(fs, new) == b"new"


@pytest.mark.parametrize("across", [False, True])
async def test_rename_replaces_an_empty_directory(fs: Filesystem, across: bool) -> None:
    above = await fs.mkdir(ROOT_INO, b"above", 0o755, ROOT)
    parent = above.ino if across else ROOT_INO
    old = await fs.mkdir(ROOT_INO, b"old", 0o755, ROOT)
    await fs.mkdir(parent, b"new", 0o755, ROOT)
    await fs.rename(ROOT_INO, b"old", parent, b"new")
    assert (await fs.lookup(parent, b"new")).ino == old.ino
    assert (await fs.getattr(ROOT_INO)).nlink == (3 if across else 4)
    assert (await fs.getattr(above.ino)).nlink == (3 if across else 2)


async def test_renaming_one_name_of_an_inode_to_another_does_nothing(
    fs: Filesystem, store: SteeredClient
) -> None:
    ino = await make_file(fs, b"one")
    await fs.link(ino, ROOT_INO, b"two")
    store.commits.clear()
    await fs.rename(ROOT_INO, b"one", ROOT_INO, b"two")
    assert (store.commits, await names(fs)) == ([], [b"one", b"two"])
    with refused(errno.EEXIST):
        await fs.rename(ROOT_INO, b"one", ROOT_INO, b"two", RENAME_NOREPLACE)


async def test_what_rename_refuses(fs: Filesystem) -> None:
    await make_file(fs, b"file")
    full = await fs.mkdir(ROOT_INO, b"full", 0o755, ROOT)
    await make_file(fs, b"inside", parent=full.ino)
    await fs.mkdir(ROOT_INO, b"empty", 0o755, ROOT)
    for name, new_name, expected in (
        (b"absent", b"new", errno.ENOENT),
        (b"file", LONG, errno.ENAMETOOLONG),
        (LONG, b"new", errno.ENAMETOOLONG),
        (b"file", b"", errno.EINVAL),
        (b"file", b"a/b", errno.EINVAL),
        (b"file", b"empty", errno.EISDIR),
        (b"empty", b"file", errno.ENOTDIR),
        (b"empty", b"full", errno.ENOTEMPTY),
    ):
        with refused(expected):
            await fs.rename(ROOT_INO, name, ROOT_INO, new_name)
    with refused(errno.ENOENT):
        await fs.rename(ROOT_INO, b"file", NOBODYS_INO, b"new")
    with refused(errno.ENOTDIR):
        await fs.rename(ROOT_INO, b"file", (await fs.lookup(ROOT_INO, b"file")).ino, b"new")
    for flags in (RENAME_NOREPLACE | RENAME_EXCHANGE, 4, 8):
        with refused(errno.EINVAL):
            await fs.rename(ROOT_INO, b"file", ROOT_INO, b"new", flags)
    assert await names(fs) == [b"empty", b"file", b"full"]


async def test_noreplace_replaces_nothing(fs: Filesystem) -> None:
    old = await make_file(fs, b"old")
    await make_file(fs, b"new")
    with refused(errno.EEXIST):
        await fs.rename(ROOT_INO, b"old", ROOT_INO, b"new", RENAME_NOREPLACE)
    await fs.rename(ROOT_INO, b"old", ROOT_INO, b"free", RENAME_NOREPLACE)
    assert (await fs.lookup(ROOT_INO, b"free")).ino == old


async def chain(fs: Filesystem) -> list[Ino]:
    """Make the directories a, a/b and a/b/c, and moved beside a."""
    inos = [ROOT_INO]
    for name in (b"a", b"b", b"c"):
        inos.append((await fs.mkdir(inos[-1], name, 0o755, ROOT)).ino)
    moved = await fs.mkdir(ROOT_INO, b"moved", 0o755, ROOT)
    await wait_all_tasks_blocked()
    return [*inos[1:], moved.ino]


@pytest.mark.parametrize("known", [True, False])
async def test_a_directory_moves_whether_or_not_the_way_up_is_known(
    fs: Filesystem, known: bool
) -> None:
    a, b, c, moved = await chain(fs)
    if not known:
        fs._caches.meta.clear()
    await fs.rename(ROOT_INO, b"moved", c, b"moved")
    assert (await fs.lookup(c, b"moved")).ino == moved
    with refused(errno.EINVAL):
        await fs.rename(a, b"b", moved, b"b")
    assert (await fs.lookup(a, b"b")).ino == b


async def test_what_is_known_of_the_way_up_is_not_relied_on(
    fs: Filesystem, peer: Filesystem, store: SteeredClient
) -> None:
    a, _, c, moved = await chain(fs)
    gate = Gate()
    store.before_get.append(gate)

    async def move_below_itself() -> None:
        with refused(errno.EINVAL):
            await fs.rename(ROOT_INO, b"moved", c, b"moved")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move_below_itself)
        await gate.reached.wait()
        await peer.rename(a, b"b", moved, b"b")
        gate.open()


@pytest.mark.parametrize("flags", [0, RENAME_EXCHANGE])
async def test_a_directory_cannot_be_moved_below_itself(fs: Filesystem, flags: int) -> None:
    one = await fs.mkdir(ROOT_INO, b"one", 0o755, ROOT)
    two = await fs.mkdir(one.ino, b"two", 0o755, ROOT)
    await fs.mkdir(two.ino, b"three", 0o755, ROOT)
    for parent in (one.ino, two.ino):
        with refused(errno.EINVAL):
            await fs.rename(
                ROOT_INO, b"one", parent, b"three" if parent == two.ino else b"two", flags
            )
    if flags:
        with refused(errno.EINVAL):
            await fs.rename(two.ino, b"three", ROOT_INO, b"one", flags)


async def test_a_directory_can_be_moved_to_a_directory_that_is_gone_no_more(
    fs: Filesystem,
) -> None:
    gone = await fs.mkdir(ROOT_INO, b"gone", 0o755, ROOT)
    await fs.mkdir(ROOT_INO, b"moved", 0o755, ROOT)
    await fs.rmdir(ROOT_INO, b"gone")
    with refused(errno.ENOENT):
        await fs.rename(ROOT_INO, b"moved", gone.ino, b"moved")


async def test_exchange_swaps_a_file_and_a_directory(fs: Filesystem) -> None:
    above = await fs.mkdir(ROOT_INO, b"above", 0o755, ROOT)
    below = await fs.mkdir(above.ino, b"below", 0o755, ROOT)
    ino = await make_file(fs, b"file")
    before = await fs.getattr(ino)
    await fs.rename(ROOT_INO, b"file", above.ino, b"below", RENAME_EXCHANGE)
    assert (await fs.lookup(ROOT_INO, b"file")).ino == below.ino
    assert (await fs.lookup(above.ino, b"below")).ino == ino
    assert (await fs.lookup(below.ino, b"..")).ino == ROOT_INO
    assert (await fs.getattr(ROOT_INO)).nlink == 4
    assert (await fs.getattr(above.ino)).nlink == 2
    assert (await fs.getattr(ino)).ctime_ns > before.ctime_ns
    fh = await fs.opendir(ROOT_INO)
    kinds = {e.name: stat.S_IFMT(e.attributes.mode) for e in await fs.readdir(fh, 0, 10)}
    assert kinds == {b"above": stat.S_IFDIR, b"file": stat.S_IFDIR}
    await fs.releasedir(fh)


async def test_exchange_swaps_two_directories_of_one_parent(fs: Filesystem) -> None:
    one = await fs.mkdir(ROOT_INO, b"one", 0o755, ROOT)
    two = await fs.mkdir(ROOT_INO, b"two", 0o755, ROOT)
    await fs.rename(ROOT_INO, b"one", ROOT_INO, b"two", RENAME_EXCHANGE)
    assert (await fs.lookup(ROOT_INO, b"one")).ino == two.ino
    assert (await fs.lookup(ROOT_INO, b"two")).ino == one.ino


async def test_exchange_swaps_two_directories_of_two_parents(fs: Filesystem) -> None:
    left = await fs.mkdir(ROOT_INO, b"left", 0o755, ROOT)
    right = await fs.mkdir(ROOT_INO, b"right", 0o755, ROOT)
    one = await fs.mkdir(left.ino, b"one", 0o755, ROOT)
    two = await fs.mkdir(right.ino, b"two", 0o755, ROOT)
    await fs.rename(left.ino, b"one", right.ino, b"two", RENAME_EXCHANGE)
    assert (await fs.lookup(one.ino, b"..")).ino == right.ino
    assert (await fs.lookup(two.ino, b"..")).ino == left.ino


async def test_exchange_needs_both_names(fs: Filesystem, store: SteeredClient) -> None:
    ino = await make_file(fs, b"one")
    with refused(errno.ENOENT):
        await fs.rename(ROOT_INO, b"one", ROOT_INO, b"absent", RENAME_EXCHANGE)
    await fs.link(ino, ROOT_INO, b"two")
    store.commits.clear()
    await fs.rename(ROOT_INO, b"one", ROOT_INO, b"two", RENAME_EXCHANGE)
    assert store.commits == []


# --- create and open ------------------------------------------------------------------------------


async def test_create_opens_what_it_made(fs: Filesystem) -> None:
    fh, made = await fs.create(ROOT_INO, b"file", 0o4640, os.O_RDWR | os.O_EXCL, ALICE)
    assert made.mode == stat.S_IFREG | 0o4640
    assert (made.uid, made.gid, made.nlink) == (ALICE.uid, ALICE.gid, 1)
    assert await fs.write(fh, 0, b"content") == 7
    await fs.release(fh)
    assert await read_file(fs, made.ino) == b"content"


async def test_create_opens_what_has_the_name(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"content")
    fs.forget(ino, 1)
    fh, found = await fs.create(ROOT_INO, b"file", 0o600, os.O_RDWR, ALICE)
    assert (found.ino, found.size, stat.S_IMODE(found.mode)) == (ino, 7, 0o644)
    assert fs.known_inodes() == [ino]
    await fs.release(fh)
    with refused(errno.EEXIST):
        await fs.create(ROOT_INO, b"file", 0o600, os.O_RDWR | os.O_EXCL, ALICE)


async def test_create_can_truncate_what_has_the_name(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"content")
    fh, found = await fs.create(ROOT_INO, b"file", 0o600, os.O_WRONLY | os.O_TRUNC, ROOT)
    assert (found.ino, found.size) == (ino, 0)
    await fs.release(fh)


async def test_create_opens_no_directory_and_no_symlink(fs: Filesystem) -> None:
    await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    await fs.symlink(ROOT_INO, b"link", b"target", ROOT)
    with refused(errno.EISDIR):
        await fs.create(ROOT_INO, b"directory", 0o600, os.O_RDWR, ROOT)
    with refused(errno.ELOOP):
        await fs.create(ROOT_INO, b"link", 0o600, os.O_RDWR, ROOT)
    assert fs.statistics().handles == 0


async def test_create_gives_up_on_a_name_that_comes_and_goes(
    fs: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def exists(*_: object, **__: object) -> None:
        raise FilesystemError(errno.EEXIST)

    monkeypatch.setattr(fs._namespace, "make", exists)
    with refused(errno.EBUSY):
        await fs.create(ROOT_INO, b"absent", 0o600, os.O_RDWR, ROOT)


async def test_open_of_what_is_no_file(fs: Filesystem) -> None:
    link = await fs.symlink(ROOT_INO, b"link", b"target", ROOT)
    with refused(errno.EISDIR):
        await fs.open(ROOT_INO, os.O_RDONLY)
    with refused(errno.ELOOP):
        await fs.open(link.ino, os.O_RDONLY)
    with refused(errno.ESTALE):
        await fs.open(NOBODYS_INO, os.O_RDONLY)


async def test_only_directories_are_opened_as_directories(fs: Filesystem) -> None:
    with refused(errno.ENOTDIR):
        await fs.opendir(await make_file(fs, b"file"))
    with refused(errno.ESTALE):
        await fs.opendir(NOBODYS_INO)


async def test_setattr_of_a_new_inode_does_not_need_a_handle(fs: Filesystem) -> None:
    made = await fs.mknod(ROOT_INO, b"file", 0o644, 0, ROOT)
    assert (await fs.setattr(made.ino, AttributeChanges(uid=7))).uid == 7


async def test_create_goes_on_when_what_had_the_name_is_removed_meanwhile(
    fs: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fs._namespace.make
    steps = iter(("exists", "is gone", "exists", "is stale", "exists", "is stale too", "made"))

    async def make_(*args: Any, **options: Any) -> Found:
        step = next(steps)
        if step == "exists":
            raise FilesystemError(errno.EEXIST)
        return await made(*args, **options)

    async def lookup(parent: Ino, name: bytes) -> Found | None:
        del parent, name
        return None if next(steps) == "is gone" else Found(ROOT_INO, await root())

    async def root() -> Node:
        return await fs._inodes.require(ROOT_INO)

    async def open_(*_: object, **__: object) -> FileHandle:
        raise FilesystemError(errno.ESTALE)

    monkeypatch.setattr(fs._namespace, "make", make_)
    monkeypatch.setattr(fs._namespace, "lookup", lookup)
    monkeypatch.setattr(fs, "open", open_)
    fh, found = await fs.create(ROOT_INO, b"file", 0o644, os.O_RDWR, ROOT)
    assert found.size == 0
    await fs.release(fh)


async def test_create_leaves_no_handle_behind_when_it_fails(
    fs: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = await make_file(fs, b"file")
    fs.forget(ino, 1)

    async def fail(_: Ino) -> NoReturn:
        raise EngineError("the disk is gone")

    monkeypatch.setattr(fs, "getattr", fail)
    with refused(errno.EIO):
        await fs.create(ROOT_INO, b"file", 0o644, os.O_RDWR, ROOT)
    assert (fs.statistics().handles, fs.known_inodes()) == (0, [])


@pytest.mark.parametrize("call", ["mkdir", "unlink", "rename", "chmod", "cut", "setxattr"])
async def test_a_change_whose_answer_was_lost_is_seen_if_it_was_made(
    fs: Filesystem, store: SteeredClient, call: str
) -> None:
    ino = await make_file(fs, b"file", bytes(2 * limits.CHUNK_BYTES))
    assert await names(fs) == [b"file"]
    assert len(await read_file(fs, ino)) == 2 * limits.CHUNK_BYTES
    store.after_commit.append(failing(OutcomeUnknownError("the answer was lost")))
    with refused(errno.EIO):
        match call:
            case "mkdir":
                await fs.mkdir(ROOT_INO, b"new", 0o755, ROOT)
            case "unlink":
                await fs.unlink(ROOT_INO, b"file")
            case "rename":
                await fs.rename(ROOT_INO, b"file", ROOT_INO, b"new")
            case "chmod":
                await fs.setattr(ino, AttributeChanges(mode=0o600))
            case "cut":
                await fs.setattr(ino, AttributeChanges(size=1))
            case "setxattr":
                await fs.setxattr(ino, b"user.x", b"1")
    expected = {"mkdir": [b"file", b"new"], "unlink": [], "rename": [b"new"]}
    assert await names(fs) == expected.get(call, [b"file"])
    if call == "unlink":
        with refused(errno.ENOENT):
            await fs.lookup(ROOT_INO, b"file")
        fs.forget(ino, 1)
        return
    shown = await fs.getattr(ino)
    assert stat.S_IMODE(shown.mode) == (0o600 if call == "chmod" else 0o644)
    assert len(await read_file(fs, ino)) == (1 if call == "cut" else 2 * limits.CHUNK_BYTES)
    assert await fs.listxattr(ino) == ([b"user.x"] if call == "setxattr" else [])
