"""What a change of a file takes from it: its capability always, the set-ID bits if it is asked."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from aspenfs.attributes import CAPABILITY_XATTR
from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES
from aspenfs.types import ROOT_INO, AttributeChanges, Context, FileHandle, Ino
from tests.core.steering import (
    make_file,
    opened,
    refused,
)


class Opened(NamedTuple):
    """A file of two chunks, opened to read and write."""

    fs: Filesystem
    ino: Ino
    fh: FileHandle

    async def set(self, **changes: int) -> None:
        await self.fs.setattr(self.ino, AttributeChanges(**changes))

    async def cut(self) -> None:
        await self.fs.release(await self.fs.open(self.ino, os.O_WRONLY | os.O_TRUNC))

    async def copy(self, length: int, offset: int) -> None:
        count = await self.fs.copy_file_range(
            self.ino, self.fh, 0, self.ino, self.fh, offset, length, 0
        )
        assert count == length


CHANGES: dict[str, Callable[[Opened], Awaitable[object]]] = {
    "write": lambda file: file.fs.write(file.fh, 1, b"new"),
    "truncate": lambda file: file.set(size=1),
    "truncate to the same size": lambda file: file.set(size=2 * CHUNK_BYTES),
    "open that cuts": Opened.cut,
    "allocate": lambda file: file.fs.fallocate(file.ino, file.fh, 0, 0, 1),
    "copy of a chunk": lambda file: file.copy(CHUNK_BYTES, CHUNK_BYTES),
    "copy of bytes": lambda file: file.copy(5, 9),
    "owner": lambda file: file.set(uid=7),
    "group": lambda file: file.set(gid=7),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_takes_the_capability_and_no_other_attribute(
    fs: Filesystem, change: str
) -> None:
    ino = await make_file(fs, b"file", bytes(2 * CHUNK_BYTES))
    await fs.setxattr(ino, b"user.other", b"kept")
    await fs.setxattr(ino, CAPABILITY_XATTR, b"capability")
    async with opened(fs, ino) as fh:
        await CHANGES[change](Opened(fs, ino, fh))
        for _ in range(2):  # what waits to be committed, and what is
            with refused(errno.ENODATA):
                await fs.getxattr(ino, CAPABILITY_XATTR)
            assert await fs.listxattr(ino) == [b"user.other"]
            await fs.fsync(fh)


async def test_what_changes_no_byte_nor_owner_takes_nothing(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"content")
    await fs.setxattr(ino, CAPABILITY_XATTR, b"capability")
    await fs.setattr(ino, AttributeChanges(mode=0o755, mtime_ns=1))
    async with opened(fs, ino) as fh:
        await fs.read(fh, 0, 5)
        await fs.write(fh, 0, b"")
    assert await fs.getxattr(ino, CAPABILITY_XATTR) == b"capability"


async def test_a_capability_that_is_set_beside_bytes_stays(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"content")
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"C")
        await fs.setxattr(ino, CAPABILITY_XATTR, b"capability")
        await fs.fsync(fh)
    assert await fs.getxattr(ino, CAPABILITY_XATTR) == b"capability"


async def test_a_capability_that_bytes_took_cannot_be_removed(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"content")
    await fs.setxattr(ino, CAPABILITY_XATTR, b"capability")
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"C")
        with refused(errno.ENODATA):
            await fs.removexattr(ino, CAPABILITY_XATTR)


async def test_a_directory_keeps_what_its_owner_changes(fs: Filesystem) -> None:
    directory = (await fs.mkdir(ROOT_INO, b"directory", 0o755, Context(0, 0))).ino
    await fs.setxattr(directory, CAPABILITY_XATTR, b"capability")
    await fs.setattr(directory, AttributeChanges(uid=7))
    assert await fs.getxattr(directory, CAPABILITY_XATTR) == b"capability"


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize(("drops", "expected"), [(True, 0o755), (False, 0o6755)])
async def test_an_open_that_cuts_clears_the_set_id_bits_of_who_may_not_keep_them(
    fs: Filesystem, *, is_open: bool, drops: bool, expected: int
) -> None:
    ino = await make_file(fs, b"file", b"content")
    await fs.setattr(ino, AttributeChanges(mode=0o6755))
    other = await fs.open(ino, os.O_RDWR) if is_open else None
    fh = await fs.open(ino, os.O_RDWR | os.O_TRUNC, drops_set_id=drops)
    assert stat.S_IMODE((await fs.getattr(ino)).mode) == expected
    await fs.release(fh)
    if other is not None:
        await fs.release(other)


@pytest.mark.parametrize(("drops", "expected"), [(True, 0o755), (False, 0o6755)])
async def test_a_truncate_clears_the_set_id_bits_of_who_may_not_keep_them(
    fs: Filesystem, *, drops: bool, expected: int
) -> None:
    ino = await make_file(fs, b"file", b"content")
    await fs.setattr(ino, AttributeChanges(mode=0o6755))
    found = await fs.setattr(ino, AttributeChanges(size=3), drops_set_id=drops)
    assert stat.S_IMODE(found.mode) == expected


@pytest.mark.parametrize("opener", [False, True])
@pytest.mark.parametrize(("drops", "expected"), [(True, 0o755), (False, 0o6755)])
async def test_what_is_known_of_a_write_counts_more_than_who_opened(
    fs: Filesystem, *, opener: bool, drops: bool, expected: int
) -> None:
    ino = await make_file(fs, b"file", b"content")
    await fs.setattr(ino, AttributeChanges(mode=0o6755))
    fh = await fs.open(ino, os.O_RDWR, drops_set_id=opener)
    await fs.write(fh, 0, b"C", drops_set_id=drops)
    await fs.release(fh)
    assert stat.S_IMODE((await fs.getattr(ino)).mode) == expected
