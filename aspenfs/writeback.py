"""Write-back: which file's bytes are committed when, and what becomes of those that cannot be.

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
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import trio

from aspenfs import limits
from aspenfs.errors import AspenError, FilesystemError, LeaseLostError
from aspenfs.file_content import Batch, FileContent
from aspenfs.nodes import Node
from aspenfs.open_file import OpenFile
from aspenfs.types import AttributeChanges, Clock, Ino
from aspenkv.errors import AspenKvError, BusyError, OutcomeUnknownError, UnavailableError

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOST_FOR_GOOD = frozenset({errno.ESTALE, errno.EFBIG, errno.EROFS, errno.EIO})
"""What FileContent.write says when no retry can store the bytes."""

_AWAY = (UnavailableError, BusyError, OutcomeUnknownError)
"""What a commit raises while the store is out of reach: nothing is wrong with the bytes."""


class WritebackStatistics(NamedTuple):
    """What waits now; background commits that failed; whether the last one found no store."""

    dirty_bytes: int
    dirty_files: int
    failures: int
    is_away: bool


class Writeback:
    """The dirty files of one mount, and their way to the store.

    Args:
        content: commits of bytes and sizes.
        nursery: for commits in the background; cancelled only after :meth:`flush_all`.
        clock: where time comes from.
        timeout_s: how long a writer waits for room while no byte can be stored.
        is_shared: whether other mounts use the volume now; they should see soon what is written.
        on_clean: called when nothing of a file waits any more.
    """

    def __init__(
        self,
        content: FileContent,
        nursery: trio.Nursery,
        clock: Clock,
        timeout_s: float,
        is_shared: Callable[[], bool],
        on_clean: Callable[[OpenFile], None],
    ) -> None:
        """Start with nothing dirty."""
        self._content = content
        self._nursery = nursery
        self._clock = clock
        self._timeout_s = timeout_s
        self._is_shared = is_shared
        self._on_clean = on_clean
        self._dirty_files: dict[Ino, OpenFile] = {}  # in the order of becoming dirty
        self._dirty_bytes = 0
        self._became_dirty = trio.Event()
        self._drained = trio.lowlevel.ParkingLot()
        self._background_commits = trio.CapacityLimiter(limits.FLUSHES_MAX)
        self._batches_stored = 0
        self._failures = 0
        self._is_away = False
        self._is_fenced_off = False

    def note_dirty(self, file: OpenFile, grown_bytes: int) -> None:
        """Count bytes that a file has taken just now, and have them committed in time."""
        self._dirty_bytes += grown_bytes
        file.note_written(self._clock.now_ns())
        if file.ino not in self._dirty_files:
            file.dirty_since_s = self._clock.monotonic()
            self._dirty_files[file.ino] = file
            self._became_dirty.set()
        if file.waiting_bytes >= limits.DIRTY_FILE_BYTES_MAX:
            self._schedule_flush(file, whole_chunks=True)

    async def wait_for_room(self, file: OpenFile, byte_count: int) -> None:
        """Wait until the buffer takes so many bytes of a file.

        Raises:
            FilesystemError: ETIMEDOUT, the buffer is full and stays so; EIO.
            AspenError, AspenKvError: what made an earlier commit of the file fail.
        """
        file.raise_error()
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
                file.raise_error()
                if victim.error is not None and victim.error is not told:
                    raise FilesystemError(errno.EIO, f"the write buffer is full: {victim.error}")
        if patience.cancelled_caught:
            raise FilesystemError(
                errno.ETIMEDOUT, "the write buffer is full, and the store cannot be reached"
            )

    def _is_full(self, file: OpenFile, byte_count: int) -> bool:
        if file.ino not in self._dirty_files and len(self._dirty_files) >= limits.DIRTY_FILES_MAX:
            return True
        return self._dirty_bytes > 0 and self._dirty_bytes + byte_count > limits.DIRTY_BYTES_MAX

    async def flush(self, file: OpenFile, changes: AttributeChanges | None = None) -> Node | None:
        """Commit what is dirty of a file, and tell what went wrong with it; see :meth:`commit`.

        Raises:
            AspenError, AspenKvError: the commit failed; the bytes are kept if a retry can help.
        """
        node: Node | None = None
        if file.is_dirty:
            file.error = None  # of bytes that this commit stores, or says itself why not
            node = await self.commit(file, changes=changes)
        file.raise_error()
        return node

    async def truncate(self, file: OpenFile, size: int, *, drops_set_id: bool) -> None:
        """Set the size of a file, after what was written before; see FileContent.truncate.

        Raises:
            FilesystemError: ESTALE, EFBIG, EINVAL.
            AspenError, AspenKvError: a commit failed.
        """
        await self.when_clean(
            file,
            lambda: self._content.truncate(
                file.ino, size, self._clock.now_ns(), drops_set_id=drops_set_id
            ),
        )

    async def when_clean(self, file: OpenFile, change: Callable[[], Awaitable[T]]) -> T:
        """Let ``change`` commit to a file when all that was written before is committed.

        What is written meanwhile comes after it. Returns what ``change`` returns.

        Raises:
            AspenError, AspenKvError: a commit failed, or ``change``.
        """
        while True:
            if file.is_dirty:
                await self.commit(file)
            await _acquire(file.lock)
            try:
                if not file.is_dirty:
                    return await change()
            finally:
                file.lock.release()

    async def discard(self, file: OpenFile) -> None:
        """Forget the dirty bytes of a file that has neither a name nor a handle any more."""
        self._dirty_bytes -= file.drop_waiting()
        await _acquire(file.lock)  # a commit in flight has ended then
        try:
            # What it put back, or left in doubt, if it failed.
            self._dirty_bytes -= file.drop_waiting() + file.drop_batch()
            self._forget_if_clean(file)
        finally:
            file.lock.release()
        self._drained.unpark_all()

    def _schedule_flush(self, file: OpenFile, *, whole_chunks: bool) -> None:
        if not file.flush_scheduled:
            file.flush_scheduled = True
            self._nursery.start_soon(self._flush_in_background, file, whole_chunks)

    async def _flush_in_background(self, file: OpenFile, whole_chunks: bool) -> None:
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

    async def _commit_until_reached(self, file: OpenFile, *, whole_chunks: bool) -> None:
        """Commit a file, again and again while the store is away."""
        pause_s = limits.WRITEBACK_RETRY_FIRST_S
        while True:
            try:
                async with self._background_commits:
                    await self.commit(file, whole_chunks=whole_chunks)
            except _AWAY as error:
                self._failures += 1
                if not self._is_away:
                    self._is_away = True
                    log.warning("data cannot be written: %s; it is kept until it can", error)
            else:
                return
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, limits.WRITEBACK_RETRY_MAX_S)

    async def commit(
        self,
        file: OpenFile,
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
        self, file: OpenFile, batch: Batch, changes: AttributeChanges | None = None
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
        file.drops_set_id &= file.waiting_bytes > 0
        self._dirty_bytes -= batch.byte_count
        self._forget_if_clean(file)
        self._drained.unpark_all()
        return node

    def _put_back(self, file: OpenFile, batch: Batch) -> None:
        if batch.doubt is None:
            before = file.waiting_bytes + batch.byte_count
            file.put_back(batch)
            self._dirty_bytes += file.waiting_bytes - before
        self._drained.unpark_all()

    def _forget_if_clean(self, file: OpenFile) -> None:
        if not file.is_dirty:
            self._dirty_files.pop(file.ino, None)
            self._on_clean(file)

    async def flush_all(self) -> None:
        """Commit everything dirty, FLUSHES_MAX files at a time.

        Raises the first error after having tried every file, or at once if none can be written.
        """
        files = iter(list(self._dirty_files.values()))
        errors: list[Exception] = []

        async def flush_some() -> None:
            for file in files:
                if any(isinstance(error, (*_AWAY, LeaseLostError)) for error in errors):
                    return
                try:
                    await self.flush(file)
                except (AspenError, AspenKvError) as error:
                    log.warning("inode %d could not be written: %s", file.ino, error)
                    errors.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(min(len(self._dirty_files), limits.FLUSHES_MAX)):
                nursery.start_soon(flush_some)
        if errors:
            raise errors[0]

    async def run(self) -> None:
        """Commit what has been dirty for a while, as long as this mount may."""
        while not self._is_fenced_off:
            await self._became_dirty.wait()
            self._became_dirty = trio.Event()
            while self._dirty_files and not self._is_fenced_off:
                delay_s = (
                    limits.WRITEBACK_SHARED_DELAY_S
                    if self._is_shared()
                    else limits.WRITEBACK_DELAY_S
                )
                await trio.sleep(delay_s)
                now_s = self._clock.monotonic()
                for file in list(self._dirty_files.values()):
                    if now_s - file.dirty_since_s >= delay_s:
                        file.dirty_since_s = now_s
                        self._schedule_flush(file, whole_chunks=False)

    def statistics(self) -> WritebackStatistics:
        """Return what is held now."""
        return WritebackStatistics(
            self._dirty_bytes, len(self._dirty_files), self._failures, self._is_away
        )


async def _acquire(lock: trio.Lock) -> None:
    """Take a lock; a free one without giving way to other tasks, which would cost more."""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()
