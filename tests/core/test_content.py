"""Where the bytes of a file are, and what it is said to allocate: inline, chunks and holes."""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.limits import CHUNK_BYTES, INLINE_BYTES_MAX
from aspenfs.types import ROOT_INO, AttributeChanges, Clock, Ino
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from tests.core.steering import (
    ROOT,
    SteeredClient,
    WallClock,
    check,
    chunk_allocation,
    make_file,
    opened,
    read_file,
    stored_chunks,
)

TERABYTE = 2**40


async def write(fs: Filesystem, ino: Ino, offset: int, data: bytes) -> None:
    """Write and commit."""
    async with opened(fs, ino, os.O_WRONLY) as fh:
        await fs.write(fh, offset, data)


async def truncate(fs: Filesystem, ino: Ino, size: int) -> None:
    await fs.setattr(ino, AttributeChanges(size=size))


async def test_a_small_file_has_no_chunks(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"x" * INLINE_BYTES_MAX)
    assert await stored_chunks(fs, ino) == {}
    assert (await fs.getattr(ino)).allocated_bytes == INLINE_BYTES_MAX


async def test_a_file_that_outgrows_its_inode_moves_to_chunks(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"x" * INLINE_BYTES_MAX)
    await write(fs, ino, INLINE_BYTES_MAX, b"y")
    assert await stored_chunks(fs, ino) == {0: b"x" * INLINE_BYTES_MAX + b"y"}
    assert (await fs.getattr(ino)).allocated_bytes == INLINE_BYTES_MAX + 1


async def test_a_far_write_to_an_empty_file_makes_one_chunk(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file")
    await write(fs, ino, 5 * CHUNK_BYTES, b"far")
    assert await stored_chunks(fs, ino) == {5: b"far"}
    shown = await fs.getattr(ino)
    assert (shown.size, shown.allocated_bytes) == (5 * CHUNK_BYTES + 3, 3)


async def test_a_far_write_to_a_small_file_keeps_its_bytes(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"near")
    await write(fs, ino, 5 * CHUNK_BYTES, b"far")
    assert await stored_chunks(fs, ino) == {0: b"near", 5: b"far"}
    assert (await fs.getattr(ino)).allocated_bytes == CHUNK_BYTES + 3
    assert (await read_file(fs, ino)) == b"near" + bytes(5 * CHUNK_BYTES - 4) + b"far"


async def test_a_file_of_a_terabyte_costs_what_it_holds(
    fs: Filesystem, store: SteeredClient
) -> None:
    ino = await make_file(fs, b"file", b"first")
    await write(fs, ino, TERABYTE - 4, b"last")
    assert len(await stored_chunks(fs, ino)) == 2
    await truncate(fs, ino, TERABYTE // 2)
    assert (await fs.getattr(ino)).allocated_bytes == CHUNK_BYTES
    await truncate(fs, ino, TERABYTE)
    async with opened(fs, ino) as fh:
        assert await fs.read(fh, TERABYTE - 10, 100) == bytes(10)
        assert await fs.read(fh, 0, 6) == b"first\x00"
    store.commits.clear()
    await fs.unlink(ROOT_INO, b"file")
    assert len(store.commits) == 1


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        INLINE_BYTES_MAX,
        INLINE_BYTES_MAX + 1,
        CHUNK_BYTES - 1,
        CHUNK_BYTES,
        CHUNK_BYTES + 1,
        3 * CHUNK_BYTES,
        TERABYTE,
    ],
)
@pytest.mark.parametrize("before", [0, 10, INLINE_BYTES_MAX, CHUNK_BYTES, 2 * CHUNK_BYTES + 100])
async def test_a_new_size_cuts_or_adds_zeros(fs: Filesystem, before: int, size: int) -> None:
    content = os.urandom(before)
    ino = await make_file(fs, b"file", content)
    await truncate(fs, ino, size)
    shown = await fs.getattr(ino)
    assert shown.size == size
    async with opened(fs, ino) as fh:
        found = await fs.read(fh, 0, 4 * CHUNK_BYTES)
    assert found == content[:size].ljust(min(size, 4 * CHUNK_BYTES), b"\x00")
    if not await stored_chunks(fs, ino):
        assert shown.allocated_bytes in (0, size)
    else:
        assert shown.allocated_bytes == await chunk_allocation(fs, ino)


