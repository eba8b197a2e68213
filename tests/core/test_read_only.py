"""A read-only mount: reads everything, changes nothing, leaves no trace."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from trio.testing import wait_all_tasks_blocked

from aspenfs.errors import VolumeError
from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES
from aspenfs.types import ROOT_INO, AttributeChanges, Ino
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import ROOT, SteeredClient, make_file, names, opened, read_file, refused

CONTENT = bytes(range(256)) * 300


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    ino = await make_file(fs, b"file", CONTENT)
    await fs.setxattr(ino, b"user.x", b"1")
    await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    return ino


@pytest.fixture
def reader_store(service: Service) -> SteeredClient:
    return SteeredClient(service)


@pytest.fixture
async def reader(ino: Ino, reader_store: SteeredClient, open_fs: Open) -> AsyncIterator[Filesystem]:
    """A read-only mount of the volume that ``fs`` filled."""
    del ino
    async with open_fs(reader_store, read_only=True) as reader:
        yield reader
    assert reader_store.commits == []


async def test_everything_can_be_read(reader: Filesystem, fs: Filesystem, ino: Ino) -> None:
    assert await names(reader) == [b"directory", b"file"]
    assert await reader.lookup(ROOT_INO, b"file") == await fs.getattr(ino)
    assert await read_file(reader, ino) == CONTENT
    assert await reader.getxattr(ino, b"user.x") == b"1"
    assert (await reader.statfs()).inodes_used == 3
    async with opened(reader, ino, os.O_RDONLY) as fh:
        await reader.flush(fh)
        await reader.fsync(fh)
    await reader.sync()


async def test_it_sees_what_others_change(reader: Filesystem, fs: Filesystem, ino: Ino) -> None:
    assert len(await read_file(reader, ino)) == len(CONTENT)
    await fs.setattr(ino, AttributeChanges(size=CHUNK_BYTES))
    await wait_all_tasks_blocked()
    assert await read_file(reader, ino) == CONTENT[:CHUNK_BYTES]


CHANGES: dict[str, Callable[[Filesystem, Ino], Awaitable[object]]] = {
    "mknod": lambda fs, _: fs.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o644, 0, ROOT),
    "mkdir": lambda fs, _: fs.mkdir(ROOT_INO, b"new", 0o755, ROOT),
    "symlink": lambda fs, _: fs.symlink(ROOT_INO, b"new", b"target", ROOT),
    "link": lambda fs, ino: fs.link(ino, ROOT_INO, b"new"),
    "unlink": lambda fs, _: fs.unlink(ROOT_INO, b"file"),
    "rmdir": lambda fs, _: fs.rmdir(ROOT_INO, b"directory"),
    "rename": lambda fs, _: fs.rename(ROOT_INO, b"file", ROOT_INO, b"new"),
    "exchange": lambda fs, _: fs.rename(ROOT_INO, b"file", ROOT_INO, b"directory", 2),
    "create": lambda fs, _: fs.create(ROOT_INO, b"new", 0o644, os.O_RDWR, ROOT),
    "open for writing": lambda fs, ino: fs.open(ino, os.O_WRONLY),
    "open for both": lambda fs, ino: fs.open(ino, os.O_RDWR),
    "open and cut": lambda fs, ino: fs.open(ino, os.O_RDONLY | os.O_TRUNC),
    "chmod": lambda fs, ino: fs.setattr(ino, AttributeChanges(mode=0o600)),
    "truncate": lambda fs, ino: fs.setattr(ino, AttributeChanges(size=0)),
    "setxattr": lambda fs, ino: fs.setxattr(ino, b"user.x", b"2"),
    "removexattr": lambda fs, ino: fs.removexattr(ino, b"user.x"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_nothing_can_be_changed(reader: Filesystem, ino: Ino, change: str) -> None:
    with refused(errno.EROFS):
        await CHANGES[change](reader, ino)
    assert reader.statistics().handles == 0


async def test_a_volume_is_not_made(service: Service, open_fs: Open) -> None:
    with pytest.raises(VolumeError, match="does not exist"):
        async with open_fs(service.connect(), volume="absent", read_only=True):
            pass
