"""Open files: what is written lands in dirty buffers and is committed in the background.

Life of a byte: :meth:`Data.write` puts it into the file's dirty extents; a batch of them is taken
for a commit and stays readable until the commit is done; if that fails, the batch goes back under
what was written meanwhile. So a byte is in the store or in memory, and read back in either case.

Locks: a file's ``lock`` is held by the one task that commits its bytes or cuts it, so its commits
happen in the order of its writes. It is freed when that task ends, however it ends. No task holds
two files' locks.

Errors: a commit in the background that fails keeps its bytes and leaves its error with the file;
the next write, flush or fsync tries again or reports it. Bytes are dropped only when no retry can
help (the file is gone, or too big), and then the error is reported too.

A store that cannot be reached is no error of a file: the background tries for as long as it
takes, writers go on until the buffer is full, and only who waits for the store (flush, fsync, a
writer that finds no room) is told, after the time that a call may take. An append whose outcome is
not known stays a batch of its own until it is; see :mod:`aspenfs.file_content`.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
from collections import deque
from typing import NamedTuple

import trio

from aspenfs import limits
from aspenfs.chunk_reader import ChunkReader, Readahead
from aspenfs.errors import AspenError, FilesystemError, LeaseLostError
from aspenfs.extents import Buffer, Extents, overlay
from aspenfs.file_content import Batch, FileContent
from aspenfs.handles import HandleTable
from aspenfs.inodes import Inodes
from aspenfs.metadata import clamp_ns, without_set_id
from aspenfs.nodes import Node
from aspenfs.types import AttributeChanges, Attributes, Clock, FileHandle, Ino
from aspenkv.errors import AspenKvError, BusyError, OutcomeUnknownError, UnavailableError

log = logging.getLogger(__name__)

_PAGE_BYTES = mmap.PAGESIZE

_LOST_FOR_GOOD = frozenset({errno.ESTALE, errno.EFBIG, errno.EROFS, errno.EIO})
"""What FileContent.write says when no retry can store the bytes."""

_AWAY = (UnavailableError, BusyError, OutcomeUnknownError)
"""What a commit raises while the store is out of reach: nothing is wrong with the bytes."""


class DataStatistics(NamedTuple):
    """What the write path holds now.

    ``failures``: background commits that failed so far. ``is_away``: the last one found no store.
    """

    dirty_bytes: int
    dirty_files: int
    open_files: int
    failures: int
    is_away: bool


class _File:
    """An inode that is open in this mount, through any number of handles.

    What was appended waits in segments of whole writes, each no larger than a commit takes, so that
    no write is torn by the append of another machine. Appended bytes are always the file's last:
    whoever writes at or behind ``appended_at`` by position waits until they are committed.
    """

    __slots__ = (
        "appended",
        "appended_at",
        "away",
        "batch",
        "dirty",
        "dirty_since_s",
        "drops_set_id",
        "error",
        "flush_scheduled",
        "ino",
        "lock",
        "lost",
        "mtime_ns",
        "open_count",
        "times",
    )

    def __init__(self, ino: Ino) -> None:
        self.ino = ino
        self.open_count = 0
        self.lock = trio.Lock()
        self.dirty = Extents()
        self.appended: deque[bytearray] = deque()
        self.appended_at = 0  # where they are if no one else appends meanwhile
        self.batch: Batch | None = None  # in a commit, or in doubt after one
        self.drops_set_id = False  # the next commit does
        self.mtime_ns = 0  # of the newest bytes
        self.times: AttributeChanges | None = None  # set after them, and not in a commit yet
        self.dirty_since_s = 0.0
        self.away: Exception | None = None  # the newest that a commit of it met
        self.error: Exception | None = None  # of a commit whose bytes are kept and retried
        self.lost: Exception | None = None  # of bytes that no retry can store; told once
        self.flush_scheduled = False

    @property
    def waiting_bytes(self) -> int:
        """Bytes that no commit has taken yet."""
        return self.dirty.byte_count + sum(map(len, self.appended))

    @property
    def is_dirty(self) -> bool:
        return bool(self.dirty or self.appended or self.batch or self.times)

    @property
    def appended_from(self) -> int:
        """Where the bytes begin that were appended and are not committed; FILE_BYTES_MAX: none."""
        if self.batch is not None and self.batch.appended:
            return self.batch.appended_at
        return self.appended_at if self.appended else limits.FILE_BYTES_MAX

    @property
    def end(self) -> int:
        """The least size that the file has with its dirty bytes; 0 if there are none."""
        end = self.dirty.end
        if self.appended:
            end = max(end, self.appended_at + sum(map(len, self.appended)))
        if self.batch is not None:
            end = max(end, self.batch.extents.end)
            if self.batch.appended:
                end = max(end, self.batch.appended_at + len(self.batch.appended))
        return end

    def within(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """Return the dirty bytes of a range, the newest last."""
        found: list[tuple[int, bytes]] = []
        if self.batch is not None:
            found += self.batch.extents.within(start, end)
            found += _within(self.batch.appended, self.batch.appended_at, start, end)
        found += self.dirty.within(start, end)
        at = self.appended_at
        for segment in self.appended:
            found += _within(segment, at, start, end)
            at += len(segment)
        return found

    def overlay(self, attributes: Attributes) -> Attributes:
        """Return attributes as they are with all that waits for a commit or is in one."""
        size = max(attributes.size, self.end)
        mode = without_set_id(attributes.mode) if self.drops_set_id else attributes.mode
        shown = attributes._replace(
            mode=mode,
            size=size,
            allocated_bytes=attributes.allocated_bytes + size - attributes.size,
        )
        if self.batch is not None:
            if self.batch.byte_count:
                shown = _with_times(shown, self.batch.mtime_ns, self.batch.mtime_ns)
            shown = _with_set_times(shown, self.batch.times)
        if self.waiting_bytes:
            shown = _with_times(shown, self.mtime_ns, self.mtime_ns)
        return _with_set_times(shown, self.times)

    def set_times(self, times: AttributeChanges) -> None:
        """Let times go with the bytes that wait; ``times`` changes nothing else."""
        self.times = times if self.times is None else self.times.under(times)

    def note_written(self, now_ns: int) -> None:
        """Let bytes that were taken now set the mtime, whatever it was set to before."""
        self.mtime_ns = now_ns
        if self.times is not None:
            self.times = self.times._replace(mtime_ns=None)

    def append(self, data: Buffer) -> None:
        """Take one write of at most COMMIT_DATA_BYTES_MAX bytes behind all others."""
        if self.appended and len(self.appended[-1]) + len(data) <= limits.COMMIT_DATA_BYTES_MAX:
            self.appended[-1] += data
        else:
            self.appended.append(bytearray(data))

    def take(self, *, whole_chunks: bool) -> Batch | None:
        """Move a batch out of the dirty bytes, unless there is one; None: nothing to commit."""
        if self.batch is not None:
            return self.batch
        extents = self.dirty.take(
            limits.COMMIT_DATA_BYTES_MAX, limits.COMMIT_EXTENTS_MAX, whole_chunks=whole_chunks
        )
        appended, appended_at = b"", self.appended_at
        room = limits.COMMIT_DATA_BYTES_MAX - extents.byte_count
        # Appended bytes follow all others, so they wait until those are on their way.
        if self.appended and not self.dirty and len(self.appended[0]) <= room:
            appended = bytes(self.appended.popleft())
            self.appended_at += len(appended)
        has_bytes = bool(extents or appended)
        times = None
        # Times come with the last bytes, and after appended ones, which are told by their mtime.
        if not (self.waiting_bytes or appended):
            times, self.times = self.times, None
        if not has_bytes and times is None:
            return None
        drops_set_id = self.drops_set_id and has_bytes
        self.batch = Batch(extents, appended, appended_at, self.mtime_ns, drops_set_id, times)
        return self.batch

    def put_back(self, batch: Batch) -> None:
        """Make a batch dirty again, under what was written and set since."""
        if batch.times is not None:
            times = batch.times._replace(mtime_ns=None) if self.waiting_bytes else batch.times
            self.times = times if self.times is None else times.under(self.times)
        self.dirty = batch.extents.under(self.dirty)
        if batch.appended:
            self.appended.appendleft(bytearray(batch.appended))
            self.appended_at = batch.appended_at
        self.batch = None

    def drop_waiting(self) -> int:
        """Forget what no commit has taken yet; return how many bytes that were."""
        byte_count = self.waiting_bytes
        self.times = None
        self.dirty = Extents()
        self.appended.clear()
        return byte_count

    def drop_batch(self) -> int:
        """Forget the batch that a commit left in doubt; return how many bytes that were."""
        byte_count = 0 if self.batch is None else self.batch.byte_count
        self.batch = None
        return byte_count


class _Handle(NamedTuple):
    file: _File
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
    ) -> None:
        """Take the parts that the mount composed."""
        self._inodes = inodes
        self._reader = reader
        self._content = content
        self._handles = handles
        self._nursery = nursery
        self._clock = clock
        self._timeout_s = timeout_s
        self._files: dict[Ino, _File] = {}
        self._dirty_files: dict[Ino, _File] = {}  # in the order of becoming dirty
        self._dirty_bytes = 0
        self._became_dirty = trio.Event()
        self._drained = trio.lowlevel.ParkingLot()
        self._background_commits = trio.CapacityLimiter(limits.FLUSHES_MAX)
        self._batches_stored = 0
        self._failures = 0
        self._is_away = False
        self._is_fenced_off = False

    def is_open(self, ino: Ino) -> bool:
        """Return whether any handle of this mount has the inode open."""
        file = self._files.get(ino)
        return file is not None and file.open_count > 0

    def open(self, ino: Ino, flags: int, *, drops_set_id: bool = False) -> FileHandle:
        """Make a handle for an inode that exists; see Filesystem.open for ``drops_set_id``."""
        file = self._files.get(ino) or _File(ino)
        access = flags & os.O_ACCMODE
        handle = _Handle(
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
        if file is None:
            return
        self._dirty_bytes -= file.drop_waiting()
        await _acquire(file.lock)  # a commit in flight has ended then
        try:
            # What it put back, or left in doubt, if it failed.
            self._dirty_bytes -= file.drop_waiting() + file.drop_batch()
            self._forget_if_clean(file)
        finally:
            file.lock.release()
        self._drained.unpark_all()

    def _get(self, fh: FileHandle) -> _Handle:
        handle = self._handles.get(fh)
        if type(handle) is not _Handle:
            raise FilesystemError(errno.EBADF)
        return handle

    def ino_of(self, fh: FileHandle) -> Ino:
        """Return the inode that a handle has open; EBADF for a directory's."""
        return self._get(fh).file.ino

    def is_settled(self, ino: Ino) -> bool:
        """Return whether nothing of an inode waits to be committed, nor an error to be told."""
        file = self._files.get(ino)
        return file is None or not (file.is_dirty or file.error or file.lost)

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
        node = await self._inodes.require(file.ino)
        end = min(offset + size, max(node.inode.size, dirty_end))
        if not dirty and end <= node.inode.size:
            return await self._stored(node, file.ino, offset, end, readahead)
        if offset >= end:
            return b""
        stored_end = min(end, node.inode.size)
        stored = await self._stored(node, file.ino, offset, stored_end, readahead)
        buffer = bytearray(stored.ljust(end - offset, b"\x00"))
        overlay(buffer, offset, dirty)
        return bytes(buffer)

    async def _stored(
        self, node: Node, ino: Ino, offset: int, end: int, readahead: Readahead
    ) -> bytes:
        if offset >= end:
            return b""
        if node.inode.inline is not None:
            return node.inode.inline[offset:end]
        parts = await self._reader.read(ino, offset, end, node.inode.size, readahead)
        if len(parts) == 1 and type(parts[0]) is bytes:
            return parts[0]
        return b"".join(parts)

    async def write(
        self, fh: FileHandle, offset: int, data: Buffer, *, may_be_page: bool = False
    ) -> int:
        """Take ``data`` into the dirty buffer, waiting for room; return its length.

        On an O_APPEND handle the offset is ignored: the bytes go where the file ends when they are
        committed, so that appends of several machines never overwrite each other.

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
        file.drops_set_id |= handle.drops_set_id
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
            await self._wait_for_room(file, len(piece))
            if appends:
                await self._append(file, piece)
            else:
                await self._put(file, offset + start, piece)
        return len(data)

    async def _is_page(self, handle: _Handle, offset: int, length: int) -> bool:
        """Return whether a write on an O_APPEND handle is pages of a mapping.

        Only a handle that can also read can be mapped shared and writable. A page begins below the
        end of the file and ends at a page's end or with the file; an append begins at the end.
        """
        if not handle.readable or offset % _PAGE_BYTES:
            return False
        node = await self._inodes.require(handle.file.ino)
        size = max(node.inode.size, handle.file.end)
        return offset < size and (length % _PAGE_BYTES == 0 or offset + length == size)

    async def _put(self, file: _File, offset: int, data: Buffer) -> None:
        # What was appended before must not end up behind this: it goes first.
        while (
            offset + len(data) > file.appended_from or len(file.dirty) >= limits.DIRTY_EXTENTS_MAX
        ):
            await self._commit(file)
        before = file.dirty.byte_count
        file.dirty.write(offset, data)
        self._note_dirty(file, file.dirty.byte_count - before)

    async def _append(self, file: _File, data: Buffer) -> None:
        if not file.appended:
            end = file.end  # before the await: a commit in flight may end meanwhile
            node = await self._inodes.require(file.ino)
            if not file.appended:  # else another task appended while this one waited
                file.appended_at = max(node.inode.size, end, file.end)
        file.append(data)
        self._note_dirty(file, len(data))

    def _note_dirty(self, file: _File, grown_bytes: int) -> None:
        self._dirty_bytes += grown_bytes
        file.note_written(self._clock.now_ns())
        if file.ino not in self._dirty_files:
            file.dirty_since_s = self._clock.monotonic()
            self._dirty_files[file.ino] = file
            self._became_dirty.set()
        if file.waiting_bytes >= limits.DIRTY_FILE_BYTES_MAX:
            self._schedule_flush(file, whole_chunks=True)

    async def _wait_for_room(self, file: _File, byte_count: int) -> None:
        self._raise_error_of(file)
        if not self._is_full(file, byte_count):
            return
        with trio.move_on_after(self._timeout_s) as patience:
            while self._is_full(file, byte_count):
                stored = self._batches_stored
                victim = next(iter(self._dirty_files.values()), file)
                told = victim.error
                self._schedule_flush(victim, whole_chunks=False)
                await self._drained.park()
                if self._batches_stored != stored:
                    patience.deadline = trio.current_time() + self._timeout_s
                self._raise_error_of(file)
                if victim.error is not None and victim.error is not told:
                    raise FilesystemError(errno.EIO, f"the write buffer is full: {victim.error}")
        if patience.cancelled_caught:
            raise FilesystemError(
                errno.ETIMEDOUT, "the write buffer is full, and the store cannot be reached"
            )

    def _is_full(self, file: _File, byte_count: int) -> bool:
        if file.ino not in self._dirty_files and len(self._dirty_files) >= limits.DIRTY_FILES_MAX:
            return True
        return self._dirty_bytes > 0 and self._dirty_bytes + byte_count > limits.DIRTY_BYTES_MAX

    def _raise_error_of(self, file: _File) -> None:
        error = file.lost or file.error
        file.error = file.lost = None
        if error is not None:
            raise error

    def _schedule_flush(self, file: _File, *, whole_chunks: bool) -> None:
        if not file.flush_scheduled:
            file.flush_scheduled = True
            self._nursery.start_soon(self._flush_in_background, file, whole_chunks)

    async def _flush_in_background(self, file: _File, whole_chunks: bool) -> None:
        try:
            await self._commit_until_reached(file, whole_chunks=whole_chunks)
        except LeaseLostError as error:  # said in the log already
            self._failures += 1
            self._is_fenced_off = True
            file.error = error
        except (AspenError, AspenKvError) as error:
            self._failures += 1
            file.error = error
            log.warning("inode %d could not be written: %s; its data is kept", file.ino, error)
        finally:
            file.flush_scheduled = False
            self._drained.unpark_all()

    async def _commit_until_reached(self, file: _File, *, whole_chunks: bool) -> None:
        """Commit a file, again and again while the store is away."""
        pause_s = limits.WRITEBACK_RETRY_FIRST_S
        while True:
            try:
                async with self._background_commits:
                    await self._commit(file, whole_chunks=whole_chunks)
            except _AWAY as error:
                self._failures += 1
                if not self._is_away:
                    self._is_away = True
                    log.warning("data cannot be written: %s; it is kept until it can", error)
            else:
                return
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, limits.WRITEBACK_RETRY_MAX_S)

    async def _commit(
        self,
        file: _File,
        *,
        whole_chunks: bool = False,
        changes: AttributeChanges | None = None,
    ) -> Node | None:
        """Commit dirty bytes until none wait; with ``whole_chunks`` unfinished chunks may.

        ``changes`` to attributes come after all bytes, so they are made in the commit of the last
        ones. Returns the inode with them; None, they are still to be made.

        Who finds another task at it waits for that one's outcome. If the store turns out to be
        away, it is so for both: to wait once more as long would tell nothing new.
        """
        away = file.away
        await _acquire(file.lock)
        try:
            if file.away is not away and file.away is not None and file.is_dirty:
                raise type(file.away)(*file.away.args)
            while (batch := file.take(whole_chunks=whole_chunks)) is not None:
                if changes is not None and not (file.waiting_bytes or batch.appended):
                    return await self._commit_batch(file, batch, changes)
                await self._commit_batch(file, batch)
            self._forget_if_clean(file)
        finally:
            file.lock.release()
        return None

    async def _commit_batch(
        self, file: _File, batch: Batch, changes: AttributeChanges | None = None
    ) -> Node | None:
        """Commit what was taken; return the inode after it, None if the batch is lost for good."""
        node: Node | None = None
        try:
            node = await self._content.write(file.ino, batch, changes)
        except FilesystemError as error:
            if error.errno not in _LOST_FOR_GOOD:
                self._put_back(file, batch)
                raise
            file.lost = error
            what = f"{batch.byte_count} bytes are" if batch.byte_count else "the times set are"
            log.warning("inode %d: %s lost: %s", file.ino, what, error)
        except BaseException as error:
            if isinstance(error, _AWAY):
                file.away = error
            self._put_back(file, batch)
            raise
        else:
            self._batches_stored += 1
            if batch.appended:
                file.appended_at = node.inode.size
        file.away = None
        if self._is_away:
            self._is_away = False
            log.info("the store answers again")
        file.batch = None
        file.drops_set_id &= file.is_dirty
        self._dirty_bytes -= batch.byte_count
        self._forget_if_clean(file)
        self._drained.unpark_all()
        return node

    def _put_back(self, file: _File, batch: Batch) -> None:
        if batch.doubt is None:
            before = file.waiting_bytes + batch.byte_count
            file.put_back(batch)
            self._dirty_bytes += file.waiting_bytes - before
        self._drained.unpark_all()

    def _forget_if_clean(self, file: _File) -> None:
        if not file.is_dirty:
            self._dirty_files.pop(file.ino, None)
            self._drop_if_unused(file)

    def _drop_if_unused(self, file: _File) -> None:
        if file.open_count == 0 and not file.is_dirty and self._files.get(file.ino) is file:
            del self._files[file.ino]

    async def flush_inode(self, ino: Ino) -> None:
        """Commit what is dirty of an inode, whoever wrote it.

        Raises:
            AspenError, AspenKvError: the commit failed; the bytes are kept if a retry can help.
        """
        file = self._files.get(ino)
        if file is not None:
            await self._flush(file)

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
            return await self._flush(file, changes)
        node = await self._inodes.require(ino)
        self._raise_error_of(file)
        if not file.is_dirty:
            return None
        file.set_times(changes._replace(ctime_ns=self._clock.now_ns()))
        return node

    async def _flush(self, file: _File, changes: AttributeChanges | None = None) -> Node | None:
        """Commit what is dirty of a file; see :meth:`_commit`."""
        node: Node | None = None
        if file.is_dirty:
            file.error = None  # of bytes that this commit stores, or says itself why not
            node = await self._commit(file, changes=changes)
        self._raise_error_of(file)
        return node

    async def truncate(self, ino: Ino, size: int) -> None:
        """Set the size of a file, after what was written before.

        Raises:
            FilesystemError: ESTALE, EFBIG, EINVAL.
        """
        file = self._files.get(ino)
        if file is None:
            await self._content.truncate(ino, size, self._clock.now_ns())
            return
        while True:
            if file.is_dirty:
                await self._commit(file)
            await _acquire(file.lock)
            try:
                if not file.is_dirty:
                    await self._content.truncate(ino, size, self._clock.now_ns())
                    return
            finally:
                file.lock.release()

    async def flush_all(self) -> None:
        """Commit everything dirty, FLUSHES_MAX files at a time.

        Raises the first error after having tried every file, or at once if none can be written.
        """
        inos = iter(list(self._dirty_files))
        errors: list[Exception] = []

        async def flush_some() -> None:
            for ino in inos:
                if any(isinstance(error, (*_AWAY, LeaseLostError)) for error in errors):
                    return
                try:
                    await self.flush_inode(ino)
                except (AspenError, AspenKvError) as error:
                    log.warning("inode %d could not be written: %s", ino, error)
                    errors.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(min(len(self._dirty_files), limits.FLUSHES_MAX)):
                nursery.start_soon(flush_some)
        if errors:
            raise errors[0]

    async def run(self) -> None:
        """Commit what has been dirty for WRITEBACK_DELAY_S, as long as this mount may."""
        while not self._is_fenced_off:
            await self._became_dirty.wait()
            self._became_dirty = trio.Event()
            while self._dirty_files and not self._is_fenced_off:
                await trio.sleep(limits.WRITEBACK_DELAY_S)
                now_s = self._clock.monotonic()
                for file in list(self._dirty_files.values()):
                    if now_s - file.dirty_since_s >= limits.WRITEBACK_DELAY_S:
                        file.dirty_since_s = now_s
                        self._schedule_flush(file, whole_chunks=False)

    def statistics(self) -> DataStatistics:
        """Return what is held now."""
        return DataStatistics(
            self._dirty_bytes,
            len(self._dirty_files),
            len(self._files),
            self._failures,
            self._is_away,
        )


async def _acquire(lock: trio.Lock) -> None:
    """Take a lock; a free one without giving way to other tasks, which would cost more."""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()


def _are_times(changes: AttributeChanges) -> bool:
    """Return whether nothing but times, which utimensat(2) can set, is to be changed."""
    return changes == AttributeChanges(atime_ns=changes.atime_ns, mtime_ns=changes.mtime_ns)


def _with_set_times(shown: Attributes, times: AttributeChanges | None) -> Attributes:
    if times is None:
        return shown
    mtime_ns = shown.mtime_ns if times.mtime_ns is None else clamp_ns(times.mtime_ns)
    shown = _with_times(shown, mtime_ns, times.ctime_ns or 0)
    return shown if times.atime_ns is None else shown._replace(atime_ns=clamp_ns(times.atime_ns))


def _with_times(shown: Attributes, mtime_ns: int, ctime_ns: int) -> Attributes:
    return shown._replace(mtime_ns=mtime_ns, ctime_ns=max(ctime_ns, shown.ctime_ns))


def _within(data: Buffer, at: int, start: int, end: int) -> list[tuple[int, bytes]]:
    low, high = max(start, at), min(end, at + len(data))
    return [(low, bytes(data[low - at : high - at]))] if low < high else []
