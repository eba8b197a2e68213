"""ACLs and modes, which say the same thing in two places and must agree."""

from __future__ import annotations

import errno
import stat
import struct

import pytest
import trio

from aspenfs import acl
from aspenfs.filesystem import Filesystem
from aspenfs.types import ROOT_INO, AttributeChanges, Ino
from tests.core.steering import ROOT, Gate, SteeredClient, make_file, refused

NAMED = acl.encode(
    (
        acl.Entry(acl.USER_OBJ, 7),
        acl.Entry(acl.USER, 6, 1000),
        acl.Entry(acl.GROUP_OBJ, 5),
        acl.Entry(acl.MASK, 6),
        acl.Entry(acl.OTHER, 1),
    )
)
MINIMAL = acl.encode(
    (acl.Entry(acl.USER_OBJ, 6), acl.Entry(acl.GROUP_OBJ, 4), acl.Entry(acl.OTHER, 0))
)
EMPTY = acl.encode(())


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"file")


async def permissions(fs: Filesystem, ino: Ino) -> int:
    return stat.S_IMODE((await fs.getattr(ino)).mode)


async def entries(fs: Filesystem, ino: Ino, name: bytes = acl.ACCESS_XATTR) -> dict[int, int]:
    """Return the permissions of an ACL by tag."""
    return {entry.tag: entry.perm for entry in acl.parse(await fs.getxattr(ino, name))}


async def test_an_access_acl_sets_the_mode(fs: Filesystem, ino: Ino) -> None:
    await fs.setattr(ino, AttributeChanges(mode=0o4600))
    await fs.setxattr(ino, acl.ACCESS_XATTR, NAMED)
    assert await permissions(fs, ino) == 0o4761
    assert await fs.getxattr(ino, acl.ACCESS_XATTR) == NAMED


async def test_chmod_changes_the_acl(fs: Filesystem, ino: Ino) -> None:
    await fs.setxattr(ino, acl.ACCESS_XATTR, NAMED)
    await fs.setattr(ino, AttributeChanges(mode=0o640))
    assert await entries(fs, ino) == {
        acl.USER_OBJ: 6,
        acl.USER: 6,
        acl.GROUP_OBJ: 5,
        acl.MASK: 4,
        acl.OTHER: 0,
    }
    assert await permissions(fs, ino) == 0o640


async def test_other_changes_leave_the_acl(fs: Filesystem, ino: Ino) -> None:
    await fs.setxattr(ino, acl.ACCESS_XATTR, NAMED)
    await fs.setattr(ino, AttributeChanges(uid=5, mtime_ns=1))
    assert await fs.getxattr(ino, acl.ACCESS_XATTR) == NAMED


async def test_an_acl_that_the_mode_says_is_not_stored(fs: Filesystem, ino: Ino) -> None:
    await fs.setxattr(ino, acl.ACCESS_XATTR, NAMED)
    await fs.setxattr(ino, acl.ACCESS_XATTR, MINIMAL)
    assert await permissions(fs, ino) == 0o640
    assert await fs.listxattr(ino) == []


async def test_setting_an_empty_acl_removes_it(fs: Filesystem, ino: Ino) -> None:
    await fs.setxattr(ino, acl.ACCESS_XATTR, NAMED)
    await fs.setxattr(ino, acl.ACCESS_XATTR, EMPTY)
    assert await fs.listxattr(ino) == []
    assert await permissions(fs, ino) == 0o761
    await fs.setxattr(ino, acl.ACCESS_XATTR, NAMED)
    await fs.removexattr(ino, acl.ACCESS_XATTR)
    assert await fs.listxattr(ino) == []


async def test_what_is_no_acl_is_refused(fs: Filesystem, ino: Ino) -> None:
    with refused(errno.EINVAL):
        await fs.setxattr(ino, acl.ACCESS_XATTR, b"x")
    with refused(errno.EOPNOTSUPP):
        await fs.setxattr(ino, acl.ACCESS_XATTR, struct.pack("<I", 1))
    with refused(errno.EACCES):
        await fs.setxattr(ino, acl.DEFAULT_XATTR, NAMED)


