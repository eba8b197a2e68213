"""What a regular file holds: each change of its bytes or its size is one commit.

A file of up to INLINE_BYTES_MAX bytes lives in its inode record until it first grows beyond; then
its bytes are chunks. The inode record is required in every commit, and written in those that change
the size or what is allocated; so bytes written to different places of a file never conflict, and
nobody writes chunks of a file that was cut or removed meanwhile.

Bytes at fixed offsets may be written twice, appended ones may not. So when the answer to a commit
that appends is lost, the batch remembers what the file was before and would be after it, and the
next try looks which of the two it is.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import NamedTuple

from aspenfs import limits
from aspenfs.allocation import Allocation
from aspenfs.attributes import AttributeSetter, drop_capability
from aspenfs.chunks import chunk_count, extent_bytes, slices
from aspenfs.errors import FilesystemError
from aspenfs.extents import Buffer, Extents
from aspenfs.inodes import Inodes
from aspenfs.keys import Keys
from aspenfs.metadata import Inode, Times, without_set_id
from aspenfs.nodes import Node
from aspenfs.session import Session
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import AttributeChanges, Ino

_CHUNK = limits.CHUNK_BYTES


class _State(NamedTuple):
    """What tells one content of a file from the next: who writes bytes sets size and mtime."""

    size: int
    mtime_ns: int


class Doubt(NamedTuple):
    """The file before and after an append of which nobody knows whether it was done."""

    before: _State
    after: _State


@dataclass(slots=True)
class Batch:
    """Bytes for one commit, at most COMMIT_DATA_BYTES_MAX.

    ``appended`` follow all that the file holds, also ``extents``; if nobody else appends first they
    are at ``appended_at``. While a batch is in ``doubt`` it must go again as it is.
    """

    extents: Extents
    appended: bytes
    appended_at: int
    mtime_ns: int
    drops_set_id: bool
    """Also clear set-user-ID, and set-group-ID where the group may execute."""
    times: AttributeChanges | None = None
    """Times that were set after the bytes were written; ctime is at least the one given."""
    doubt: Doubt | None = None

    @property
    def byte_count(self) -> int:
        """How many bytes it holds."""
        return self.extents.byte_count + len(self.appended)


class FileContent:
    """Commits bytes and sizes of regular files."""

    def __init__(
        self,
        keys: Keys,
        inodes: Inodes,
        transactions: Transactions,
        session: Session,
        attributes: AttributeSetter,
    ) -> None:
        """Take the parts that the mount composed."""
        self._keys = keys
        self._inodes = inodes
        self._transactions = transactions
        self._attributes = attributes
        self._allocation = Allocation(inodes, session)

    async def write(self, ino: Ino, batch: Batch, changes: AttributeChanges | None = None) -> Node:
        """Write a batch in one commit, exactly once, however often it is tried.

        With ``changes`` to attributes, which are made after those of the batch and in the same
        commit. Not with a batch that appends: if its answer is lost, its own mtime tells whether it
        was done, and the changes may have been made or not.

        Returns the inode after it.

        Raises:
            FilesystemError: ESTALE, the file is gone; EFBIG; EIO, the batch was in doubt, and
                others have changed the file since, so that nobody can tell whether it was done.
        """
        assert not batch.appended or changes is batch.times is None, "its mtime tells an append"
        tried: Transaction | None = None
        doubt: Doubt | None = None

        async def attempt(txn: Transaction) -> Node:
            nonlocal tried, doubt
            tried, doubt = txn, None
            node = await self._inodes.require(ino)
            before = _State(node.inode.size, node.times.mtime_ns)
            if batch.doubt is not None and before != batch.doubt.before:
                if before == batch.doubt.after:
                    return node
                raise FilesystemError(
                    errno.EIO, "others changed the file before an answer told whether it was done"
                )
            after = node
            if batch.byte_count:
                changed = await self._apply(txn, ino, node.inode, batch)
                # The inode may have changed in another way since the bytes were written.
                times = Times(batch.mtime_ns, max(batch.mtime_ns, node.times.ctime_ns))
                after = Node(changed, 0, times, 0)
            else:
                txn.require_times(ino, node)
            if batch.times is not None:
                ctime_ns = max(batch.times.ctime_ns or 0, after.times.ctime_ns)
                set_times = batch.times._replace(ctime_ns=ctime_ns)
                after = await self._attributes.apply(txn, ino, after, set_times)
            if changes is not None:
                after = await self._attributes.apply(txn, ino, after, changes)
            self._allocation.record(txn, ino, node, after.inode, after.times)
            if batch.appended:
                doubt = Doubt(before, _State(after.inode.size, batch.mtime_ns))
            return after

        try:
            return await self._transactions.run(attempt)
        except BaseException:
            if tried is not None and tried.is_in_doubt:
                batch.doubt = doubt
            raise

    async def _apply(self, txn: Transaction, ino: Ino, inode: Inode, batch: Batch) -> Inode:
        """Let a transaction write the bytes of a batch; return the inode as it is then."""
        parts = list(batch.extents)
        size = max(inode.size, batch.extents.end)
        if batch.appended:
            parts.append((size, batch.appended))
            size += len(batch.appended)
        if size > limits.FILE_BYTES_MAX:
            raise FilesystemError(errno.EFBIG)
        if inode.inline is not None and size <= limits.INLINE_BYTES_MAX:
            content = bytearray(inode.inline.ljust(size, b"\x00"))
            for offset, data in parts:
                content[offset : offset + len(data)] = data
            changed = inode._replace(inline=bytes(content), size=size, allocated_bytes=size)
        else:
            touched = self._write_chunks(txn, ino, inode.inline or b"", parts)
            allocated = await self._allocation.after_write(ino, inode, touched, size)
            changed = inode._replace(inline=None, size=size, allocated_bytes=allocated)
        drop_capability(txn, self._keys, ino, inode)
        if batch.drops_set_id:
            changed = changed._replace(mode=without_set_id(changed.mode))
        return changed

    async def truncate(
        self, ino: Ino, size: int, now_ns: int, *, drops_set_id: bool = False
    ) -> None:
        """Set the size; bytes beyond are gone, new ones read as zeros. Costs by what is allocated.

        ``drops_set_id``: as with a write.

        Raises:
            FilesystemError: ESTALE, the file is gone; EFBIG; EISDIR; EINVAL, a negative size, or
                neither a file nor a directory.
        """
        if size < 0:
            raise FilesystemError(errno.EINVAL)
        if size > limits.FILE_BYTES_MAX:
            raise FilesystemError(errno.EFBIG)

        async def attempt(txn: Transaction) -> None:
            node = await self._inodes.require(ino)
            inode = node.inode
            if inode.is_directory:
                raise FilesystemError(errno.EISDIR)
            if not inode.is_regular:
                raise FilesystemError(errno.EINVAL)
            if inode.inline is not None:
                changed = self._truncate_inline(txn, ino, inode, size)
            elif size < inode.size:
                changed = await self._shrink(txn, ino, inode, size)
            else:
                allocated = await self._allocation.after_write(ino, inode, (), size)
                changed = inode._replace(size=size, allocated_bytes=allocated)
            drop_capability(txn, self._keys, ino, inode)
            if drops_set_id:
                changed = changed._replace(mode=without_set_id(changed.mode))
            self._allocation.record(txn, ino, node, changed, Times(now_ns, now_ns))

        await self._transactions.run(attempt)

    def _write_chunks(
        self, txn: Transaction, ino: Ino, inline: bytes, parts: list[tuple[int, Buffer]]
    ) -> set[int]:
        """Write parts as chunks, after the inline bytes if there are any; return which chunks."""
        touched: set[int] = set()
        if inline:
            txn.put_chunk(self._keys.chunk(ino, 0), inline)
            touched.add(0)
        for offset, data in parts:
            view = memoryview(data)
            for part in slices(offset, len(data), _CHUNK):
                low = part.file_offset - offset
                piece = view[low : low + part.length]
                key = self._keys.chunk(ino, part.chunk_index)
                if part.length == _CHUNK:
                    txn.put_chunk(key, piece)
                else:
                    txn.patch_chunk(key, part.chunk_offset, piece)
                touched.add(part.chunk_index)
        return touched

    def _truncate_inline(self, txn: Transaction, ino: Ino, inode: Inode, size: int) -> Inode:
        inline = inode.inline or b""
        if size <= limits.INLINE_BYTES_MAX:
            content = inline[:size].ljust(size, b"\x00")
            return inode._replace(inline=content, size=size, allocated_bytes=size)
        touched = self._write_chunks(txn, ino, inline, [])
        allocated = sum(extent_bytes(index, size, _CHUNK) for index in touched)
        return inode._replace(inline=None, size=size, allocated_bytes=allocated)

    async def _shrink(self, txn: Transaction, ino: Ino, inode: Inode, size: int) -> Inode:
        keep = chunk_count(size, _CHUNK)
        prefix = self._keys.chunks(ino)
        if size == 0:
            txn.delete_chunks(prefix)
            return inode._replace(inline=b"", size=0, allocated_bytes=0)
        old_count = chunk_count(inode.size, _CHUNK)
        if inode.allocated_bytes == inode.size:
            allocated, last_present = size, True
        else:
            present = await self._inodes.present_chunks(ino, keep - 1, old_count - 1)
            gone = sum(extent_bytes(index, inode.size, _CHUNK) for index in present)
            last_present = keep - 1 in present
            allocated = inode.allocated_bytes - gone
            if last_present:
                allocated += extent_bytes(keep - 1, size, _CHUNK)
        if old_count > keep:
            txn.delete_chunks(self._keys.chunk(ino, keep), self._keys.chunk(ino, old_count))
        if last_present and size % _CHUNK:
            last = self._keys.chunk(ino, keep - 1)
            txn.patch_chunk(last, 0, b"", truncate_to=size % _CHUNK)
        return inode._replace(size=size, allocated_bytes=allocated)
