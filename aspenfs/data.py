"""Open files: bytes in and out, at offsets or appended, and what is shown of what waits.

What is written lands in dirty buffers (:mod:`aspenfs.open_file`), from which it is committed in the
background (:mod:`aspenfs.writeback`). Reads lay it over what the store has.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

import trio

from aspenfs import limits
from aspenfs.chunk_reader import ChunkReader, Readahead
from aspenfs.errors import FilesystemError
from aspenfs.extents import Buffer, overlay
from aspenfs.file_content import FileContent
from aspenfs.handles import HandleTable
from aspenfs.inodes import Inodes
from aspenfs.nodes import Node
from aspenfs.open_file import OpenFile
from aspenfs.types import AttributeChanges, Attributes, Clock, FileHandle, Ino
from aspenfs.writeback import Writeback

_PAGE_BYTES = mmap.PAGESIZE

T = TypeVar("T")


class DataStatistics(NamedTuple):
    """What the write path holds now.

    ``failures``: background commits that failed so far. ``is_away``: the last one found no store.
    """

    dirty_bytes: int
    dirty_files: int
    open_files: int
    failures: int
    is_away: bool


class Handle(NamedTuple):
    """What an open file's number stands for; see Filesystem.open for ``drops_set_id``."""

    file: OpenFile
    readable: bool
    writable: bool
    appends: bool
    drops_set_id: bool
    readahead: Readahead


