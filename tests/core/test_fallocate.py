"""fallocate: sizes, holes and zeros, whatever the file is stored as, and against other changes."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from aspenfs.file_ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES, FILE_BYTES_MAX, INLINE_BYTES_MAX
from aspenfs.types import AttributeChanges
from aspenkv.contract import DeleteRange, Patch
from tests.core.sparse_model import lengths, places, two_files
from tests.core.steering import (
    Gate,
    SteeredClient,
    make_file,
    opened,
    read_file,
    refused,
    stored_chunks,
)

PUNCH = PUNCH_HOLE | KEEP_SIZE
MODES = (0, KEEP_SIZE, PUNCH, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)
PETABYTE = 2**50


class Step(NamedTuple):
    """An fallocate; without a mode, a write; without a length, a truncation. Perhaps a commit."""

    mode: int | None
    at: int
    length: int
    commits: bool


steps = st.builds(
    Step,
    st.sampled_from((None, *MODES)),
    places,
    st.one_of(lengths, lengths, st.just(0)),
    st.booleans(),
)


@given(st.lists(steps, max_size=10))
async def test_any_sequence(steps: list[Step]) -> None:
    async with two_files() as files:
        file = files.first
        for number, (mode, at, length, commits) in enumerate(steps, start=1):
            end = at + length
            if not length:
                await files.truncate(file, at)
            elif mode is None:
                await files.write(file, at, bytes((number,)) * length)
            else:
                await files.fs.fallocate(file.ino, file.fh, mode, at, length)
                if not mode & KEEP_SIZE:
                    file.model.extend(bytes(max(0, end - len(file.model))))
                if mode & (PUNCH_HOLE | ZERO_RANGE):
                    cut = min(end, len(file.model))
                    file.model[at:cut] = bytes(max(0, cut - at))
                    whole = range(-(-at // CHUNK_BYTES), end // CHUNK_BYTES)
                    assert not set(whole) & (await stored_chunks(files.fs, file.ino)).keys()
            if commits:
                await files.fs.flush(file.fh)
            await files.check()


async def test_a_punched_hole_is_not_allocated(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"x" * 4 * CHUNK_BYTES)
    async with opened(fs, ino) as fh:
        await fs.fallocate(ino, fh, PUNCH, CHUNK_BYTES - 1, 2 * CHUNK_BYTES + 2)
        assert (await fs.getattr(ino)).allocated_bytes == 2 * CHUNK_BYTES
        await fs.fallocate(ino, fh, PUNCH, 3 * CHUNK_BYTES, 10 * CHUNK_BYTES)
        assert (await fs.getattr(ino)).allocated_bytes == CHUNK_BYTES
    shown = await fs.getattr(ino)
    assert (shown.size, shown.allocated_bytes) == (4 * CHUNK_BYTES, CHUNK_BYTES)
    assert (await stored_chunks(fs, ino)).keys() == {0}


async def test_a_cut_off_last_chunk_is_punched_as_a_whole(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"x" * (CHUNK_BYTES + 5))
    async with opened(fs, ino) as fh:
        await fs.fallocate(ino, fh, PUNCH, CHUNK_BYTES, 5)
    assert (await stored_chunks(fs, ino)).keys() == {0}


async def test_what_is_allocated_is_a_size_and_nothing_stored(
    fs: Filesystem, store: SteeredClient
) -> None:
    ino = await make_file(fs, b"file", b"x" * 10)
    async with opened(fs, ino) as fh:
        await fs.fallocate(ino, fh, 0, 5, PETABYTE)
        shown = await fs.getattr(ino)
        assert (shown.size, shown.allocated_bytes) == (PETABYTE + 5, CHUNK_BYTES)
        before = store.calls
        await fs.fallocate(ino, fh, PUNCH, 0, PETABYTE)
        assert store.calls - before <= 4
        assert await fs.read(fh, 0, 10) == bytes(10)
        assert (await fs.getattr(ino)).allocated_bytes == 0


async def test_a_hole_is_not_filled_to_zero_its_edges(fs: Filesystem, store: SteeredClient) -> None:
    ino = await make_file(fs, b"file")
    async with opened(fs, ino) as fh:
        await fs.fallocate(ino, fh, 0, 0, 4 * CHUNK_BYTES)
        await fs.fallocate(ino, fh, ZERO_RANGE, 5, 3 * CHUNK_BYTES)
    assert await stored_chunks(fs, ino) == {}
    assert not [op for ops in store.commits for op in ops if isinstance(op, Patch | DeleteRange)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [0, INLINE_BYTES_MAX, 2 * CHUNK_BYTES])
async def test_it_is_a_change_of_the_file(fs: Filesystem, size: int, mode: int) -> None:
    ino = await make_file(fs, b"file", b"x" * size)
    before = await fs.getattr(ino)
    async with opened(fs, ino) as fh:
        await fs.fallocate(ino, fh, mode, 0, 10)
    after = await fs.getattr(ino)
    assert after.mtime_ns == after.ctime_ns > before.ctime_ns


async def test_set_user_id_goes_as_with_a_write(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"x")
    await fs.setattr(ino, AttributeChanges(mode=0o4755))
    async with opened(fs, ino) as fh:
        await fs.fallocate(ino, fh, PUNCH, 0, 1)
    assert (await fs.getattr(ino)).mode & 0o7777 == 0o4755
    fh = await fs.open(ino, os.O_RDWR, drops_set_id=True)
    await fs.fallocate(ino, fh, PUNCH, 0, 1)
    await fs.release(fh)
    assert (await fs.getattr(ino)).mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("mode", "offset", "length", "expected"),
    [
        (PUNCH_HOLE, 0, 1, errno.EOPNOTSUPP),
        (PUNCH | ZERO_RANGE, 0, 1, errno.EOPNOTSUPP),
        (0x08, 0, CHUNK_BYTES, errno.EOPNOTSUPP),  # FALLOC_FL_COLLAPSE_RANGE
        (0x20, 0, CHUNK_BYTES, errno.EOPNOTSUPP),  # FALLOC_FL_INSERT_RANGE
        (0x40, 0, 1, errno.EOPNOTSUPP),  # FALLOC_FL_UNSHARE_RANGE
        (0, -1, 1, errno.EINVAL),
        (0, 0, 0, errno.EINVAL),
        (0, 0, -1, errno.EINVAL),
        (0, FILE_BYTES_MAX, 1, errno.EFBIG),
    ],
)
async def test_refusals(fs: Filesystem, mode: int, offset: int, length: int, expected: int) -> None:
    ino = await make_file(fs, b"file", b"x")
    async with opened(fs, ino) as fh:
        with refused(expected):
            await fs.fallocate(ino, fh, mode, offset, length)
    assert await read_file(fs, ino) == b"x"


async def test_it_needs_a_handle_for_writing_of_that_file(fs: Filesystem) -> None:
    ino, other = await make_file(fs, b"file"), await make_file(fs, b"other")
    async with opened(fs, ino, os.O_RDONLY) as fh:
        with refused(errno.EBADF):
            await fs.fallocate(ino, fh, 0, 0, 1)
    async with opened(fs, ino) as fh:
        with refused(errno.EBADF):
            await fs.fallocate(other, fh, 0, 0, 1)


@pytest.mark.parametrize("size", [INLINE_BYTES_MAX, 3 * CHUNK_BYTES])
async def test_a_write_of_another_mount_is_zeroed_or_stays(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, size: int
) -> None:
    """The other mount writes as the punch is on its way: one is after the other."""
    ino = await make_file(fs, b"file", b"x" * size)
    gate = Gate()
    async with opened(fs, ino) as fh, opened(peer, ino) as peer_fh, trio.open_nursery() as nursery:
        store.before_commit.append(gate)
        nursery.start_soon(fs.fallocate, ino, fh, PUNCH, 0, size)
        await gate.reached.wait()
        await peer.write(peer_fh, size, b"grown")
        await peer.write(peer_fh, size // 2, b"y")
        await peer.flush(peer_fh)
        gate.open()
    assert await read_file(fs, ino) == bytes(size) + b"grown"
