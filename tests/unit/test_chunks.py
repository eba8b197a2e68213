from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aspenfs.chunks import ChunkSlice, chunk_count, extent_bytes, slices

CHUNK_BYTES = st.integers(1, 100)
SIZES = st.integers(0, 1000)


def test_a_range_is_cut_at_the_chunk_borders() -> None:
    assert list(slices(3, 9, 4)) == [
        ChunkSlice(0, 3, 3, 1),
        ChunkSlice(1, 0, 4, 4),
        ChunkSlice(2, 0, 8, 4),
    ]


def test_an_empty_range_has_no_slices() -> None:
    assert list(slices(5, 0, 4)) == []


@given(offset=SIZES, length=SIZES, chunk_bytes=CHUNK_BYTES)
def test_slices_cover_the_range_once_and_in_order(
    offset: int, length: int, chunk_bytes: int
) -> None:
    position = offset
    for part in slices(offset, length, chunk_bytes):
        assert part.file_offset == position
        assert part.chunk_index * chunk_bytes + part.chunk_offset == position
        assert 0 < part.length <= chunk_bytes - part.chunk_offset
        position += part.length
    assert position == offset + length


def test_slices_at_the_end_of_the_largest_file() -> None:
    assert list(slices(2**63 - 2, 1, 65536)) == [
        ChunkSlice(2**47 - 1, 65534, 2**63 - 2, 1),
    ]


@given(size=SIZES, chunk_bytes=CHUNK_BYTES)
def test_the_chunks_of_a_full_file_hold_it_all(size: int, chunk_bytes: int) -> None:
    count = chunk_count(size, chunk_bytes)
    assert count == len(list(slices(0, size, chunk_bytes)))
    extents = [extent_bytes(index, size, chunk_bytes) for index in range(count)]
    assert sum(extents) == size
    assert all(extents)


@given(size=SIZES, chunk_bytes=CHUNK_BYTES, beyond=SIZES)
def test_a_chunk_beyond_the_end_allocates_nothing(size: int, chunk_bytes: int, beyond: int) -> None:
    assert extent_bytes(chunk_count(size, chunk_bytes) + beyond, size, chunk_bytes) == 0