class Data:
    """The open files of one mount. Made by the composition root, which also starts :meth:`run`.

    Args:
        inodes: reads of inodes.
        reader: reads of chunks.
        content: commits of bytes and sizes.
        handles: where open files get their numbers.
        nursery: for commits in the background; cancelled only after :meth:`flush_all`.
        clock: where time comes from.
        timeout_s: how long a writer waits for room while no byte can be stored.
        is_shared: whether other mounts use the volume now.
    """

    def __init__(
        self,
        inodes: Inodes,
        reader: ChunkReader,
        content: FileContent,
        handles: HandleTable[object],
        nursery: trio.Nursery,
        clock: Clock,
        timeout_s: float,
        is_shared: Callable[[], bool],
    ) -> None:
        """Take the parts that the mount composed."""
        self._inodes = inodes
        self._reader = reader
        self._content = content
        self._handles = handles
        self._clock = clock
        self._files: dict[Ino, OpenFile] = {}
        self._writeback = Writeback(
            content, nursery, clock, timeout_s, is_shared, self._drop_if_unused
        )

    def is_open(self, ino: Ino) -> bool:
        """Return whether any handle of this mount has the inode open."""
        file = self._files.get(ino)
        return file is not None and file.open_count > 0

    def open(self, ino: Ino, flags: int, *, drops_set_id: bool = False) -> FileHandle:
        """Make a handle for an inode that exists; see Filesystem.open for ``drops_set_id``."""
        file = self._files.get(ino) or OpenFile(ino)
        access = flags & os.O_ACCMODE
        handle = Handle(
            file,
            access in (os.O_RDONLY, os.O_RDWR),
            access in (os.O_WRONLY, os.O_RDWR),
            bool(flags & os.O_APPEND),
            drops_set_id,
            Readahead(),
        )
        fh = self._handles.add(handle)
        file.open_count += 1
        self._files[ino] = file
        return fh

    def close(self, fh: FileHandle) -> None:
        """Drop a handle. Dirty bytes that could not be committed stay, and are retried."""
        file = self._get(fh).file
        self._handles.remove(fh)
        file.open_count -= 1
        self._drop_if_unused(file)

    async def discard(self, ino: Ino) -> None:
        """Forget the dirty bytes of a file that has neither a name nor a handle any more."""
        file = self._files.get(ino)
        if file is not None:
            await self._writeback.discard(file)

    def _get(self, fh: FileHandle) -> Handle:
        handle = self._handles.get(fh)
        if type(handle) is not Handle:
            raise FilesystemError(errno.EBADF)
        return handle

    def handle_of(self, ino: Ino, fh: FileHandle) -> Handle:
        """Return the handle ``fh`` of an inode; EBADF if that is another's."""
        handle = self._get(fh)
        if handle.file.ino != ino:
            raise FilesystemError(errno.EBADF)
        return handle

    def ino_of(self, fh: FileHandle) -> Ino:
        """Return the inode that a handle has open; EBADF for a directory's."""
        return self._get(fh).file.ino

    def is_settled(self, ino: Ino) -> bool:
        """Return whether nothing of an inode waits to be committed, nor an error to be told."""
        file = self._files.get(ino)
        return file is None or not (file.is_dirty or file.error or file.lost)

    def has_dirty_bytes(self, ino: Ino) -> bool:
        """Return whether bytes of an inode wait to be committed."""
        file = self._files.get(ino)
        return file is not None and file.has_dirty_bytes

    def with_dirty(self, attributes: Attributes) -> Attributes:
        """Return attributes as they are with what is not committed yet."""
        file = self._files.get(attributes.ino)
        return file.overlay(attributes) if file is not None and file.is_dirty else attributes

    async def read(self, fh: FileHandle, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``; fewer only at the end of the file.

        Raises:
            FilesystemError: EBADF, the handle is not for reading; ESTALE; EINVAL.
        """
        handle = self._get(fh)
        if not handle.readable:
            raise FilesystemError(errno.EBADF)
        if offset < 0 or size < 0:
            raise FilesystemError(errno.EINVAL)
        # The dirty bytes are looked at before anything is awaited: if a commit stores them then,
        # what is read from the store may be from before or after it, and is right either way.
        file, readahead = handle.file, handle.readahead
        dirty = file.within(offset, offset + size) if file.is_dirty else []
        dirty_end = file.end
        stored = await self._stored(file.ino, offset, offset + size, readahead)
        end = min(offset + size, max(offset + len(stored), dirty_end))
        if not dirty and end <= offset + len(stored):
            return stored
        buffer = bytearray(stored.ljust(end - offset, b"\x00"))
        overlay(buffer, offset, dirty)
        return bytes(buffer)

    async def _stored(self, ino: Ino, offset: int, end: int, readahead: Readahead) -> bytes:
        """Return what the store has of ``[offset, end)``, up to the end of the file.

        Who cuts or removes a file takes chunks that this mount still counts on. So where some are
        missing, it looks whether the inode is still the one that it was.
        """
        parts: Sequence[Buffer] = ()
        for _ in range(limits.READ_ATTEMPTS_MAX):
            node = await self._inodes.require(ino)
            end_now = min(end, node.inode.size)
            if offset >= end_now:
                return b""
            if node.inode.inline is not None:
                return node.inode.inline[offset:end_now]
            parts, has_new_holes = await self._reader.read(
                ino, offset, end_now, node.inode.size, readahead
            )
            if not has_new_holes or not await self._has_changed(ino, node):
                break
        if len(parts) == 1 and type(parts[0]) is bytes:
            return parts[0]
        return b"".join(parts)

    async def _has_changed(self, ino: Ino, node: Node) -> bool:
        now = await self._inodes.reload(ino)
        return now is None or now.inode != node.inode

    async def write(
        self,
        fh: FileHandle,
        offset: int,
        data: Buffer,
        *,
        may_be_page: bool = False,
        drops_set_id: bool | None = None,
    ) -> int:
        """Take ``data`` into the dirty buffer, waiting for room; return its length.

        On an O_APPEND handle the offset is ignored: the bytes go where the file ends when they are
        committed, so that appends of several machines never overwrite each other.

        ``drops_set_id``: what is known of this write; None: what the opener said counts.

        Raises:
            FilesystemError: EBADF, the handle is not for writing; EFBIG; EINVAL; ETIMEDOUT, the
                buffer is full and stays so; and whatever made an earlier commit of this file fail
                for good.
        """
        handle = self._get(fh)
        if not handle.writable:
            raise FilesystemError(errno.EBADF)
        if offset < 0:
            raise FilesystemError(errno.EINVAL)
        if offset + len(data) > limits.FILE_BYTES_MAX:
            raise FilesystemError(errno.EFBIG)
        if not data:
            return 0
        file = handle.file
        file.drops_set_id |= handle.drops_set_id if drops_set_id is None else drops_set_id
        appends = handle.appends
        if appends and may_be_page and await self._is_page(handle, offset, len(data)):
            appends = False
        view = memoryview(data)
        for start in range(0, len(data), limits.COMMIT_DATA_BYTES_MAX):
            piece = (
                data
                if len(data) <= limits.COMMIT_DATA_BYTES_MAX
                else view[start : start + limits.COMMIT_DATA_BYTES_MAX]
            )
            await self._writeback.wait_for_room(file, len(piece))
            if appends:
                await self._append(file, piece)
            else:
                await self._put(file, offset + start, piece)
        return len(data)

    async def _is_page(self, handle: Handle, offset: int, length: int) -> bool:
        """Return whether a write on an O_APPEND handle is pages of a mapping.

        Only a handle that can also read can be mapped shared and writable. A page begins below the
        end of the file and ends at a page's end or with the file; an append begins at the end.
        """
        if not handle.readable or offset % _PAGE_BYTES:
            return False
        node = await self._inodes.require(handle.file.ino)
        size = max(node.inode.size, handle.file.end)
        return offset < size and (length % _PAGE_BYTES == 0 or offset + length == size)

    async def _put(self, file: OpenFile, offset: int, data: Buffer) -> None:
        # What was appended before must not end up behind this: it goes first.
        while (
            offset + len(data) > file.appended_from or len(file.dirty) >= limits.DIRTY_EXTENTS_MAX
        ):
            await self._writeback.commit(file)
        before = file.dirty.byte_count
        file.dirty.write(offset, data)
        self._writeback.note_dirty(file, file.dirty.byte_count - before)

    async def _append(self, file: OpenFile, data: Buffer) -> None:
        if not file.appended:
            end = file.end  # before the await: a commit in flight may end meanwhile
            node = await self._inodes.require(file.ino)
            if not file.appended:  # else another task appended while this one waited
                file.appended_at = max(node.inode.size, end, file.end)
        file.append(data)
        self._writeback.note_dirty(file, len(data))

    def _drop_if_unused(self, file: OpenFile) -> None:
        if file.open_count == 0 and not file.is_dirty and self._files.get(file.ino) is file:
            del self._files[file.ino]

    async def flush_inode(self, ino: Ino) -> None:
        """Commit what is dirty of an inode, whoever wrote it.

        Raises:
            AspenError, AspenKvError: the commit failed; the bytes are kept if a retry can help.
        """
        file = self._files.get(ino)
        if file is not None:
            await self._writeback.flush(file)

    async def change(self, ino: Ino, changes: AttributeChanges) -> Node | None:
        """Change attributes, other than the size, of an inode that has bytes to be committed.

        The times of the bytes, which were written before, must not overwrite those set now. Times
        alone wait with the bytes; other changes are made in the commit of the last of them.

        Returns:
            The inode as the store has it then; None, nothing is dirty, and nothing was changed.

        Raises:
            FilesystemError: ESTALE.
            AspenError, AspenKvError: a commit failed; the bytes are kept if a retry can help.
        """
        file = self._files.get(ino)
        if file is None:
            return None
        if not _are_times(changes):
            return await self._writeback.flush(file, changes)
        node = await self._inodes.require(ino)
        file.raise_error()
        if not file.is_dirty:
            return None
        file.set_times(changes._replace(ctime_ns=self._clock.now_ns()))
        return node

    async def truncate(self, ino: Ino, size: int, *, drops_set_id: bool = False) -> None:
        """Set the size of a file, after what was written before; see FileContent.truncate.

        Raises:
            FilesystemError: ESTALE, EFBIG, EINVAL.
        """
        file = self._files.get(ino)
        if file is None:
            now_ns = self._clock.now_ns()
            await self._content.truncate(ino, size, now_ns, drops_set_id=drops_set_id)
        else:
            await self._writeback.truncate(file, size, drops_set_id=drops_set_id)

    async def when_clean(self, handle: Handle, change: Callable[[], Awaitable[T]]) -> T:
        """Let ``change`` commit to a file after what was written; see Writeback.when_clean."""
        return await self._writeback.when_clean(handle.file, change)

    async def flush_all(self) -> None:
        """Commit everything dirty; see :meth:`Writeback.flush_all`."""
        await self._writeback.flush_all()

    async def run(self) -> None:
        """Commit what is old; see :meth:`Writeback.run`."""
        await self._writeback.run()

    def statistics(self) -> DataStatistics:
        """Return what is held now."""
        dirty_bytes, dirty_files, failures, is_away = self._writeback.statistics()
        return DataStatistics(dirty_bytes, dirty_files, len(self._files), failures, is_away)


def _are_times(changes: AttributeChanges) -> bool:
    """Return whether nothing but times, which utimensat(2) can set, is to be changed."""
    return changes == AttributeChanges(atime_ns=changes.atime_ns, mtime_ns=changes.mtime_ns)
