"""How many bytes a file allocates after a change, by looking for as few chunks as it takes.

A file without holes is known to have all its chunks; only in one with holes must those that change
be looked for. What is found holds as long as the inode record: whoever adds or removes a chunk
writes that, too. So a transaction that requires the record may count on it.
"""

from __future__ import annotations

from collections.abc import Iterable

from aspenfs import limits
from aspenfs.chunks import chunk_count, extent_bytes
from aspenfs.inodes import Inodes
from aspenfs.metadata import Inode, Times
from aspenfs.nodes import Node
from aspenfs.session import Session
from aspenfs.txn import Transaction
from aspenfs.types import Ino

_CHUNK = limits.CHUNK_BYTES


class Allocation:
    """Looks for chunks of regular files, and counts what they allocate."""

    def __init__(self, inodes: Inodes, session: Session) -> None:
        """Take the reads of the mount, and the session whose usage counters move."""
        self._inodes = inodes
        self._session = session

    def record(self, txn: Transaction, ino: Ino, node: Node, changed: Inode, times: Times) -> None:
        """Let a transaction that changes the bytes of an inode also change its records.

        The inode is required as it was read, and written only if it changes: so bytes written to
        different places of a file never conflict.
        """
        txn.require_inode(ino, node)
        if changed != node.inode:
            txn.put_inode(ino, changed)
        txn.put_times(ino, times)
        grown = changed.allocated_bytes - node.inode.allocated_bytes
        self._session.count(txn, allocated_bytes=grown)

    async def present(self, ino: Ino, inode: Inode, first: int, last: int) -> Iterable[int]:
        """Return the chunks of ``[first, last]`` that a file has, in no order."""
        last = min(last, chunk_count(inode.size, _CHUNK) - 1)
        if first > last or inode.inline is not None:
            return ()
        if inode.allocated_bytes == inode.size:
            return range(first, last + 1)
        return await self._inodes.present_chunks(ino, first, last)

    async def after_write(self, ino: Ino, inode: Inode, touched: Iterable[int], size: int) -> int:
        """Return what a file allocates that grows to ``size`` (or keeps it) as chunks are written.

        One whose bytes were inline has no chunks but those ``touched``.
        """
        touched = set(touched)
        if inode.inline is not None:
            return sum(extent_bytes(index, size, _CHUNK) for index in touched)
        count = chunk_count(inode.size, _CHUNK)
        old = {index for index in touched if index < count}
        if size > inode.size and count:
            old.add(count - 1)
        present: set[int] = set()
        for first, last in _runs(old):
            present.update(await self.present(ino, inode, first, last))
        allocated = inode.allocated_bytes
        for index in touched | present:
            was = extent_bytes(index, inode.size, _CHUNK) if index in present else 0
            allocated += extent_bytes(index, size, _CHUNK) - was
        return allocated

    async def after_replacing(
        self, ino: Ino, inode: Inode, first: int, last: int, new: Iterable[int], size: int
    ) -> int:
        """Return what a file allocates that grows to ``size`` (or keeps it) as chunks are replaced.

        Those of ``[first, last]`` go, if there are any, and of these ``new`` ones come. Costs by
        what is allocated. The bytes of the file are not inline.
        """
        count = chunk_count(inode.size, _CHUNK)
        gone = await self.gone_bytes(ino, inode, first, last)
        come = sum(extent_bytes(index, size, _CHUNK) for index in new)
        grown = 0
        end = count - 1  # the chunk in which the file ended
        if size > inode.size and count and not first <= end <= last:
            for index in await self.present(ino, inode, end, end):
                was = extent_bytes(index, inode.size, _CHUNK)
                grown += extent_bytes(index, size, _CHUNK) - was
        return inode.allocated_bytes - gone + come + grown

    async def gone_bytes(self, ino: Ino, inode: Inode, first: int, last: int) -> int:
        """Return what the chunks of ``[first, last]`` allocate."""
        if inode.allocated_bytes == inode.size:  # so many chunks need not be walked over
            start, end = min(first * _CHUNK, inode.size), min((last + 1) * _CHUNK, inode.size)
            return max(0, end - start)
        present = await self.present(ino, inode, first, last)
        return sum(extent_bytes(index, inode.size, _CHUNK) for index in present)


def _runs(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Return the runs of consecutive numbers, each by its first and last."""
    runs: list[tuple[int, int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs
