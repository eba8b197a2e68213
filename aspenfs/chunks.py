"""Byte ranges of a file as slices of its chunks, and what those chunks allocate. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class ChunkSlice(NamedTuple):
    """``length`` bytes at ``chunk_offset`` of a chunk, which are at ``file_offset`` of the file."""

    chunk_index: int
    chunk_offset: int
    file_offset: int
    length: int


def slices(offset: int, length: int, chunk_bytes: int) -> Iterator[ChunkSlice]:
    """Cut ``[offset, offset + length)`` at the chunk borders, in order; nothing for length 0."""
    end = offset + length
    while offset < end:
        chunk_index, chunk_offset = divmod(offset, chunk_bytes)
        part = min(chunk_bytes - chunk_offset, end - offset)
        yield ChunkSlice(chunk_index, chunk_offset, offset, part)
        offset += part


def chunk_count(size: int, chunk_bytes: int) -> int:
    """Return how many chunks a file of ``size`` bytes without holes has."""
    return -(-size // chunk_bytes)


def extent_bytes(chunk_index: int, size: int, chunk_bytes: int) -> int:
    """Return how many bytes of a file of ``size`` bytes fall into a chunk; 0 beyond its end.

    A chunk that is present allocates them all, even where it is short.
    """
    return max(0, min(chunk_bytes, size - chunk_index * chunk_bytes))
