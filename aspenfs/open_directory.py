"""An open directory: reading goes on where it stopped, whatever others change meanwhile."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from aspenfs import limits
from aspenfs.handles import DirectoryCursor
from aspenfs.inodes import Inodes, Listing
from aspenfs.nodes import Node
from aspenfs.types import Ino


class FoundEntry(NamedTuple):
    """One entry with its inode; reading goes on after it at ``next_offset``."""

    name: bytes
    ino: Ino
    node: Node
    next_offset: int


class OpenDirectory:
    """A directory that is open through one handle, with the page of it that was read last."""

    __slots__ = ("_cursor", "_inodes", "_page", "_page_after", "ino")

    def __init__(self, inodes: Inodes, ino: Ino) -> None:
        """Start before the first entry."""
        self._inodes = inodes
        self.ino = ino
        self._cursor = DirectoryCursor()
        self._page: Listing | None = None
        self._page_after: bytes | None = None

    async def read(self, offset: int, limit: int) -> list[FoundEntry]:
        """Return up to ``limit`` entries after ``offset`` (0: the first), [] at the end.

        In the order of the names' bytes. Nothing is skipped or returned twice when others add or
        remove entries meanwhile.

        Raises:
            FilesystemError: EINVAL, no entry had this offset.
        """
        after, skip = self._cursor.resume(offset)
        found: list[tuple[bytes, Ino, Node]] = []
        while len(found) < limit:
            listing = await self._listing(after)
            if not listing.entries:
                break
            entries = listing.entries[: skip + limit - len(found)]
            after = entries[-1][0]
            skipped, entries = min(skip, len(entries)), entries[skip:]
            skip -= skipped
            nodes = await self._inodes.nodes([dentry.ino for _, dentry in entries])
            for (name, dentry), node in zip(entries, nodes, strict=True):
                if node is not None and node.inode.nlink:
                    found.append((name, dentry.ino, node))
                    continue
                # It was replaced or removed since the names were read.
                entry, other = await self._inodes.meaning(self.ino, name)
                if entry.dentry is not None and other is not None:
                    found.append((name, entry.dentry.ino, other))
        offsets = self._cursor.append([name for name, _, _ in found])
        return [
            FoundEntry(name, ino, node, next_offset)
            for (name, ino, node), next_offset in zip(found, offsets, strict=True)
        ]

    async def _listing(self, after: bytes | None) -> Listing:
        """Return the entries above ``after``, from the page read last if it goes on there."""
        page = self._page
        if (
            page is not None
            and after is not None
            and (self._page_after is None or after > self._page_after)
        ):
            position = bisect_right(page.entries, after, key=lambda entry: entry[0])
            if position < len(page.entries) or page.complete:
                return Listing(page.entries[position:], page.complete)
        page = await self._inodes.listing(self.ino, after, limits.READDIR_PAGE_ENTRIES)
        self._page, self._page_after = page, after
        return page
