"""Reads chunks: the read cache first, what is on its way next, then the store; and reads ahead."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import trio

from aspenfs import limits
from aspenfs.cache import Caches
from aspenfs.chunks import slices
from aspenfs.keys import Keys
from aspenfs.types import Ino
from aspenkv.contract import KeyValue
from aspenkv.errors import AspenKvError
from aspenkv.limits import GET_KEYS_MAX

log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """Bytes of a file, as parts to join; holes are zeros.

    ``has_new_holes``: chunks were missing or short when the store was asked just now. If the inode
    has not changed since it was read they are holes, else others may have removed them.
    """

    parts: list[bytes | memoryview]
    has_new_holes: bool


class Readahead:
    """How far one open file has been read in sequence, and how far ahead was asked for."""

    __slots__ = ("asked_end", "next_offset", "window_bytes")

    def __init__(self) -> None:
        """Start with no reads seen."""
        self.next_offset = 0
        self.asked_end = 0
        self.window_bytes = 0

    def advance(self, offset: int, end: int, size: int) -> tuple[int, int] | None:
        """Note a read of ``[offset, end)``; return the range to read ahead, None for none.

        The kernel asks for pieces of one sequential read in no fixed order, so a read within a
        window of the expected place goes on with the sequence. A first read at 0 does not start it.
        """
        reach = limits.READAHEAD_BYTES_MAX
        if not self.next_offset - reach <= offset <= self.next_offset + reach or end <= reach // 8:
            self.next_offset, self.asked_end, self.window_bytes = end, end, 0
            return None
        self.next_offset = max(self.next_offset, end)
        self.window_bytes = min(max(2 * self.window_bytes, 2 * limits.CHUNK_BYTES), reach)
        start = max(self.asked_end, self.next_offset)
        stop = min(size, self.next_offset + self.window_bytes)
        # Few large ranges rather than many small ones, but the end of the file is never left over.
        if start >= stop or (stop < size and stop - start < self.window_bytes // 2):
            return None
        self.asked_end = stop
        return start, stop


class ChunkReader:
    """Reads byte ranges of chunked files.

    Args:
        readahead: whether to read ahead; worthwhile where a read waits for a network.
    """

    def __init__(
        self, kv: KeyValue, keys: Keys, caches: Caches, nursery: trio.Nursery, *, readahead: bool
    ) -> None:
        """Take the store, the caches and the nursery for reads ahead."""
        self._kv = kv
        self._keys = keys
        self._cache = caches.read
        self._nursery = nursery
        self._readahead = readahead
        self._on_the_way: dict[bytes, trio.Event] = {}

    async def read(
        self, ino: Ino, offset: int, end: int, size: int, readahead: Readahead
    ) -> Stored:
        """Return the bytes of ``[offset, end)``.

        ``end`` is at most ``size``, the size of the file.
        """
        keys = self._keys
        parts = list(slices(offset, end - offset, limits.CHUNK_BYTES))
        found, fetched = await self._chunks([keys.chunk(ino, part.chunk_index) for part in parts])
        if self._readahead:
            self._start_readahead(ino, offset, end, size, readahead)
        buffers: list[bytes | memoryview] = []
        has_new_holes = False
        for position, (part, chunk) in enumerate(zip(parts, found, strict=True)):
            if part.chunk_offset == 0 and part.length == len(chunk):
                buffers.append(chunk)
                continue
            data = memoryview(chunk)[part.chunk_offset : part.chunk_offset + part.length]
            buffers.append(data)
            if len(data) < part.length:
                buffers.append(bytes(part.length - len(data)))
                has_new_holes |= position in fetched
        return Stored(buffers, has_new_holes)

    async def _chunks(self, keys: Sequence[bytes]) -> tuple[list[bytes], Sequence[int]]:
        """Return chunks by key, b"" for each hole, and which of them the store was asked for."""
        cache = self._cache
        found: list[bytes | None] = []
        missing: list[int] = []
        for position, key in enumerate(keys):
            chunk = cache.get(key)
            if chunk is None and key in self._on_the_way:
                await self._on_the_way[key].wait()
                chunk = cache.get(key)
            found.append(chunk)
            if chunk is None:
                missing.append(position)
        if missing:
            fetched = await self._fetch([keys[position] for position in missing])
            for position, chunk in zip(missing, fetched, strict=True):
                found[position] = chunk
        return [b"" if chunk is None else chunk for chunk in found], missing

    async def _fetch(self, keys: Sequence[bytes]) -> list[bytes]:
        chunks: list[bytes] = []
        for first in range(0, len(keys), GET_KEYS_MAX):
            batch = keys[first : first + GET_KEYS_MAX]
            token = self._cache.begin_fill()
            found = await self._kv.get(batch, bulk=True)
            for key, versioned in zip(batch, found, strict=True):
                value = b"" if versioned is None else versioned.value
                self._cache.fill(key, value, 0 if versioned is None else versioned.revision, token)
                chunks.append(value)
        return chunks

    def _start_readahead(
        self, ino: Ino, offset: int, end: int, size: int, readahead: Readahead
    ) -> None:
        ahead = readahead.advance(offset, end, size)
        if ahead is None:
            return
        keys = [
            key
            for part in slices(ahead[0], ahead[1] - ahead[0], limits.CHUNK_BYTES)
            if (key := self._keys.chunk(ino, part.chunk_index)) not in self._on_the_way
        ]
        for key in keys:
            self._on_the_way[key] = trio.Event()
        self._nursery.start_soon(self._read_ahead, keys)

    async def _read_ahead(self, keys: Sequence[bytes]) -> None:
        try:
            await self._fetch([key for key in keys if self._cache.get(key) is None])
        except AspenKvError as error:
            log.debug("a read ahead failed: %s; the read itself will say so", error)
        finally:
            for key in keys:
                self._on_the_way.pop(key).set()
