"""Bytes written but not yet committed: disjoint extents, the newest write wins. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from aspenfs import limits

Buffer = bytes | bytearray | memoryview


class Extents:
    """A sparse buffer of file bytes, ordered by offset.

    Neighbouring small writes are joined, so that a program that writes byte by byte does not make a
    list of bytes. What :meth:`take` hands out is never changed afterwards.
    """

    __slots__ = ("_parts", "_starts", "byte_count")

    def __init__(self) -> None:
        """Start empty."""
        self._starts: list[int] = []
        self._parts: list[Buffer] = []
        self.byte_count = 0

    def __bool__(self) -> bool:
        """Return whether any byte is held."""
        return bool(self._starts)

    def __len__(self) -> int:
        """Return how many extents are held."""
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, Buffer]]:
        """Iterate over (offset, bytes) in order."""
        return zip(self._starts, self._parts, strict=True)

    @property
    def end(self) -> int:
        """The offset after the last byte held; 0 if none is."""
        return self._starts[-1] + len(self._parts[-1]) if self._starts else 0

    def write(self, offset: int, data: Buffer) -> None:
        """Hold ``data`` at ``offset``, over what was there."""
        if not data:
            return
        end = self.end
        if offset >= end:
            self._append(offset, data, joins=offset == end and end > 0)
            return
        stop = offset + len(data)
        first = bisect_right(self._starts, offset) - 1
        if first < 0 or self._starts[first] + len(self._parts[first]) <= offset:
            first += 1
        last = bisect_right(self._starts, stop - 1)
        starts: list[int] = [offset]
        parts: list[Buffer] = [data]
        if first < last:
            start, part = self._starts[first], self._parts[first]
            if start < offset:
                starts.insert(0, start)
                parts.insert(0, bytes(part[: offset - start]))
            start, part = self._starts[last - 1], self._parts[last - 1]
            if start + len(part) > stop:
                starts.append(stop)
                parts.append(bytes(part[stop - start :]))
        self.byte_count -= sum(len(part) for part in self._parts[first:last])
        self.byte_count += sum(len(part) for part in parts)
        self._starts[first:last] = starts
        self._parts[first:last] = parts

    def _append(self, offset: int, data: Buffer, *, joins: bool) -> None:
        self.byte_count += len(data)
        if joins and len(self._parts[-1]) + len(data) <= limits.CHUNK_BYTES:
            last = self._parts[-1]
            if isinstance(last, bytearray):
                last += data
            else:
                self._parts[-1] = bytearray(last) + data
            return
        self._starts.append(offset)
        self._parts.append(data)

    def within(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """Return copies of what is held in ``[start, end)``, as (offset, bytes)."""
        found: list[tuple[int, bytes]] = []
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._starts) and self._starts[index] < end:
            offset, part = self._starts[index], self._parts[index]
            low, high = max(start, offset), min(end, offset + len(part))
            if low < high:
                found.append((low, bytes(part[low - offset : high - offset])))
            index += 1
        return found

    def take(self, bytes_max: int, parts_max: int, *, whole_chunks: bool) -> Extents:
        """Remove and return a batch from the front, of bounded bytes and parts.

        A batch that stops inside a run of bytes stops at a chunk border if it can, so that no chunk
        is written twice; with ``whole_chunks`` it also leaves the last, unfinished chunk of a run.
        """
        taken = Extents()
        while self._starts and len(taken._starts) < parts_max:
            room = bytes_max - taken.byte_count
            if room <= 0:
                break
            offset, part = self._starts[0], self._parts[0]
            del self._starts[0], self._parts[0]
            self.byte_count -= len(part)
            if isinstance(part, bytearray):
                part = bytes(part)
            if len(part) > room:
                self._push_front(offset + room, memoryview(part)[room:])
                part = memoryview(part)[:room]
            taken._starts.append(offset)
            taken._parts.append(part)
            taken.byte_count += len(part)
        goes_on = bool(self._starts) and self._starts[0] == taken.end
        if taken and (goes_on or whole_chunks):
            self._return_unfinished_chunk(taken, whole_chunks=whole_chunks)
        return taken

    def _push_front(self, offset: int, part: Buffer) -> None:
        self._starts.insert(0, offset)
        self._parts.insert(0, part)
        self.byte_count += len(part)

    def _return_unfinished_chunk(self, taken: Extents, *, whole_chunks: bool) -> None:
        border = taken.end - taken.end % limits.CHUNK_BYTES
        if border <= taken._starts[0] and not whole_chunks:
            return
        while taken._starts and taken.end > border:
            offset, part = taken._starts.pop(), taken._parts.pop()
            taken.byte_count -= len(part)
            keep = max(0, border - offset)
            self._push_front(offset + keep, memoryview(part)[keep:])
            if keep:
                taken._starts.append(offset)
                taken._parts.append(memoryview(part)[:keep])
                taken.byte_count += keep

    def under(self, newer: Extents) -> Extents:
        """Return these bytes with ``newer`` over them; neither is to be used afterwards."""
        for offset, part in newer:
            self.write(offset, part)
        return self


def overlay(buffer: bytearray, buffer_offset: int, parts: list[tuple[int, bytes]]) -> None:
    """Copy parts, each within the buffer, into a buffer that starts at ``buffer_offset``."""
    for offset, part in parts:
        low = offset - buffer_offset
        buffer[low : low + len(part)] = part
