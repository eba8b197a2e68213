"""Long scans in bounded memory: page by page, and several joined by inode number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from aspenfs.fsck.report import Findings, ProblemKind
from aspenfs.keys import Keys, ParsedKey, range_end
from aspenfs.limits import FSCK_PAGE_RECORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aspenkv.contract import KeyValue, Record


KINDS: Final = b"CDILMNORSUX"
"""The letters after a volume's prefix, in key order."""


def kind_prefix(keys: Keys, letter: str) -> bytes:
    """Return the prefix of all keys of one letter."""
    return keys.prefix + letter.encode()


class ParsedRecord(NamedTuple):
    """A record with its key taken apart."""

    parsed: ParsedKey
    key: bytes
    value: bytes


class RecordCursor:
    """The records of ``[start, end)`` in key order; holds one page.

    Keys that the format does not know are reported and left out.
    """

    def __init__(
        self, kv: KeyValue, keys: Keys, start: bytes, end: bytes, findings: Findings
    ) -> None:
        """Read nothing yet."""
        self._kv = kv
        self._keys = keys
        self._start = start
        self._end = end
        self._findings = findings
        self._page: list[Record] = []
        self._position = 0
        self._continuation: bytes | None = None
        self._is_last_page = False

    @classmethod
    def over(cls, kv: KeyValue, keys: Keys, prefix: bytes, findings: Findings) -> RecordCursor:
        """Return a cursor over all keys with a prefix."""
        return cls(kv, keys, prefix, range_end(prefix), findings)

    async def next(self) -> ParsedRecord | None:
        """Return the next record that the format knows; None at the end."""
        while True:
            while self._position < len(self._page):
                key, value, _ = self._page[self._position]
                self._position += 1
                parsed = self._keys.parse(key)
                if parsed is not None:
                    return ParsedRecord(parsed, key, value)
                self._findings.add(ProblemKind.UNKNOWN_KEY, key, "the format knows no such key")
            if self._is_last_page:
                return None
            await self._read_page()

    async def _read_page(self) -> None:
        page = await self._kv.scan(
            self._start, self._end, limit=FSCK_PAGE_RECORDS, continuation=self._continuation
        )
        self._page, self._position = page.records, 0
        self._continuation = page.continuation
        self._is_last_page = page.continuation is None
        # An in-process store need not checkpoint, and a long check must not keep others waiting.
        await trio.lowlevel.checkpoint()


class InodeJoin:
    """The records of several prefixes, joined: all of one inode, then all of the next.

    Within an inode they come in the order of the prefixes. Every key of them must start with an
    inode number.
    """

    def __init__(self, cursors: Sequence[RecordCursor]) -> None:
        """Take the cursors in the order in which an inode's records are to come."""
        self._cursors = cursors
        self._heads: list[ParsedRecord | None] | None = None

    async def next(self) -> ParsedRecord | None:
        """Return the next record of the inode at hand, else of the lowest next; None at the end."""
        if self._heads is None:
            self._heads = [await cursor.next() for cursor in self._cursors]
        lowest = None
        for position, head in enumerate(self._heads):
            if head is not None and (lowest is None or head.parsed.ino < lowest[0]):
                lowest = (head.parsed.ino, position, head)
        if lowest is None:
            return None
        _, position, record = lowest
        self._heads[position] = await self._cursors[position].next()
        return record