async def test_a_default_acl_is_handed_down(fs: Filesystem) -> None:
    parent = await fs.mkdir(ROOT_INO, b"parent", 0o755, ROOT)
    await fs.setxattr(parent.ino, acl.DEFAULT_XATTR, NAMED)
    assert await permissions(fs, parent.ino) == 0o755

    file = await fs.mknod(parent.ino, b"file", 0o666, 0, ROOT)
    assert stat.S_IMODE(file.mode) == 0o660
    assert await fs.listxattr(file.ino) == [acl.ACCESS_XATTR]
    assert (await entries(fs, file.ino))[acl.MASK] == 6

    below = await fs.mkdir(parent.ino, b"below", 0o777, ROOT)
    assert stat.S_IMODE(below.mode) == 0o761
    assert await fs.getxattr(below.ino, acl.DEFAULT_XATTR) == NAMED
    assert await fs.listxattr(below.ino) == [acl.ACCESS_XATTR, acl.DEFAULT_XATTR]

    link = await fs.symlink(parent.ino, b"link", b"target", ROOT)
    assert (await fs.listxattr(link.ino), stat.S_IMODE(link.mode)) == ([], 0o777)


async def test_a_minimal_default_acl_gives_a_mode_and_no_acl(fs: Filesystem) -> None:
    parent = await fs.mkdir(ROOT_INO, b"parent", 0o755, ROOT)
    await fs.setxattr(parent.ino, acl.DEFAULT_XATTR, MINIMAL)
    file = await fs.mknod(parent.ino, b"file", 0o666, 0, ROOT)
    assert (stat.S_IMODE(file.mode), await fs.listxattr(file.ino)) == (0o640, [])
    below = await fs.mkdir(parent.ino, b"below", 0o777, ROOT)
    assert await fs.listxattr(below.ino) == [acl.DEFAULT_XATTR]


async def test_a_default_acl_that_was_removed_is_not_handed_down(fs: Filesystem) -> None:
    parent = await fs.mkdir(ROOT_INO, b"parent", 0o755, ROOT)
    await fs.setxattr(parent.ino, acl.DEFAULT_XATTR, NAMED)
    await fs.setxattr(parent.ino, acl.DEFAULT_XATTR, EMPTY)
    file = await fs.mknod(parent.ino, b"file", 0o666, 0, ROOT)
    assert (stat.S_IMODE(file.mode), await fs.listxattr(file.ino)) == (0o666, [])


@pytest.mark.parametrize("mtime_ns", [None, 5])  # with it, the times need not be as they were
async def test_chmod_sees_an_acl_that_another_client_sets_meanwhile(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, ino: Ino, mtime_ns: int | None
) -> None:
    await fs.setxattr(ino, b"user.other", b"")  # so that an ACL changes no other record
    await fs.setattr(ino, AttributeChanges(mode=0o761))
    gate = Gate()
    store.before_commit.append(gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.setattr, ino, AttributeChanges(mode=0o600, mtime_ns=mtime_ns))
        await gate.reached.wait()
        await peer.setxattr(ino, acl.ACCESS_XATTR, NAMED)
        gate.open()
    assert (await entries(fs, ino))[acl.MASK] == 0
    assert await permissions(fs, ino) == 0o600


@pytest.mark.parametrize(("has_default", "expected"), [(False, 0o640), (True, 0o660)])
async def test_a_default_acl_stands_in_place_of_the_umask(
    fs: Filesystem, *, has_default: bool, expected: int
) -> None:
    if has_default:
        entries = (
            acl.Entry(acl.USER_OBJ, 7),
            acl.Entry(acl.GROUP_OBJ, 7),
            acl.Entry(acl.OTHER, 0),
        )
        await fs.setxattr(ROOT_INO, acl.DEFAULT_XATTR, acl.encode(entries))
    made = await fs.mknod(ROOT_INO, b"made", 0o666, 0, ROOT._replace(umask=0o027))
    assert stat.S_IMODE(made.mode) == expected
    link = await fs.symlink(ROOT_INO, b"link", b"target", ROOT._replace(umask=0o027))
    assert stat.S_IMODE(link.mode) == 0o777
