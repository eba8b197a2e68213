"""fallocate(2), SEEK_DATA and SEEK_HOLE of lseek(2), and copy_file_range(2) on open files.

What is dirty of a file counts: a range is changed or copied after it is committed, and what is
sought may still wait for that.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from aspenfs import limits
from aspenfs.chunks import chunk_count
from aspenfs.data import Data, Handle
from aspenfs.errors import AspenError, FilesystemError
from aspenfs.inodes import Inodes
from aspenfs.metadata import Inode
from aspenfs.range_content import Range, RangeContent, Writer
from aspenfs.stored_chunks import StoredChunks
from aspenfs.types import Clock, FileHandle, Ino
from aspenkv.errors import AspenKvError
from aspenkv.limits import SCAN_ENTRIES_MAX

_CHUNK = limits.CHUNK_BYTES

# linux/falloc.h
KEEP_SIZE: Final = 0x01
PUNCH_HOLE: Final = 0x02
ZERO_RANGE: Final = 0x10

_MODES: Final = frozenset(
    {0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE}
)


class _Copy(NamedTuple):
    """What is to be copied where, of which some may be done already."""

    source: Handle
    source_fh: FileHandle
    span: Range
    target: Handle
    target_fh: FileHandle
    offset: int

    def after(self, byte_count: int) -> _Copy:
        """Return what is left when so many bytes are copied."""
        span = Range(self.span.start + byte_count, self.span.end)
        return self._replace(span=span, offset=self.offset + byte_count)


class FileRanges:
    """Ranges of the open files of one mount."""

    def __init__(
        self,
        data: Data,
        inodes: Inodes,
        content: RangeContent,
        stored: StoredChunks,
        clock: Clock,
    ) -> None:
        """Take the parts that the mount composed."""
        self._data = data
        self._inodes = inodes
        self._content = content
        self._stored = stored
        self._clock = clock

    async def fallocate(
        self, ino: Ino, fh: FileHandle, mode: int, offset: int, length: int
    ) -> None:
        """Change how a range is allocated; see Filesystem.fallocate."""
        handle = self._writable(ino, fh)
        if mode not in _MODES:
            raise FilesystemError(errno.EOPNOTSUPP)
        if offset < 0 or length <= 0:
            raise FilesystemError(errno.EINVAL)
        if offset + length > limits.FILE_BYTES_MAX:
            raise FilesystemError(errno.EFBIG)
        await self._data.when_clean(
            handle,
            lambda: self._content.allocate(
                ino,
                Range(offset, offset + length),
                self._writer(handle),
                zeroes=bool(mode & (PUNCH_HOLE | ZERO_RANGE)),
                grows=not mode & KEEP_SIZE,
            ),
        )

    async def seek(self, ino: Ino, fh: FileHandle, offset: int, whence: int) -> int:
        """Return the next data or hole; see Filesystem.lseek."""
        file = self._data.handle_of(ino, fh).file
        if whence not in {os.SEEK_DATA, os.SEEK_HOLE}:
            raise FilesystemError(errno.EINVAL)
        # Looked at before anything is awaited: what a commit stores then is found in the store.
        dirty = file.dirty_chunks()
        dirty_end = file.end
        inode = (await self._inodes.require(ino)).inode
        size = max(inode.size, dirty_end)
        if not 0 <= offset < size:
            raise FilesystemError(errno.ENXIO)
        if inode.inline:
            dirty.add(0)
        seek = self._seek_data if whence == os.SEEK_DATA else self._seek_hole
        index = await seek(ino, inode, dirty, offset // _CHUNK, chunk_count(size, _CHUNK))
        return min(max(offset, index * _CHUNK), size)

    async def _seek_data(
        self, ino: Ino, inode: Inode, dirty: set[int], index: int, count: int
    ) -> int:
        """Return the first chunk from ``index`` on that is no hole."""
        found = [dirty_index for dirty_index in dirty if dirty_index >= index]
        if inode.inline is None:
            found += await self._stored.first(ino, index, count, 1)
        if not found:
            raise FilesystemError(errno.ENXIO)
        return min(found)

    async def _seek_hole(
        self, ino: Ino, inode: Inode, dirty: set[int], index: int, count: int
    ) -> int:
        """Return the first chunk from ``index`` on that is a hole; ``count``: there is none."""
        if inode.inline is None and inode.allocated_bytes == inode.size:
            index = max(index, chunk_count(inode.size, _CHUNK))
        while index < count:
            stored: list[int] = []
            if inode.inline is None:
                stored = await self._stored.first(ino, index, count, SCAN_ENTRIES_MAX)
            data = dirty.union(stored)
            while index in data:
                index += 1
            if len(stored) < SCAN_ENTRIES_MAX or index <= stored[-1]:
                break
        return index

    async def copy(
        self,
        from_ino: Ino,
        from_fh: FileHandle,
        from_offset: int,
        to_ino: Ino,
        to_fh: FileHandle,
        to_offset: int,
        length: int,
        flags: int,
    ) -> int:
        """Copy bytes and holes; see Filesystem.copy_file_range."""
        source = self._data.handle_of(from_ino, from_fh)
        target = self._writable(to_ino, to_fh)
        if not source.readable or target.appends:
            raise FilesystemError(errno.EBADF)
        if flags or min(from_offset, to_offset, length) < 0:
            raise FilesystemError(errno.EINVAL)
        if to_offset + length > limits.FILE_BYTES_MAX:
            raise FilesystemError(errno.EFBIG)
        if from_ino == to_ino and abs(from_offset - to_offset) < length:
            raise FilesystemError(errno.EINVAL)
        await self._data.flush_inode(from_ino)
        size = (await self._inodes.require(from_ino)).inode.size
        span = Range(from_offset, min(from_offset + length, size))
        copy = _Copy(source, from_fh, span, target, to_fh, to_offset)
        copied = 0
        for _ in range(limits.COPY_CALL_STEPS_MAX):
            left = copy.after(copied)
            if left.span.start >= left.span.end:
                break
            try:
                moved = await self._copy_some(left)
            except (AspenError, AspenKvError):
                if copied:
                    break  # who goes on meets it again, as with write(2)
                raise
            if not moved:
                break
            copied += moved
        return copied

    async def _copy_some(self, copy: _Copy) -> int:
        """Copy the first bytes; return how many, 0 at the end of the source."""
        start, end = copy.span
        length = min(end - start, limits.COPY_THROUGH_BYTES_MAX)
        # Bytes that lie at other places of their chunks can only be read and written.
        if (start - copy.offset) % _CHUNK == 0:
            if start % _CHUNK == 0:
                moved = await self._data.when_clean(
                    copy.target,
                    lambda: self._content.copy(
                        copy.source.file.ino,
                        copy.span,
                        copy.target.file.ino,
                        copy.offset,
                        self._writer(copy.target),
                    ),
                )
                if moved:
                    return moved
            length = min(length, _CHUNK - start % _CHUNK)  # then whole chunks may follow
        data = await self._data.read(copy.source_fh, start, length)
        return await self._data.write(copy.target_fh, copy.offset, data)

    def _writable(self, ino: Ino, fh: FileHandle) -> Handle:
        handle = self._data.handle_of(ino, fh)
        if not handle.writable:
            raise FilesystemError(errno.EBADF)
        return handle

    def _writer(self, handle: Handle) -> Writer:
        return Writer(self._clock.now_ns(), handle.drops_set_id)
