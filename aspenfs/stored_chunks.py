"""Which chunks of a file the store has, a few at a time and without their bytes."""

from __future__ import annotations

from aspenfs.keys import Keys
from aspenfs.types import Ino
from aspenkv.contract import KeyValue


class StoredChunks:
    """Scans the keys of chunks. Each call is one call of the store."""

    def __init__(self, kv: KeyValue, keys: Keys) -> None:
        """Take the client of one mount."""
        self._kv = kv
        self._keys = keys

    async def first(self, ino: Ino, start: int, end: int, limit: int) -> list[int]:
        """Return the first chunks of ``[start, end)`` that exist, in order.

        Fewer than ``limit``, which is at most SCAN_ENTRIES_MAX, are all that there are.
        """
        keys = self._keys
        page = await self._kv.scan(
            keys.chunk(ino, start), keys.chunk(ino, end), limit=limit, keys_only=True
        )
        return [int.from_bytes(record.key[-8:], "big") for record in page.records]
