"""Two clients change the same names at once; the volume is checked after each test.

Each pair of changes is run so that one client has read what it builds its commit on, and then the
other one commits: the first must notice, whatever it was about to do.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aspenfs.errors import FilesystemError
from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES
from aspenfs.namespace import RENAME_EXCHANGE, RENAME_NOREPLACE
from aspenfs.types import ROOT_INO, AttributeChanges, Ino
from tests.core.steering import (
    ROOT,
    Gate,
    SteeredClient,
    make_file,
    names,
    read_file,
    unlink_unaware,
)

Change = Callable[[Filesystem, "Tree"], Awaitable[object]]


class Tree(NamedTuple):
    """``file``, which is also ``d/link``, and ``g``; the directories ``d``, ``e`` and ``d/f``."""

    file: Ino
    g: Ino
    d: Ino
    e: Ino
    f: Ino


@pytest.fixture
async def tree(fs: Filesystem, peer: Filesystem) -> Tree:
    del peer  # is there, and has heard of nothing yet
    file = await make_file(fs, b"file", b"content")
    d = (await fs.mkdir(ROOT_INO, b"d", 0o755, ROOT)).ino
    e = (await fs.mkdir(ROOT_INO, b"e", 0o755, ROOT)).ino
    f = (await fs.mkdir(d, b"f", 0o755, ROOT)).ino
    await fs.link(file, d, b"link")
    g = await make_file(fs, b"g", b"x")
    return Tree(file, g, d, e, f)


async def outcome(change: Awaitable[object]) -> int:
    """Return the errno of a change; 0 if it was done."""
    try:
        await change
    except FilesystemError as error:
        return error.errno
    return 0


async def create(fs: Filesystem, parent: Ino, name: bytes) -> None:
    fh, _ = await fs.create(parent, name, 0o644, os.O_RDWR | os.O_EXCL, ROOT)
    await fs.release(fh)


async def write(fs: Filesystem, ino: Ino, offset: int, data: bytes) -> None:
    fh = await fs.open(ino, os.O_WRONLY)
    try:
        await fs.write(fh, offset, data)
    finally:
        await fs.release(fh)


def rename(parent: str, name: bytes, new_parent: str, new_name: bytes, flags: int = 0) -> Change:
    """Return a rename between directories of the tree; "" is the root."""

    def change(fs: Filesystem, tree: Tree) -> Awaitable[object]:
        old, new = (getattr(tree, each) if each else ROOT_INO for each in (parent, new_parent))
        return fs.rename(old, name, new, new_name, flags)

    return change


CHANGES: dict[str, Change] = {
    "create new": lambda fs, _: create(fs, ROOT_INO, b"new"),
    "mkdir new": lambda fs, _: fs.mkdir(ROOT_INO, b"new", 0o755, ROOT),
    "mkdir other": lambda fs, _: fs.mkdir(ROOT_INO, b"other", 0o755, ROOT),
    "symlink new": lambda fs, _: fs.symlink(ROOT_INO, b"new", b"target", ROOT),
    "link file as new": lambda fs, t: fs.link(t.file, ROOT_INO, b"new"),
    "link file as other": lambda fs, t: fs.link(t.file, ROOT_INO, b"other"),
    "link file into f": lambda fs, t: fs.link(t.file, t.f, b"x"),
    "create in e": lambda fs, t: create(fs, t.e, b"x"),
    "create in f": lambda fs, t: create(fs, t.f, b"x"),
    "mkdir in f": lambda fs, t: fs.mkdir(t.f, b"x", 0o755, ROOT),
    "rmdir e": lambda fs, _: fs.rmdir(ROOT_INO, b"e"),
    "rmdir f": lambda fs, t: fs.rmdir(t.d, b"f"),
    "unlink file": lambda fs, _: fs.unlink(ROOT_INO, b"file"),
    "unlink g": lambda fs, _: unlink_unaware(fs, b"g"),
    "unlink link": lambda fs, t: fs.unlink(t.d, b"link"),
    "file to new": rename("", b"file", "", b"new"),
    "file to new, no replace": rename("", b"file", "", b"new", RENAME_NOREPLACE),
    "file to other": rename("", b"file", "", b"other"),
    "file into e": rename("", b"file", "e", b"x"),
    "file into f": rename("", b"file", "f", b"x"),
    "g over file": rename("", b"g", "", b"file"),
    "d into e": rename("", b"d", "e", b"d"),
    "e into d": rename("", b"e", "d", b"e"),
    "e into f": rename("", b"e", "f", b"e"),
    "f to root": rename("d", b"f", "", b"f"),
    "f over e": rename("d", b"f", "", b"e"),
    "swap d and e": rename("", b"d", "", b"e", RENAME_EXCHANGE),
    "swap f and e": rename("d", b"f", "", b"e", RENAME_EXCHANGE),
    "swap file and e": rename("", b"file", "", b"e", RENAME_EXCHANGE),
    "swap link and e": rename("d", b"link", "", b"e", RENAME_EXCHANGE),
    "chmod": lambda fs, t: fs.setattr(t.file, AttributeChanges(mode=0o600)),
    "chmod and touch": lambda fs, t: fs.setattr(t.file, AttributeChanges(mode=0o600, mtime_ns=7)),
    "chown": lambda fs, t: fs.setattr(t.file, AttributeChanges(uid=7)),
    "touch": lambda fs, t: fs.setattr(t.file, AttributeChanges(mtime_ns=7)),
    "cut": lambda fs, t: fs.setattr(t.file, AttributeChanges(size=3)),
    "write": lambda fs, t: write(fs, t.file, 5, b"!"),
    "write far": lambda fs, t: write(fs, t.file, 2 * CHUNK_BYTES, b"far"),
    "setxattr": lambda fs, t: fs.setxattr(t.file, b"user.x", b"1"),
    "setxattr of f": lambda fs, t: fs.setxattr(t.f, b"user.x", b"1"),
    "setxattr of g": lambda fs, t: fs.setxattr(t.g, b"user.x", b"1"),
    "write far into g": lambda fs, t: write(fs, t.g, 2 * CHUNK_BYTES, b"far"),
    "cut g": lambda fs, t: fs.setattr(t.g, AttributeChanges(size=3 * CHUNK_BYTES)),
    "setxattr y": lambda fs, t: fs.setxattr(t.file, b"user.y", b"1"),
}


@pytest.mark.parametrize(
    ("slow", "fast", "expected"),
    [
        # One name is made once.
        ("create new", "create new", errno.EEXIST),
        ("create new", "mkdir new", errno.EEXIST),
        ("mkdir new", "symlink new", errno.EEXIST),
        ("symlink new", "link file as new", errno.EEXIST),
        ("link file as new", "file to new", errno.EEXIST),
        ("file to new, no replace", "create new", errno.EEXIST),
        ("file to new", "create new", 0),
        ("file to new", "mkdir new", errno.EISDIR),
        # Nothing is made in a directory that is gone, and no directory goes that has entries.
        ("create in f", "rmdir f", errno.ENOENT),
        ("mkdir in f", "rmdir f", errno.ENOENT),
        ("link file into f", "rmdir f", errno.ENOENT),
        ("file into f", "rmdir f", errno.ENOENT),
        ("e into f", "rmdir f", errno.ENOENT),
        ("create in e", "f over e", errno.ENOENT),
        ("d into e", "rmdir e", errno.ENOENT),
        ("rmdir f", "create in f", errno.ENOTEMPTY),
        ("rmdir f", "mkdir in f", errno.ENOTEMPTY),
        ("rmdir f", "link file into f", errno.ENOTEMPTY),
        ("rmdir f", "file into f", errno.ENOTEMPTY),
        ("rmdir f", "e into f", errno.ENOTEMPTY),
        ("f over e", "create in e", errno.ENOTEMPTY),
        # A name is moved or removed once.
        ("rmdir f", "rmdir f", errno.ENOENT),
        ("rmdir f", "f to root", errno.ENOENT),
        ("f to root", "rmdir f", errno.ENOENT),
        ("unlink file", "unlink file", errno.ENOENT),
        ("unlink file", "file to new", errno.ENOENT),
        ("file to new", "unlink file", errno.ENOENT),
        ("file to new", "file to other", errno.ENOENT),
        ("file into e", "file to other", errno.ENOENT),
        ("swap file and e", "file to other", errno.ENOENT),
        ("f over e", "rmdir e", 0),
        ("rmdir e", "f over e", 0),
        ("unlink file", "swap file and e", errno.EISDIR),
        # Links are counted right.
        ("unlink file", "unlink link", 0),
        ("unlink file", "link file as other", 0),
        ("link file as other", "unlink file", 0),
        ("link file as new", "link file as other", 0),
        ("g over file", "unlink link", 0),
        ("g over file", "unlink file", 0),
        ("g over file", "link file as new", 0),
        ("unlink link", "g over file", 0),
        ("unlink link", "chmod", 0),
        ("mkdir new", "mkdir other", 0),
        ("mkdir new", "d into e", 0),
        ("d into e", "mkdir new", 0),
        ("d into e", "rmdir f", 0),
        ("f to root", "mkdir in f", 0),
        ("swap link and e", "mkdir new", 0),
        # With an inode goes all that it has come to have.
        ("rmdir f", "setxattr of f", 0),
        ("f over e", "setxattr of f", 0),
        ("unlink g", "setxattr of g", 0),
        ("unlink g", "write far into g", 0),
        ("unlink g", "cut g", 0),
        ("setxattr of g", "unlink g", errno.ESTALE),
        ("setxattr of f", "rmdir f", errno.ESTALE),
        ("cut g", "unlink g", errno.ESTALE),
        # No directory comes to be within itself.
        ("d into e", "e into d", errno.EINVAL),
        ("e into d", "d into e", errno.EINVAL),
        ("e into f", "d into e", errno.EINVAL),
        ("swap f and e", "d into e", errno.EINVAL),
        ("d into e", "swap f and e", errno.EINVAL),
        ("d into e", "swap d and e", errno.EINVAL),
        # Changes of one inode do not undo each other.
        ("chmod", "chown", 0),
        ("chmod", "touch", 0),
        ("chmod and touch", "chown", 0),
        ("touch", "chown", 0),
        ("chown", "setxattr", 0),
        ("setxattr", "setxattr y", 0),
        ("setxattr", "setxattr", 0),
        ("write", "chmod", 0),
        ("write", "write far", 0),
        ("write far", "write", 0),
        ("write far", "cut", 0),
        ("cut", "write far", 0),
        ("cut", "cut", 0),
    ],
)
async def test_a_change_that_is_overtaken(
    fs: Filesystem,
    store: SteeredClient,
    peer: Filesystem,
    tree: Tree,
    slow: str,
    fast: str,
    expected: int,
) -> None:
    gate = Gate()
    store.before_commit.append(gate)
    found: list[int] = []

    async def run_slow() -> None:
        found.append(await outcome(CHANGES[slow](fs, tree)))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_slow)
            await gate.reached.wait()
            assert await outcome(CHANGES[fast](peer, tree)) == 0
            gate.open()
    assert found == [expected]


async def test_what_changes_of_one_inode_leave(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, tree: Tree
) -> None:
    for slow, fast in (
        ("chmod and touch", "chown"),
        ("write far", "write"),
        ("setxattr", "setxattr y"),
    ):
        gate = Gate()
        store.before_commit.append(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(CHANGES[slow], fs, tree)
            await gate.reached.wait()
            await CHANGES[fast](peer, tree)
            gate.open()
        await wait_all_tasks_blocked()
    for client in (fs, peer):
        shown = await client.getattr(tree.file)
        assert (shown.mode & 0o777, shown.uid, shown.size) == (0o600, 7, 2 * CHUNK_BYTES + 3)
        assert (await read_file(client, tree.file)).replace(b"\0", b"") == b"conte!tfar"
        assert await client.listxattr(tree.file) == [b"user.x", b"user.y"]


async def test_of_many_that_create_one_name_one_wins(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, peer_store: SteeredClient
) -> None:
    store.yields = peer_store.yields = True
    outcomes: list[int] = []

    async def create_one(client: Filesystem) -> None:
        outcomes.append(await outcome(create(client, ROOT_INO, b"lock")))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(create_one, fs)
            nursery.start_soon(create_one, peer)
    assert sorted(outcomes) == [0] + [errno.EEXIST] * 19


@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_leaves_a_sound_volume(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, peer_store: SteeredClient, seed: int
) -> None:
    """Six tasks move, make and remove the same few names in the same few directories."""
    store.yields = peer_store.yields = True
    made = [await fs.mkdir(ROOT_INO, name, 0o755, ROOT) for name in (b"x", b"y", b"z")]
    directories = [ROOT_INO, *(directory.ino for directory in made)]
    wanted = [b"x", b"y", b"z", b"u"]
    allowed = {
        errno.EEXIST,
        errno.ENOENT,
        errno.ENOTEMPTY,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EINVAL,
        errno.EPERM,
        errno.ESTALE,
        errno.EBUSY,
    }

    async def change(client: Filesystem, dice: random.Random) -> None:
        parent, other = dice.choice(directories), dice.choice(directories)
        name, new_name = dice.choice(wanted), dice.choice(wanted)
        match dice.randrange(8):
            case 0:
                directories.append((await client.mkdir(parent, name, 0o755, ROOT)).ino)
            case 1:
                await create(client, parent, name)
            case 2:
                await client.unlink(parent, name)
            case 3:
                await client.rmdir(parent, name)
            case 4:
                found = await client.lookup(parent, name)
                await client.link(found.ino, other, new_name)
            case 5:
                await client.rename(parent, name, other, new_name, RENAME_EXCHANGE)
            case _:
                await client.rename(parent, name, other, new_name)

    async def run(client: Filesystem, dice: random.Random) -> None:
        for _ in range(60):
            found = await outcome(change(client, dice))
            assert found == 0 or found in allowed, errno.errorcode[found]

    async with trio.open_nursery() as nursery:
        for number in range(6):
            dice = random.Random(100 * seed + number)
            nursery.start_soon(run, peer if number % 2 else fs, dice)
    await wait_all_tasks_blocked()
    assert await names(fs) == await names(peer)
    assert fs.statistics().transactions.conflicts > 0


async def test_a_directory_is_not_moved_to_where_another_client_just_removed_one(
    fs: Filesystem, peer: Filesystem, tree: Tree
) -> None:
    await fs.getattr(tree.e)
    await peer.rmdir(ROOT_INO, b"e")  # the event has not been heard yet
    assert await outcome(CHANGES["d into e"](fs, tree)) == errno.ENOENT
    assert await outcome(CHANGES["e into d"](fs, tree)) == errno.ENOENT


@pytest.mark.parametrize("overtaken", [True, False])
async def test_two_moves_that_touch_nothing_in_common_make_no_cycle(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, overtaken: bool
) -> None:
    async def make(parent: Ino, name: bytes) -> Ino:
        return (await fs.mkdir(parent, name, 0o755, ROOT)).ino

    p, q = await make(ROOT_INO, b"p"), await make(ROOT_INO, b"q")
    d, e = await make(p, b"d"), await make(q, b"e")
    below_d, below_e = await make(d, b"below"), await make(e, b"below")
    found: list[int] = []

    async def move() -> None:
        found.append(await outcome(fs.rename(p, b"d", below_e, b"d")))

    if overtaken:
        gate = Gate()
        store.before_commit.append(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move)
            await gate.reached.wait()
            await peer.rename(q, b"e", below_d, b"e")
            gate.open()
    else:
        await peer.rename(q, b"e", below_d, b"e")  # the event has not been heard yet
        await move()
    assert found == [errno.EINVAL]


@pytest.mark.parametrize(
    "slow",
    ["chmod", "file to new", "link file as new", "unlink link", "setxattr", "swap link and e"],
)
async def test_a_time_that_another_client_set_meanwhile_stays(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, tree: Tree, slow: str
) -> None:
    gate = Gate()
    store.before_commit.append(gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(CHANGES[slow], fs, tree)
        await gate.reached.wait()
        await CHANGES["touch"](peer, tree)
        gate.open()
    await wait_all_tasks_blocked()
    for client in (fs, peer):
        assert (await client.getattr(tree.file)).mtime_ns == 7
