"""Open files: reading, writing and closing, and the errors of handles."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES, COMMIT_DATA_BYTES_MAX, FILE_BYTES_MAX
from aspenfs.types import ROOT_INO, FileHandle, Ino
from aspenkv.errors import EngineError
from tests.core.steering import (
    NOBODYS_HANDLE,
    ROOT,
    SteeredClient,
    failing,
    make_file,
    opened,
    read_file,
    refused,
)


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"file", b"0123456789")


async def test_a_read_ends_where_the_file_ends(fs: Filesystem, ino: Ino) -> None:
    async with opened(fs, ino, os.O_RDONLY) as fh:
        assert await fs.read(fh, 0, 100) == b"0123456789"
        assert await fs.read(fh, 3, 4) == b"3456"
        assert await fs.read(fh, 8, 4) == b"89"
        assert await fs.read(fh, 0, 0) == b""
        for offset in (10, 11, FILE_BYTES_MAX):
            assert await fs.read(fh, offset, 10) == b""


async def test_a_write_is_read_back_before_it_is_committed(
    fs: Filesystem, ino: Ino, store: SteeredClient
) -> None:
    async with opened(fs, ino) as fh, opened(fs, ino, os.O_RDONLY) as other:
        store.commits.clear()
        assert await fs.write(fh, 8, b"XYZ") == 3
        assert await fs.write(fh, 0, b"") == 0
        for handle in (fh, other):
            assert await fs.read(handle, 0, 100) == b"01234567XYZ"
        assert (await fs.getattr(ino)).size == 11
        assert store.commits == []
        await fs.flush(other)  # whoever wrote it
        assert len(store.commits) == 1
    assert len(store.commits) == 1


async def test_a_gap_reads_as_zeros(fs: Filesystem, ino: Ino) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 20, b"end")
        expected = b"0123456789" + bytes(10) + b"end"
        assert await fs.read(fh, 0, 100) == expected
        assert await fs.read(fh, 12, 4) == bytes(4)
    assert await read_file(fs, ino) == expected


async def test_a_write_larger_than_a_commit(fs: Filesystem, store: SteeredClient) -> None:
    content = os.urandom(2 * COMMIT_DATA_BYTES_MAX + 12_345)
    ino = await make_file(fs, b"large", content)
    assert await read_file(fs, ino) == content
    async with opened(fs, ino, os.O_WRONLY | os.O_APPEND) as fh:
        await fs.write(fh, 0, content)
    assert await read_file(fs, ino) == 2 * content
    assert max(len(ops) for ops in store.commits) <= 128


async def test_o_trunc_cuts_whatever_the_access(fs: Filesystem, ino: Ino) -> None:
    for access in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY):
        async with opened(fs, ino, os.O_RDWR) as fh:
            await fs.write(fh, 0, b"dirty")
            async with opened(fs, ino, access | os.O_TRUNC):
                assert (await fs.getattr(ino)).size == 0
                assert await fs.read(fh, 0, 100) == b""


async def test_writes_touch_the_file_when_they_are_made(fs: Filesystem, ino: Ino) -> None:
    before = await fs.getattr(ino)
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"x")
        dirty = await fs.getattr(ino)
        assert dirty.mtime_ns == dirty.ctime_ns > before.ctime_ns
        await fs.flush(fh)
        clean = await fs.getattr(ino)
        assert (clean.mtime_ns, clean.ctime_ns) == (dirty.mtime_ns, dirty.ctime_ns)
    assert (await fs.getattr(ino)).mtime_ns == dirty.mtime_ns
    assert (await fs.getattr(ino)).atime_ns == before.atime_ns


@pytest.mark.parametrize(
    ("flags", "reads", "writes"),
    [(os.O_RDONLY, True, False), (os.O_WRONLY, False, True), (os.O_RDWR, True, True)],
)
async def test_a_handle_does_what_it_was_opened_for(
    fs: Filesystem, ino: Ino, flags: int, reads: bool, writes: bool
) -> None:
    async with opened(fs, ino, flags) as fh:
        if reads:
            assert await fs.read(fh, 0, 1) == b"0"
        else:
            with refused(errno.EBADF):
                await fs.read(fh, 0, 1)
        if writes:
            assert await fs.write(fh, 0, b"0") == 1
        else:
            with refused(errno.EBADF):
                await fs.write(fh, 0, b"0")


async def test_what_is_no_place_in_a_file(fs: Filesystem, ino: Ino) -> None:
    async with opened(fs, ino) as fh:
        for offset, size in ((-1, 1), (0, -1)):
            with refused(errno.EINVAL):
                await fs.read(fh, offset, size)
        with refused(errno.EINVAL):
            await fs.write(fh, -1, b"x")
        with refused(errno.EFBIG):
            await fs.write(fh, FILE_BYTES_MAX, b"x")
        assert await fs.write(fh, FILE_BYTES_MAX - 1, b"x") == 1
        assert (await fs.getattr(ino)).size == FILE_BYTES_MAX
        assert await fs.read(fh, FILE_BYTES_MAX - 2, 10) == b"\x00x"


async def test_a_handle_that_is_not_open(fs: Filesystem, ino: Ino) -> None:
    closed = await fs.open(ino, os.O_RDWR)
    await fs.release(closed)
    directory = await fs.opendir(ROOT_INO)
    for fh in (NOBODYS_HANDLE, closed, directory):
        with refused(errno.EBADF):
            await fs.read(fh, 0, 1)
        with refused(errno.EBADF):
            await fs.write(fh, 0, b"x")
        for call in (fs.flush, fs.fsync, fs.release):
            with refused(errno.EBADF):
                await call(fh)
    await fs.releasedir(directory)
    async with opened(fs, ino) as file:
        for other in (NOBODYS_HANDLE, closed, directory, file):
            for call in (fs.releasedir, fs.fsyncdir):
                with refused(errno.EBADF):
                    await call(other)
            with refused(errno.EBADF):
                await fs.readdir(other, 0, 10)


async def test_too_many_open_handles(
    fs: Filesystem, ino: Ino, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(fs, ino):
        monkeypatch.setattr(limits, "OPEN_HANDLES_MAX", 1)
        with refused(errno.ENFILE):
            await fs.open(ino, os.O_RDONLY)
        other = await fs.mknod(ROOT_INO, b"other", 0o644, 0, ROOT)
        with refused(errno.ENFILE):
            await fs.open(other.ino, os.O_RDONLY)
        with refused(errno.ENFILE):
            await fs.opendir(ROOT_INO)
    statistics = fs.statistics()
    assert (statistics.handles, statistics.data.open_files) == (0, 0)


async def test_fsync_syncs_the_store(fs: Filesystem, ino: Ino, store: SteeredClient) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 0, b"x")
        store.commits.clear()
        for datasync in (False, True):
            syncs = store.syncs
            await fs.fsync(fh, datasync)
            assert store.syncs == syncs + 1
        assert len(store.commits) == 1
    directory = await fs.opendir(ROOT_INO)
    syncs = store.syncs
    await fs.fsyncdir(directory, datasync=True)
    assert store.syncs == syncs + 1
    await fs.releasedir(directory)


async def test_sync_commits_every_file(fs: Filesystem, store: SteeredClient) -> None:
    handles: list[FileHandle] = []
    for name in (b"one", b"two", b"three"):
        fh, _ = await fs.create(ROOT_INO, name, 0o644, os.O_RDWR, ROOT)
        await fs.write(fh, 0, name)
        handles.append(fh)
    assert fs.statistics().data.dirty_bytes == 11
    assert fs.statistics().data.dirty_files == 3
    syncs = store.syncs
    await fs.sync()
    assert store.syncs == syncs + 1
    assert fs.statistics().data[:3] == (0, 0, 3)
    for fh in handles:
        await fs.release(fh)
    assert fs.statistics().data.open_files == 0


async def test_a_small_file_costs_two_commits_and_no_read(
    fs: Filesystem, store: SteeredClient
) -> None:
    await make_file(fs, b"first")  # takes inode numbers
    store.commits.clear()
    ino = await make_file(fs, b"small", b"s" * limits.INLINE_BYTES_MAX)
    assert len(store.commits) == 2
    gets = store.gets
    assert len(await read_file(fs, ino)) == limits.INLINE_BYTES_MAX
    assert store.gets == gets


async def test_a_read_of_more_chunks_than_one_call_can_ask_for(fs: Filesystem) -> None:
    ino = await make_file(fs, b"sparse")
    async with opened(fs, ino) as fh:
        end = 1100 * CHUNK_BYTES
        await fs.write(fh, end - 1, b"x")
        await fs.write(fh, 0, b"y")
        await fs.flush(fh)
        found = await fs.read(fh, 0, end)
    assert (len(found), found[:1], found[-1:]) == (end, b"y", b"x")
    assert found.count(0) == end - 2


async def test_a_read_beyond_what_is_dirty(fs: Filesystem, ino: Ino) -> None:
    async with opened(fs, ino) as fh:
        await fs.write(fh, 10, b"dirty")
        assert await fs.read(fh, 15, 10) == b""
        assert await fs.read(fh, 14, 10) == b"y"


async def test_devices_are_the_kernels(fs: Filesystem) -> None:
    made = await fs.mknod(ROOT_INO, b"fifo", stat.S_IFIFO | 0o644, 0, ROOT)
    with refused(errno.ENXIO):
        await fs.open(made.ino, os.O_RDWR)


async def test_an_open_that_cannot_cut_is_none(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    store.before_commit.append(failing(EngineError("the disk is gone")))
    with refused(errno.EIO):
        await fs.open(ino, os.O_RDWR | os.O_TRUNC)
    assert fs.statistics().handles == 0
    assert await read_file(fs, ino) == b"0123456789"
