"""Reads of inodes, directory entries and listings: the caches first, then the store."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple

from aspenfs import limits
from aspenfs.cache import Caches
from aspenfs.errors import CorruptRecordError, FilesystemError
from aspenfs.keys import Keys, range_end
from aspenfs.lookup_runs import ALONE, LookupRuns, Stretch
from aspenfs.metadata import Dentry, decode_dentry, decode_inode, decode_times
from aspenfs.nodes import Entry, Node
from aspenfs.scans import records_between
from aspenfs.types import ROOT_INO, Ino
from aspenkv.contract import KeyValue, Record, Versioned
from aspenkv.limits import GET_KEYS_MAX, SCAN_ENTRIES_MAX

_NO_ENTRY = Entry(None, 0)


class Listing(NamedTuple):
    """Names of a directory in byte order; ``complete``: no more follow."""

    entries: tuple[tuple[bytes, Dentry], ...]
    complete: bool


class Inodes:
    """What the volume holds now, as this mount knows it. Reads only."""

    def __init__(
        self, kv: KeyValue, keys: Keys, caches: Caches, *, looks_ahead: bool = False
    ) -> None:
        """Take the client and the caches of one mount.

        ``looks_ahead`` lets repeated lookups in a directory read many names at once.
        """
        self._kv = kv
        self._keys = keys
        self._caches = caches
        self._runs = LookupRuns() if looks_ahead else None

    async def node(self, ino: Ino) -> Node | None:
        """Return an inode with its times, or None if there is none (any more)."""
        key = self._keys.inode(ino)
        cached = self._caches.meta.get(key)
        if type(cached) is Node:
            return cached
        wanted = (key, self._keys.times(ino))
        node: Node | None = None
        for _ in range(limits.READ_ATTEMPTS_MAX):
            token = self._caches.meta.begin_fill()
            found, times = await self._kv.get(wanted)
            node = self._decode(ino, found, times)
            if node is None or self._fill(key, node, token):
                break
        return node

    async def require(self, ino: Ino) -> Node:
        """Return an inode that the caller holds a reference to.

        Raises:
            FilesystemError: ESTALE, it is gone.
        """
        node = await self.node(ino)
        if node is None:
            raise FilesystemError(errno.ESTALE, f"inode {ino} is gone")
        return node

    async def reload(self, ino: Ino) -> Node | None:
        """Return an inode as the store has it now, whatever the caches say."""
        self._caches.meta.invalidate(self._keys.inode(ino))
        return await self.node(ino)

    def way_up(self, ino: Ino) -> list[Ino]:
        """Return a directory and those above it but the root, as far as the caches know them."""
        above: dict[Ino, None] = {}
        while ino not in above and ino != ROOT_INO and len(above) < limits.WAY_UP_MAX:
            above[ino] = None
            node = self._caches.meta.get(self._keys.inode(ino))
            if type(node) is not Node:
                break
            ino = node.inode.parent
        return list(above)

    async def snapshot(
        self, key: bytes, inos: Sequence[Ino]
    ) -> tuple[Versioned | None, dict[Ino, Node | None]]:
        """Return another record and inodes as the store has them now, all of one moment.

        Args:
            key: of the other record.
            inos: at most WAY_UP_MAX.
        """
        wanted = [key]
        for ino in inos:
            wanted += (self._keys.inode(ino), self._keys.times(ino))
        record, *found = await self._kv.get(wanted)
        return record, {
            ino: self._decode(ino, found[2 * pair], found[2 * pair + 1])
            for pair, ino in enumerate(inos)
        }

    async def nodes(self, inos: Sequence[Ino]) -> list[Node | None]:
        """Return many inodes, in one call for all that no cache knows; at most GET_KEYS_MAX / 2."""
        meta, keys = self._caches.meta, self._keys
        nodes: list[Node | None] = []
        missing: list[tuple[int, Ino]] = []
        wanted: list[bytes] = []
        for ino in inos:
            key = keys.inode(ino)
            node = meta.get(key)
            if type(node) is not Node:
                node = None
                missing.append((len(nodes), ino))
                wanted += (key, keys.times(ino))
            nodes.append(node)
        if missing:
            token = meta.begin_fill()
            found = await self._kv.get(wanted)
            for pair, (position, ino) in enumerate(missing):
                node = self._decode(ino, found[2 * pair], found[2 * pair + 1])
                if node is not None and not self._fill(keys.inode(ino), node, token):
                    node = await self.node(ino)
                nodes[position] = node
        return nodes

    def _fill(self, key: bytes, node: Node, token: int) -> bool:
        """Cache what was read; False if it changed meanwhile, so that it must be read again.

        Else a write that ended before this read began could be missing from what it returns.
        """
        return self._caches.meta.fill(key, node, max(node.revision, node.times_revision), token)

    def _decode(self, ino: Ino, found: Versioned | None, times: Versioned | None) -> Node | None:
        if found is None:
            return None
        key, times_key = self._keys.inode(ino), self._keys.times(ino)
        if times is None:
            raise CorruptRecordError(times_key, "it is missing beside its inode")
        return Node(
            decode_inode(key, found.value),
            found.revision,
            decode_times(times_key, times.value),
            times.revision,
        )

    def cached_entry(self, parent: Ino, name: bytes) -> Entry | None:
        """Return what the caches say that a name means; None if they do not know. No call."""
        entry = self._caches.meta.get(self._keys.dentry(parent, name))
        if type(entry) is Entry:
            return entry
        names = self._caches.names.get(self._keys.dentries(parent))
        return _NO_ENTRY if names is not None and name not in names else None

    async def entries(self, names: Sequence[tuple[Ino, bytes]]) -> list[Entry]:
        """Return what many names mean, each GET_KEYS_MAX that no cache knows in one call."""
        entries = [self.cached_entry(*name) for name in names]
        unknown = [position for position, entry in enumerate(entries) if entry is None]
        for first in range(0, len(unknown), GET_KEYS_MAX):
            positions = unknown[first : first + GET_KEYS_MAX]
            keys = [self._keys.dentry(*names[position]) for position in positions]
            token = self._caches.meta.begin_fill()
            for position, key, found in zip(positions, keys, await self._kv.get(keys), strict=True):
                entries[position] = self._fill_entry(key, found, token)
        return [entry for entry in entries if entry is not None]

    def _fill_entry(self, key: bytes, found: Versioned | None, token: int) -> Entry:
        entry = (
            _NO_ENTRY if found is None else Entry(decode_dentry(key, found.value), found.revision)
        )
        self._caches.meta.fill(key, entry, entry.revision, token)
        return entry

    async def entry(self, parent: Ino, name: bytes) -> Entry:
        """Return what a name means; its ``dentry`` is None if it does not exist."""
        entry = self.cached_entry(parent, name)
        if entry is not None:
            return entry
        stretch = ALONE if self._runs is None else self._runs.advance(parent, name)
        if stretch is not ALONE:
            found_among = await self._entry_among(parent, name, stretch)
            if found_among is not None:
                return found_among
        key = self._keys.dentry(parent, name)
        token = self._caches.meta.begin_fill()
        (found,) = await self._kv.get((key,))
        return self._fill_entry(key, found, token)

    async def meaning(self, parent: Ino, name: bytes) -> tuple[Entry, Node | None]:
        """Return what a name means, with its inode; None: it does not exist.

        The two are read one after the other, and others may replace the name in between: then it
        is read anew. If others replace it again and again, what it meant when it was read anew is
        an answer, too: that inode has no name any more, but lingers.
        """
        for number in range(limits.READ_ATTEMPTS_MAX):
            entry = await self.entry(parent, name)
            if entry.dentry is None:
                return entry, None
            node = await self.node(entry.dentry.ino)
            if node is not None and (node.inode.nlink or number > 0):
                return entry, node
            self._caches.meta.invalidate(self._keys.dentry(parent, name))
            self._caches.names.invalidate(self._keys.dentries(parent))
        return _NO_ENTRY, None

    async def _entry_among(self, parent: Ino, name: bytes, stretch: Stretch) -> Entry | None:
        """Bring names and their inodes into the caches, and return what the one sought means.

        Returns None if it lies beyond what was read.
        """
        meta, names, prefix = self._caches.meta, self._caches.names, self._keys.dentries(parent)
        key = self._keys.dentry(parent, name)
        token, names_token = meta.begin_fill(), names.begin_fill()
        start = prefix if stretch.is_from_first else key
        found, is_complete = await self._records(start, range_end(prefix), stretch.limit)
        if stretch.is_from_first and is_complete:
            cut = len(prefix)
            names.fill(prefix, {record.key[cut:] for record in found}, 0, names_token)
        if stretch.has_inodes:
            inos: list[Ino] = []
            for record in found:
                dentry = decode_dentry(record.key, record.value)
                meta.fill(record.key, Entry(dentry, record.revision), record.revision, token)
                inos.append(dentry.ino)
            await self.nodes(inos)
        return _entry_of(key, found, is_complete=is_complete)

    async def _records(self, start: bytes, end: bytes, limit: int) -> tuple[list[Record], bool]:
        """Return up to ``limit`` records of a range, and whether there are no more."""
        records: list[Record] = []
        continuation: bytes | None = None
        while True:
            page = await self._kv.scan(
                start,
                end,
                limit=min(limit - len(records), SCAN_ENTRIES_MAX),
                continuation=continuation,
            )
            records += page.records
            continuation = page.continuation
            if continuation is None or len(records) >= limit:
                return records, continuation is None

    async def listing(self, parent: Ino, after: bytes | None, limit: int) -> Listing:
        """Return up to ``limit`` entries whose names are above ``after`` (None: from the first).

        A directory that fits one page is kept in the scan cache, and from then on all its names are
        known: who looks for another one needs no call.
        """
        prefix = self._keys.dentries(parent)
        if after is None:
            cached = self._caches.scan.get(prefix)
            if type(cached) is Listing:
                return cached
        token, names_token = self._caches.scan.begin_fill(), self._caches.names.begin_fill()
        start = prefix if after is None else prefix + after + b"\x00"
        page = await self._kv.scan(start, range_end(prefix), limit=limit)
        cut = len(prefix)
        listing = Listing(
            tuple(
                (record.key[cut:], decode_dentry(record.key, record.value))
                for record in page.records
            ),
            page.continuation is None,
        )
        if after is None and listing.complete:
            self._caches.scan.fill(prefix, listing, 0, token)
            names = {name for name, _ in listing.entries}
            self._caches.names.fill(prefix, names, 0, names_token)
        return listing

    async def xattr(self, ino: Ino, node: Node, name: bytes) -> Versioned | None:
        """Return an extended attribute of an inode, None if it has none of that name."""
        if not node.inode.has_xattrs:
            return None
        (found,) = await self._kv.get((self._keys.xattr(ino, name),))
        return found

    def looks_empty(self, parent: Ino) -> bool:
        """Return whether a directory has no entry as far as this mount knows; no call."""
        names = self._caches.names.get(self._keys.dentries(parent))
        return names is not None and not names

    async def is_empty(self, parent: Ino) -> bool:
        """Return whether a directory has no entry."""
        prefix = self._keys.dentries(parent)
        page = await self._kv.scan(prefix, range_end(prefix), limit=1, keys_only=True)
        return not page.records

    async def present_chunks(self, ino: Ino, first: int, last: int) -> set[int]:
        """Return which chunks of ``[first, last]`` exist; costs by what exists."""
        start, end = self._keys.chunk(ino, first), self._keys.chunk(ino, last) + b"\x00"
        return {
            int.from_bytes(record.key[-8:], "big")
            async for record in records_between(self._kv, start, end, keys_only=True)
        }


def _entry_of(key: bytes, found: Sequence[Record], *, is_complete: bool) -> Entry | None:
    """Return what a name means by the records around it; None if they end before it."""
    for record in found:
        if record.key == key:
            return Entry(decode_dentry(key, record.value), record.revision)
    if is_complete or (found and key < found[-1].key):
        return _NO_ENTRY
    return None


assert limits.READDIR_PAGE_ENTRIES * 2 <= 1024, "one page of inodes is one get"