async def test_bytes_that_were_cut_off_do_not_come_back(fs: Filesystem) -> None:
    for size in (100, CHUNK_BYTES + 100):
        ino = await make_file(fs, b"%d" % size, b"x" * 2 * CHUNK_BYTES)
        await truncate(fs, ino, size)
        await truncate(fs, ino, 2 * CHUNK_BYTES)
        expected = (b"x" * size).ljust(2 * CHUNK_BYTES, b"\x00")
        assert await read_file(fs, ino) == expected


@pytest.mark.parametrize("before", [0, 10, INLINE_BYTES_MAX, CHUNK_BYTES + 5, 2 * CHUNK_BYTES])
@pytest.mark.parametrize("at", [0, 10, 2 * CHUNK_BYTES, 5 * CHUNK_BYTES + 7, TERABYTE])
@pytest.mark.parametrize("length", [1, CHUNK_BYTES])
async def test_what_is_not_committed_yet_is_said_to_allocate_what_it_will(
    fs: Filesystem, before: int, at: int, length: int
) -> None:
    ino = await make_file(fs, b"file", b"x" * before)
    async with opened(fs, ino) as fh:
        await fs.write(fh, at, b"y" * length)
        dirty = await fs.getattr(ino)
        await fs.flush(fh)
        assert (await fs.getattr(ino)).allocated_bytes == dirty.allocated_bytes


async def test_a_cut_to_nothing_makes_a_small_file_again(fs: Filesystem) -> None:
    ino = await make_file(fs, b"file", b"x" * 2 * CHUNK_BYTES)
    await truncate(fs, ino, 0)
    await write(fs, ino, 0, b"small")
    assert await stored_chunks(fs, ino) == {}


class Step(NamedTuple):
    """A write of bytes at a place, or with no bytes a truncation to it; then perhaps a commit."""

    at: int
    length: int
    commits: bool


BORDERS = (0, 1, INLINE_BYTES_MAX, CHUNK_BYTES, 2 * CHUNK_BYTES, 5 * CHUNK_BYTES)
places = st.builds(
    lambda border, more: max(0, border + more), st.sampled_from(BORDERS), st.integers(-2, 2)
)
lengths = st.sampled_from((0, 0, 1, 3, INLINE_BYTES_MAX, CHUNK_BYTES - 1, CHUNK_BYTES + 1))


@given(st.lists(st.builds(Step, places, lengths, st.booleans()), max_size=12))
async def test_any_sequence_of_writes_and_cuts(steps: list[Step]) -> None:
    model = bytearray()
    async with open_embedded(MemoryEngine()) as service:
        store = SteeredClient(service)
        clock = Clock(trio.current_time, WallClock())
        async with open_filesystem(store, owner=ROOT, clock=clock) as fs:
            fh, made = await fs.create(ROOT_INO, b"file", 0o644, os.O_RDWR, ROOT)
            for number, (at, length, commits) in enumerate(steps, start=1):
                if length:
                    data = bytes((number,)) * length
                    model.extend(bytes(max(0, at - len(model))))
                    await fs.write(fh, at, data)
                    model[at : at + length] = data
                else:
                    await truncate(fs, made.ino, at)
                    del model[at:]
                    model.extend(bytes(at - len(model)))
                if commits:
                    await fs.flush(fh)
                assert (await fs.getattr(made.ino)).size == len(model)
                assert await fs.read(fh, 0, len(model) + 1) == model
                await check(store, fs)  # allocated_bytes and the usage counters among the rest
            await fs.release(fh)
            assert await read_file(fs, made.ino) == model
        await check(store, fs)
