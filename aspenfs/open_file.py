"""What this mount keeps of an open file: bytes and times that no commit has stored yet.

Life of a byte: it is written to the dirty extents, or appended; a batch of them is taken for a
commit and stays readable until the commit is done; if that fails, the batch goes back under what
was written meanwhile. So a byte is in the store or in memory, and read back in either case.

Times that were set after the bytes wait with them, and go with the last batch. What is written
still later sets the mtime anew.
"""

from __future__ import annotations

from collections import deque

import trio

from aspenfs import limits
from aspenfs.chunks import chunk_count, extent_bytes, slices
from aspenfs.extents import Buffer, Extents
from aspenfs.file_content import Batch
from aspenfs.metadata import clamp_ns, without_set_id
from aspenfs.types import AttributeChanges, Attributes, Ino


class OpenFile:
    """An inode that is open in this mount, through any number of handles.

    ``lock`` is held by the one task that commits its bytes or cuts it.

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
        """Start with no handle and nothing dirty."""
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
        """Whether anything waits for a commit, or is in one."""
        return bool(self.dirty or self.appended or self.batch or self.times)

    @property
    def has_dirty_bytes(self) -> bool:
        """Whether bytes wait for a commit, or are in one, and not only times."""
        return bool(self.waiting_bytes or (self.batch is not None and self.batch.byte_count))

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

    def dirty_chunks(self) -> set[int]:
        """Return in which chunks of the file dirty bytes are."""
        parts = [*self.dirty]
        at = self.appended_at
        for segment in self.appended:
            parts.append((at, segment))
            at += len(segment)
        if self.batch is not None:
            parts += self.batch.extents
            parts.append((self.batch.appended_at, self.batch.appended))
        return {
            part.chunk_index
            for offset, data in parts
            for part in slices(offset, len(data), limits.CHUNK_BYTES)
        }

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
            allocated_bytes=attributes.allocated_bytes + self._grown_bytes(attributes, size),
        )
        if self.batch is not None:
            if self.batch.byte_count:
                shown = _with_times(shown, self.batch.mtime_ns, self.batch.mtime_ns)
            shown = _with_set_times(shown, self.batch.times)
        if self.waiting_bytes:
            shown = _with_times(shown, self.mtime_ns, self.mtime_ns)
        return _with_set_times(shown, self.times)

    def _grown_bytes(self, attributes: Attributes, size: int) -> int:
        """Return how much more a file allocates with all that waits, as far as this mount can tell.

        Only the store knows which holes below the file's end are filled: they are left out.
        """
        if size <= limits.INLINE_BYTES_MAX:
            return size - attributes.size
        count = chunk_count(attributes.size, limits.CHUNK_BYTES)
        dirty = self.dirty_chunks()
        grown = sum(
            extent_bytes(index, size, limits.CHUNK_BYTES) for index in dirty if index >= count
        )
        has_last = count - 1 in dirty or attributes.allocated_bytes == attributes.size
        if count and has_last:
            was = extent_bytes(count - 1, attributes.size, limits.CHUNK_BYTES)
            grown += extent_bytes(count - 1, size, limits.CHUNK_BYTES) - was
        return grown

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

    def raise_error(self) -> None:
        """Raise what a commit of this file met and nobody was told yet."""
        error = self.lost or self.error
        self.error = self.lost = None
        if error is not None:
            raise error


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
