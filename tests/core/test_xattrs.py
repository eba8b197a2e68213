"""Extended attributes: values, flags and limits."""

from __future__ import annotations

import errno
import os

import pytest

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.types import ROOT_INO, Attributes, Ino
from tests.core.steering import NOBODYS_INO, ROOT, SteeredClient, make_file, refused


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"file")


async def test_a_value_is_kept_to_the_byte(fs: Filesystem, ino: Ino) -> None:
    for value in (b"value", b"", bytes(range(256)), b"v" * limits.XATTR_VALUE_BYTES_MAX):
        await fs.setxattr(ino, b"user.name", value)
        assert await fs.getxattr(ino, b"user.name") == value
    assert await fs.listxattr(ino) == [b"user.name"]


async def test_every_namespace_and_type_of_file_can_have_some(fs: Filesystem, ino: Ino) -> None:
    link = await fs.symlink(ROOT_INO, b"link", b"target", ROOT)
    longest = b"user." + b"n" * (limits.XATTR_NAME_BYTES_MAX - len(b"user."))
    names = sorted([b"security.capability", b"trusted.x", longest, b"user.\xff"])
    for target in (ino, link.ino, ROOT_INO):
        for name in reversed(names):
            await fs.setxattr(target, name, name)
        assert await fs.listxattr(target) == names
        assert [await fs.getxattr(target, name) for name in names] == names


async def test_an_inode_without_any_costs_no_read(
    fs: Filesystem, ino: Ino, store: SteeredClient
) -> None:
    await fs.getattr(ino)
    gets = store.gets
    with refused(errno.ENODATA):
        await fs.getxattr(ino, b"security.capability")
    assert await fs.listxattr(ino) == []
    assert store.gets == gets


async def test_removing_one(fs: Filesystem, ino: Ino) -> None:
    await fs.setxattr(ino, b"user.one", b"1")
    await fs.setxattr(ino, b"user.two", b"2")
    await fs.removexattr(ino, b"user.one")
    assert await fs.listxattr(ino) == [b"user.two"]
    for call in (fs.getxattr, fs.removexattr):
        with refused(errno.ENODATA):
            await call(ino, b"user.one")


async def test_create_and_replace(fs: Filesystem, ino: Ino) -> None:
    with refused(errno.ENODATA):
        await fs.setxattr(ino, b"user.x", b"1", os.XATTR_REPLACE)
    await fs.setxattr(ino, b"user.x", b"2", os.XATTR_CREATE)
    with refused(errno.EEXIST):
        await fs.setxattr(ino, b"user.x", b"3", os.XATTR_CREATE)
    await fs.setxattr(ino, b"user.x", b"4", os.XATTR_REPLACE)
    assert await fs.getxattr(ino, b"user.x") == b"4"


async def test_a_change_touches_the_inode_in_one_commit(
    fs: Filesystem, ino: Ino, store: SteeredClient
) -> None:
    shown: list[Attributes] = [await fs.getattr(ino)]
    store.commits.clear()
    await fs.setxattr(ino, b"user.x", b"1")
    shown.append(await fs.getattr(ino))
    await fs.removexattr(ino, b"user.x")
    shown.append(await fs.getattr(ino))
    assert len(store.commits) == 2
    assert shown[0].ctime_ns < shown[1].ctime_ns < shown[2].ctime_ns
    assert len({each.mtime_ns for each in shown}) == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"", b"", errno.ERANGE),
        (b"user." + b"n" * limits.XATTR_NAME_BYTES_MAX, b"", errno.ERANGE),
        (b"user.x", b"v" * (limits.XATTR_VALUE_BYTES_MAX + 1), errno.E2BIG),
        (b"system.other", b"", errno.EOPNOTSUPP),
        (b"nonsense", b"", errno.EOPNOTSUPP),
        (b"user.", b"", errno.EINVAL),
        (b"trusted.", b"", errno.EINVAL),
    ],
)
async def test_what_setxattr_refuses(
    fs: Filesystem, ino: Ino, name: bytes, value: bytes, expected: int
) -> None:
    with refused(expected):
        await fs.setxattr(ino, name, value)
    assert await fs.listxattr(ino) == []


async def test_a_list_is_only_as_long_as_the_system_call_can_return(
    fs: Filesystem, ino: Ino, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "XATTR_LIST_BYTES_MAX", 2 * len(b"user.1\0"))
    await fs.setxattr(ino, b"user.1", b"")
    await fs.setxattr(ino, b"user.2", b"")
    assert len(await fs.listxattr(ino)) == 2
    await fs.setxattr(ino, b"user.3", b"")
    with refused(errno.E2BIG):
        await fs.listxattr(ino)


async def test_an_inode_that_is_gone_has_none(fs: Filesystem) -> None:
    with refused(errno.ESTALE):
        await fs.getxattr(NOBODYS_INO, b"user.x")
    with refused(errno.ESTALE):
        await fs.listxattr(NOBODYS_INO)
    with refused(errno.ESTALE):
        await fs.setxattr(NOBODYS_INO, b"user.x", b"")
    with refused(errno.ESTALE):
        await fs.removexattr(NOBODYS_INO, b"user.x")


async def test_they_go_with_the_inode(fs: Filesystem, ino: Ino) -> None:
    await fs.setxattr(ino, b"user.x", b"1")
    await fs.unlink(ROOT_INO, b"file")  # the check after each test would find what is left
    directory = await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    await fs.setxattr(directory.ino, b"user.x", b"1")
    await fs.rmdir(ROOT_INO, b"directory")
