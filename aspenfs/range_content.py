"""Ranges of a regular file that are zeroed, allocated or copied, each step in one commit.

None of it moves bytes through the client: whole chunks are removed, or copied by the store, and
what is left at the edges of a range that is zeroed is a patch.
"""

from __future__ import annotations

from typing import NamedTuple

from aspenfs import limits
from aspenfs.allocation import Allocation
from aspenfs.attributes import drop_capability
from aspenfs.chunks import chunk_count, extent_bytes, slices
from aspenfs.inodes import Inodes
from aspenfs.keys import Keys
from aspenfs.metadata import Inode, Times, without_set_id
from aspenfs.nodes import Node
from aspenfs.session import Session
from aspenfs.stored_chunks import StoredChunks
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import Ino

_CHUNK = limits.CHUNK_BYTES


class Range(NamedTuple):
    """Bytes from ``start`` up to ``end`` of a file."""

    start: int
    end: int


class Writer(NamedTuple):
    """When a file is changed, and whether set-user-ID and set-group-ID go, as with write(2)."""

    now_ns: int
    drops_set_id: bool


class _CopyStep(NamedTuple):
    """Chunks ``[first, end)`` of a file, of which those in ``present`` are no holes."""

    first: int
    end: int
    present: list[int]


class RangeContent:
    """Commits changes of ranges. The files have nothing dirty meanwhile."""

    def __init__(
        self,
        keys: Keys,
        inodes: Inodes,
        transactions: Transactions,
        session: Session,
        stored: StoredChunks,
    ) -> None:
        """Take the parts that the mount composed."""
        self._keys = keys
        self._inodes = inodes
        self._transactions = transactions
        self._allocation = Allocation(inodes, session)
        self._stored = stored

    async def allocate(
        self, ino: Ino, span: Range, writer: Writer, *, zeroes: bool, grows: bool
    ) -> None:
        """Make a file as large as the span reaches (``grows``), and the span read as zeros.

        Costs by what is allocated in the span.

        Raises:
            FilesystemError: ESTALE, the file is gone.
        """

        async def attempt(txn: Transaction) -> None:
            node = await self._inodes.require(ino)
            inode = node.inode
            size = max(inode.size, span.end) if grows else inode.size
            cut = Range(span.start, min(span.end, inode.size) if zeroes else span.start)
            if inode.inline is None:
                allocated = await self._zero(txn, ino, inode, cut, size)
                changed = inode._replace(size=size, allocated_bytes=allocated)
            else:
                changed = self._allocate_inline(txn, ino, inode, inode.inline, cut, size)
            self._record(txn, ino, node, changed, writer)

        await self._transactions.run(attempt)

    def _allocate_inline(
        self, txn: Transaction, ino: Ino, inode: Inode, inline: bytes, cut: Range, size: int
    ) -> Inode:
        if cut.start < cut.end:
            inline = inline[: cut.start] + bytes(cut.end - cut.start) + inline[cut.end :]
        if size <= limits.INLINE_BYTES_MAX:
            content = inline.ljust(size, b"\x00")
            return inode._replace(inline=content, size=size, allocated_bytes=size)
        allocated = 0
        if any(inline):  # else it is as well a hole
            txn.put_chunk(self._keys.chunk(ino, 0), inline)
            allocated = extent_bytes(0, size, _CHUNK)
        return inode._replace(inline=None, size=size, allocated_bytes=allocated)

    async def _zero(self, txn: Transaction, ino: Ino, inode: Inode, cut: Range, size: int) -> int:
        """Let a range below the end of a chunked file read as zeros; return what it allocates."""
        start, end = cut
        # The last chunk goes as a whole if the range has all of it that lies within the file.
        first, stop = -(-start // _CHUNK), end // _CHUNK
        if end == inode.size:
            stop = chunk_count(end, _CHUNK)
        if start >= end:
            stop = first
        edges = [Range(start, min(end, first * _CHUNK)), Range(max(first, stop) * _CHUNK, end)]
        for edge in edges:
            await self._zero_within(txn, ino, inode, edge)
        if first < stop and await self._allocation.gone_bytes(ino, inode, first, stop - 1):
            txn.delete_chunks(self._keys.chunk(ino, first), self._keys.chunk(ino, stop))
        return await self._allocation.after_replacing(ino, inode, first, stop - 1, (), size)

    async def _zero_within(self, txn: Transaction, ino: Ino, inode: Inode, edge: Range) -> None:
        """Zero a part of one chunk, or nothing, or a hole, which stays one."""
        for part in slices(edge.start, edge.end - edge.start, _CHUNK):
            index = part.chunk_index
            for _ in await self._allocation.present(ino, inode, index, index):
                txn.patch_chunk(self._keys.chunk(ino, index), part.chunk_offset, bytes(part.length))

    async def copy(self, source: Ino, span: Range, target: Ino, offset: int, writer: Writer) -> int:
        """Copy the first whole chunks of a span, as many as one commit takes; holes stay holes.

        The last chunk of the source, which may be cut short, counts as whole if the target would
        end with it, too.

        Args:
            source: the file to copy from.
            span: what to copy; it begins at a chunk's border.
            target: the file to copy to, which may be the same, but at another place.
            offset: where to, at a chunk's border.
            writer: how the target is changed.

        Returns:
            How many bytes of the span are copied; 0: it does not begin with a whole chunk.

        Raises:
            FilesystemError: ESTALE, a file is gone.
        """
        assert span.start % _CHUNK == offset % _CHUNK == 0, "bytes within chunks do not move"
        shift = (offset - span.start) // _CHUNK

        async def attempt(txn: Transaction) -> int:
            source_node = await self._inodes.require(source)
            node = source_node if source == target else await self._inodes.require(target)
            inode = node.inode
            end = min(span.end, source_node.inode.size)
            ends_both = end == source_node.inode.size and end - span.start + offset >= inode.size
            stop = chunk_count(end, _CHUNK) if ends_both else end // _CHUNK
            first = span.start // _CHUNK
            if source_node.inode.inline is not None or stop <= first:
                return 0
            step = await self._step(source, source_node.inode, first, stop)
            copied = min(step.end * _CHUNK, end) - span.start
            size = max(inode.size, offset + copied)
            changed = await self._replace(txn, target, inode, step, shift, size)
            for index in step.present:
                txn.copy_chunk(
                    self._keys.chunk(source, index), self._keys.chunk(target, index + shift)
                )
            if source != target:
                txn.require(self._keys.inode(source), source_node.revision)
            self._record(txn, target, node, changed, writer)
            return copied

        return await self._transactions.run(attempt)

    async def _step(self, ino: Ino, inode: Inode, first: int, stop: int) -> _CopyStep:
        """Return the first of the chunks ``[first, stop)``: a commit's worth, and their holes."""
        most = limits.COPY_STEP_CHUNKS
        if inode.allocated_bytes == inode.size:
            stop = min(stop, first + most)
            return _CopyStep(first, stop, list(range(first, stop)))
        present = await self._stored.first(ino, first, stop, most)
        return _CopyStep(first, present[-1] + 1 if len(present) == most else stop, present)

    async def _replace(
        self, txn: Transaction, ino: Ino, inode: Inode, step: _CopyStep, shift: int, size: int
    ) -> Inode:
        """Make room in a file for the chunks of a step; return the inode with them."""
        first, stop = step.first + shift, step.end + shift
        new = [index + shift for index in step.present]
        if inode.inline is not None:
            if inode.inline and first > 0:
                txn.put_chunk(self._keys.chunk(ino, 0), inode.inline)
                new.append(0)
            allocated = sum(extent_bytes(index, size, _CHUNK) for index in new)
            return inode._replace(inline=None, size=size, allocated_bytes=allocated)
        if len(new) < stop - first and await self._allocation.gone_bytes(
            ino, inode, first, stop - 1
        ):
            txn.delete_chunks(self._keys.chunk(ino, first), self._keys.chunk(ino, stop))
        allocated = await self._allocation.after_replacing(ino, inode, first, stop - 1, new, size)
        return inode._replace(size=size, allocated_bytes=allocated)

    def _record(
        self, txn: Transaction, ino: Ino, node: Node, changed: Inode, writer: Writer
    ) -> None:
        """Record what a file is after a change of its bytes, and what that takes from it."""
        if writer.drops_set_id:
            changed = changed._replace(mode=without_set_id(changed.mode))
        drop_capability(txn, self._keys, ino, changed)
        self._allocation.record(txn, ino, node, changed, Times(writer.now_ns, writer.now_ns))
