"""Whole ranges of the store, page by page."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from aspenfs.keys import range_end
from aspenkv.contract import KeyValue, Record
from aspenkv.limits import SCAN_ENTRIES_MAX


def records_below(
    kv: KeyValue, prefix: bytes, *, keys_only: bool = False
) -> AsyncGenerator[Record, None]:
    """Iterate in key order over all records whose keys start with ``prefix``.

    Who may not come to the end must close it (:func:`contextlib.aclosing`).
    """
    return records_between(kv, prefix, range_end(prefix), keys_only=keys_only)


async def records_between(
    kv: KeyValue, start: bytes, end: bytes, *, keys_only: bool = False
) -> AsyncGenerator[Record, None]:
    """Iterate in key order over the records of ``[start, end)``; holds one page at a time.

    Who may not come to the end must close it, as above.
    """
    continuation: bytes | None = None
    while True:
        page = await kv.scan(
            start, end, limit=SCAN_ENTRIES_MAX, keys_only=keys_only, continuation=continuation
        )
        for record in page.records:
            yield record
        if page.continuation is None:
            return
        continuation = page.continuation
