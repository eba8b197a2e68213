"""SEEK_DATA and SEEK_HOLE: exact to the chunk, with what is dirty, at a bounded cost."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenfs.errors import FilesystemError
from aspenfs.file_ranges import KEEP_SIZE, PUNCH_HOLE
from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES
from aspenfs.types import AttributeChanges, FileHandle, Ino
from aspenkv.contract import Copy, DeleteRange
from aspenkv.limits import COMMIT_OPS_MAX, SCAN_ENTRIES_MAX
from tests.core.sparse_model import lengths, places, two_files
from tests.core.steering import SteeredClient, calls, make_file, opened, refused, stored_chunks

PETABYTE = 2**50


async def extents(fs: Filesystem, ino: Ino, fh: FileHandle) -> list[tuple[int, int]]:
    """Return where data is, as cp and tar look for it."""
    found: list[tuple[int, int]] = []
    end = 0
    while True:
        try:
            start = await fs.lseek(ino, fh, end, os.SEEK_DATA)
        except FilesystemError as error:
            if error.errno != errno.ENXIO:
                raise
            return found
        end = await fs.lseek(ino, fh, start, os.SEEK_HOLE)
        assert start < end
        found.append((start, end))


class Step(NamedTuple):
    """A write; without a length, a truncation; or a hole. Perhaps a commit after it."""

    is_hole: bool
    at: int
    length: int
    commits: bool


steps = st.builds(
    Step, st.booleans(), places, st.one_of(lengths, lengths, st.just(0)), st.booleans()
)


@given(st.lists(steps, max_size=10))
async def test_what_is_no_zero_is_data_and_holes_are_what_is_not_stored(steps: list[Step]) -> None:
    async with two_files() as files:
        fs, (ino, fh, model) = files.fs, files.first
        for is_hole, at, length, commits in steps:
            if not length:
                await files.truncate(files.first, at)
            elif is_hole:
                await fs.fallocate(ino, fh, PUNCH_HOLE | KEEP_SIZE, at, length)
                cut = min(at + length, len(model))
                model[at:cut] = bytes(max(0, cut - at))
            else:
                await files.write(files.first, at, b"x" * length)
            if commits:
                await fs.flush(fh)
            before = await extents(fs, ino, fh)
            rest = bytearray(model)
            for start, end in before:
                rest[start:end] = bytes(end - start)
            assert not any(rest), "data lies in what is said to be a hole"
            await fs.flush(fh)
            assert await extents(fs, ino, fh) == before
            stored = await stored_chunks(fs, ino)
            if stored:
                chunks = [index for index in range(10) if covers(before, index, len(model))]
                assert chunks == sorted(stored)


def covers(found: list[tuple[int, int]], index: int, size: int) -> bool:
    start, end = index * CHUNK_BYTES, min((index + 1) * CHUNK_BYTES, size)
    return start < end and any(low <= start and end <= high for low, high in found)


async def test_within_data_and_holes_the_offset_itself_is_found(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"x" * CHUNK_BYTES)
    await fs.setattr(ino, AttributeChanges(size=3 * CHUNK_BYTES))
    async with opened(fs, ino, os.O_RDONLY) as fh:
        assert await fs.lseek(ino, fh, 5, os.SEEK_DATA) == 5
        assert await fs.lseek(ino, fh, 5, os.SEEK_HOLE) == CHUNK_BYTES
        assert await fs.lseek(ino, fh, CHUNK_BYTES + 5, os.SEEK_HOLE) == CHUNK_BYTES + 5
        with refused(errno.ENXIO):
            await fs.lseek(ino, fh, CHUNK_BYTES, os.SEEK_DATA)
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            for offset in (-1, 3 * CHUNK_BYTES, PETABYTE):
                with refused(errno.ENXIO):
                    await fs.lseek(ino, fh, offset, whence)
        with refused(errno.EINVAL):
            await fs.lseek(ino, fh, 0, os.SEEK_SET)


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
async def test_a_file_without_holes_ends_in_one(
    fs: Filesystem, store: SteeredClient, size: int
) -> None:
    ino = await make_file(fs, b"file", b"x" * size)
    async with opened(fs, ino, os.O_RDONLY) as fh:
        with calls(store, 0):
            assert await fs.lseek(ino, fh, 0, os.SEEK_HOLE) == size


async def test_a_petabyte_costs_what_it_holds(fs: Filesystem, store: SteeredClient) -> None:
    ino = await make_file(fs, b"file")
    async with opened(fs, ino) as fh:
        await fs.write(fh, PETABYTE, b"x")
        await fs.flush(fh)
        with calls(store, 2):
            assert await fs.lseek(ino, fh, 0, os.SEEK_DATA) == PETABYTE
            assert await fs.lseek(ino, fh, 0, os.SEEK_HOLE) == 0


async def test_what_is_appended_and_not_committed_is_data(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file")
    await fs.setattr(ino, AttributeChanges(size=CHUNK_BYTES))
    async with opened(fs, ino, os.O_RDWR | os.O_APPEND) as fh:
        await fs.write(fh, 0, b"appended")
        assert await extents(fs, ino, fh) == [(CHUNK_BYTES, CHUNK_BYTES + 8)]


async def test_a_long_run_of_data_is_walked_page_by_page(
    fs: Filesystem, store: SteeredClient
) -> None:
    """The chunks are put past the filesystem, which would take long to write as many."""
    ino = await make_file(fs, b"file")
    count = 2 * SCAN_ENTRIES_MAX + 5
    async with opened(fs, ino) as fh:
        await fs.write(fh, (count + 1) * CHUNK_BYTES, b"x")
        await fs.flush(fh)
        source = fs.keys.chunk(ino, count + 1)
        copies = [Copy(fs.keys.chunk(ino, index), source) for index in range(count)]
        for first in range(0, count, COMMIT_OPS_MAX):
            await store.commit([], copies[first : first + COMMIT_OPS_MAX])
        with calls(store, 3):
            assert await fs.lseek(ino, fh, 7, os.SEEK_HOLE) == count * CHUNK_BYTES
        await store.commit([], [DeleteRange(fs.keys.chunk(ino, 0), fs.keys.chunk(ino, count))])
