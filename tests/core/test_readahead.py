"""Reading ahead: sequential readers wait less, and nobody reads what is not so any more."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from aspenfs.chunk_reader import Readahead
from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES, READAHEAD_BYTES_MAX
from aspenfs.types import AttributeChanges, Ino
from aspenkv.errors import EngineError
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import Gate, SteeredClient, failing, make_file, opened

STEP = 128 * 1024
SIZE = 4 * 2**20 + 1000
CONTENT = os.urandom(SIZE)


# --- what is asked for ----------------------------------------------------------------------------


def test_a_sequence_is_read_ahead_further_and_further() -> None:
    readahead = Readahead()
    ranges = [readahead.advance(at, at + STEP, SIZE) for at in range(0, SIZE, STEP)]
    assert ranges[0] is None  # one read at the start is no sequence
    asked = [each for each in ranges if each is not None]
    assert asked[0] == (2 * STEP, 3 * STEP)
    assert [start for start, _ in asked[1:]] == [stop for _, stop in asked[:-1]]
    assert asked[-1][1] == SIZE
    assert max(stop - start for start, stop in asked) <= READAHEAD_BYTES_MAX
    assert len(asked) < len(ranges) / 2  # fewer and larger than the reads


def test_a_jump_ends_a_sequence() -> None:
    readahead = Readahead()
    for at in range(0, 4 * STEP, STEP):
        readahead.advance(at, at + STEP, 2**40)
    far = 2**30
    assert readahead.advance(far, far + STEP, 2**40) is None
    assert readahead.advance(far + STEP, far + 2 * STEP, 2**40) == (far + 2 * STEP, far + 3 * STEP)


def test_small_files_are_not_read_ahead() -> None:
    readahead = Readahead()
    for at in range(0, STEP, 4096):
        assert readahead.advance(at, at + 4096, STEP) is None


@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(1, STEP)), max_size=30))
def test_no_range_is_asked_for_twice_in_a_row_or_beyond_the_end(
    reads: list[tuple[int, int]],
) -> None:
    readahead = Readahead()
    for offset, length in reads:
        end = min(offset + length, SIZE)
        asked = readahead.advance(offset, end, SIZE)
        if asked is not None:
            start, stop = asked
            assert 0 <= start < stop <= SIZE
            assert stop - end <= 2 * READAHEAD_BYTES_MAX
            again = readahead.advance(offset, end, SIZE)
            assert again is None or again[0] >= stop


# --- what is read ---------------------------------------------------------------------------------


@pytest.fixture
def far_store(service: Service) -> SteeredClient:
    """The client of ``far``."""
    return SteeredClient(service)


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"file", CONTENT)


@pytest.fixture
async def far(ino: Ino, far_store: SteeredClient, open_fs: Open) -> AsyncIterator[Filesystem]:
    """A mount that reads ahead."""
    del ino  # made first
    async with open_fs(far_store, readahead=True) as far:
        yield far


async def test_a_sequential_reader_waits_for_few_reads(
    far: Filesystem, far_store: SteeredClient, ino: Ino
) -> None:
    waited = 0
    async with opened(far, ino) as fh:
        found = b""
        while True:
            gets = far_store.gets
            part = await far.read(fh, len(found), STEP)
            if not part:
                break
            waited += far_store.gets > gets
            found += part
            await wait_all_tasks_blocked()
    assert found == CONTENT
    assert waited <= 3


async def test_a_reader_waits_for_what_is_on_its_way(
    far: Filesystem, far_store: SteeredClient, ino: Ino
) -> None:
    gate = Gate()
    async with opened(far, ino) as fh:
        await far.read(fh, 0, STEP)
        await far.read(fh, STEP, STEP)
        far_store.after_get.append(gate)
        await gate.reached.wait()
        gets = far_store.gets
        found: list[bytes] = []

        async def read() -> None:
            found.append(await far.read(fh, 2 * STEP, STEP))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            assert found == []
            gate.open()
        assert found == [CONTENT[2 * STEP : 3 * STEP]]
        assert far_store.gets <= gets + 1  # which reads ahead again


@pytest.mark.parametrize("writer", ["far", "fs"])
async def test_what_was_read_ahead_before_a_change_is_not_used(
    far: Filesystem, fs: Filesystem, far_store: SteeredClient, ino: Ino, writer: str
) -> None:
    gate = Gate()
    client = far if writer == "far" else fs
    async with opened(far, ino) as fh, opened(client, ino) as other:
        await far.read(fh, 0, STEP)
        await far.read(fh, STEP, STEP)
        far_store.after_get.append(gate)  # the store has answered with the old bytes
        await gate.reached.wait()
        await client.write(other, 2 * STEP + 5, b"NEW")
        await client.flush(other)
        await wait_all_tasks_blocked()
        gate.open()
        found = await far.read(fh, 2 * STEP, STEP)
        assert found[:8] == CONTENT[2 * STEP : 2 * STEP + 5] + b"NEW"


async def test_what_was_read_ahead_and_then_changed_is_read_again(
    far: Filesystem, fs: Filesystem, ino: Ino
) -> None:
    async with opened(far, ino) as fh, opened(fs, ino) as other:
        await far.read(fh, 0, STEP)
        await far.read(fh, STEP, STEP)
        await wait_all_tasks_blocked()
        await fs.write(other, 2 * STEP, b"NEW")
        await fs.flush(other)
        await fs.setattr(ino, AttributeChanges(size=2 * STEP + 10))
        await wait_all_tasks_blocked()
        assert await far.read(fh, 2 * STEP, STEP) == b"NEW" + CONTENT[2 * STEP + 3 : 2 * STEP + 10]


async def test_a_read_ahead_that_fails_harms_nobody(
    far: Filesystem, far_store: SteeredClient, ino: Ino
) -> None:
    async with opened(far, ino) as fh:
        await far.read(fh, 0, STEP)
        await far.read(fh, STEP, STEP)
        far_store.before_get.append(failing(EngineError("the disk is gone")))
        await wait_all_tasks_blocked()
        assert await far.read(fh, 2 * STEP, STEP) == CONTENT[2 * STEP : 3 * STEP]


async def test_a_sparse_file_is_read_ahead_as_zeros(far: Filesystem) -> None:
    ino = await make_file(far, b"sparse")
    async with opened(far, ino) as fh:
        await far.write(fh, 20 * CHUNK_BYTES, b"end")
        await far.flush(fh)
        for at in range(0, 20 * CHUNK_BYTES, STEP):
            assert await far.read(fh, at, STEP) == bytes(STEP)
            await wait_all_tasks_blocked()
        assert await far.read(fh, 20 * CHUNK_BYTES, STEP) == b"end"
