"""The filesystem on the engine that mounts use: what is stored, and stays over a restart."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES
from aspenfs.types import ROOT_INO, AttributeChanges, FileHandle
from aspenkv.embedded import open_embedded
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import ROOT, check, make_file, names, opened, read_file

MEGABYTE = 2**20


@pytest.fixture
def data_path(tmp_path: Path) -> Iterator[Path]:
    """Keep the data in memory where that can be: these tests are not of the disk."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=parent, prefix="aspenfs-test-") as name:
        yield Path(name) / "data"


@asynccontextmanager
async def serve(data_path: Path) -> AsyncIterator[Service]:
    async with RocksdbEngine.open(data_path) as engine, open_embedded(engine) as service:
        yield service


async def test_everything_is_there_after_a_restart(data_path: Path, open_fs: Open) -> None:
    content = os.urandom(3 * MEGABYTE + 17)
    async with serve(data_path) as service, open_fs(service.connect()) as fs:
        large = await make_file(fs, b"large", content)
        small = await make_file(fs, b"small", b"content")
        made = await fs.mkdir(ROOT_INO, b"directory", 0o2750, ROOT)
        await fs.link(small, made.ino, b"link")
        await fs.symlink(made.ino, b"\xff", b"target", ROOT)
        await fs.setxattr(large, b"user.x", bytes(50_000))
        await fs.setattr(large, AttributeChanges(size=len(content) - 5, mtime_ns=-7))
        shown = [await fs.getattr(ino) for ino in (ROOT_INO, large, small, made.ino)]
        await check(service.connect(), fs)
    async with serve(data_path) as service, open_fs(service.connect()) as fs:
        assert [await fs.getattr(each.ino) for each in shown] == shown
        assert await names(fs) == [b"directory", b"large", b"small"]
        assert await names(fs, made.ino) == [b"link", b"\xff"]
        assert await read_file(fs, large) == content[:-5]
        assert await read_file(fs, small) == b"content"
        assert await fs.getxattr(large, b"user.x") == bytes(50_000)
        await check(service.connect(), fs)


@pytest.mark.logs("could not be written", "is lost", "the session could not be ended")
async def test_what_was_synced_outlives_a_crash_and_what_was_nameless_does_not(
    data_path: Path, open_fs: Open
) -> None:
    async with serve(data_path) as service, open_fs(service.connect()) as fs:
        ino = await make_file(fs, b"file")
        fh = await fs.open(ino, os.O_RDWR)
        await fs.write(fh, 0, b"synced")
        await fs.fsync(fh)
        nameless = await fs.open(await make_file(fs, b"gone", bytes(5 * CHUNK_BYTES)), os.O_RDWR)
        await fs.unlink(ROOT_INO, b"gone")
        await fs.write(nameless, 0, b"x")
        await wait_all_tasks_blocked()
        await fs.write(fh, 0, b"dirty!")
        service.close()  # nothing that the filesystem does from here on has any effect
    async with serve(data_path) as service, open_fs(service.connect()) as fs:
        assert await read_file(fs, ino) == b"synced"
        assert await names(fs) == [b"file"]
        await fs._orphans.collect()  # as the background does, soon
        report = await check(service.connect(), fs)
        assert (report.counts.inodes, report.counts.orphans, report.counts.chunks) == (2, 0, 0)


async def test_writers_and_listers_at_once(data_path: Path, open_fs: Open) -> None:
    """Large commits and large reads run in threads, so that all of it overlaps for real."""
    files, step = 6, 300_000
    content = [os.urandom(2 * MEGABYTE) for _ in range(files)]

    async def write(client: Filesystem, fh: FileHandle, data: bytes) -> None:
        for at in range(0, len(data), step):
            await client.write(fh, at, data[at : at + step])
            await trio.lowlevel.checkpoint()
        await client.fsync(fh)
        await client.release(fh)

    async def list_all(client: Filesystem) -> None:
        for number in range(5):
            found = await names(client)
            assert len(found) >= 300
            await client.mknod(ROOT_INO, b"more%d" % number, 0o644, 0, ROOT)
            fh = await client.opendir(ROOT_INO)
            listed = await client.readdir(fh, 0, 1000)
            await client.releasedir(fh)
            now = {entry.name: entry.attributes for entry in listed}
            assert now[b"more%d" % number].nlink == 1

    async with (
        serve(data_path) as service,
        open_fs(service.connect()) as fs,
        open_fs(service.connect()) as peer,
    ):
        for number in range(300):
            await fs.mknod(ROOT_INO, b"%03d" % number, 0o644, 0, ROOT)
        inos = [await make_file(fs, b"file%d" % number) for number in range(files)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(list_all, fs)
            for number, ino in enumerate(inos):
                client = peer if number % 2 else fs
                fh = await client.open(ino, os.O_WRONLY)
                nursery.start_soon(write, client, fh, content[number])
        for number, ino in enumerate(inos):
            assert await read_file(fs, ino) == content[number]
        async with opened(fs, inos[0]) as fh:
            await fs.unlink(ROOT_INO, b"file0")
            assert await fs.read(fh, 0, 10) == content[0][:10]
        await check(service.connect(), fs)
