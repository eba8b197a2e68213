"""The commits of one volume, with as many of their values as telling them by path takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aspenfs.keys import Keys
from aspenkv.contract import KeyValue, Watch, WatchEvent
from aspenkv.errors import WatchGapError


@asynccontextmanager
async def open_changes(kv: KeyValue, keys: Keys) -> AsyncIterator[AsyncIterator[WatchEvent]]:
    """Watch a volume from now on until the block ends.

    Each event has the changes of chunks and extended attributes without values, those of entries,
    inodes and times with the value that was put; None: the record was deleted. Ranges are told of
    entries only. Commits that touch nothing of all that are left out.

    A watch with all values would carry the content of every file. So there are three: one says what
    comes next, the other two have the values of what has some.

    Args:
        kv: the client; its own commits are told, too.
        keys: the volume's keys.

    Raises:
        AspenKvError: as :meth:`aspenkv.contract.KeyValue.watch`; also from the iterator.
    """
    async with AsyncExitStack() as stack:

        async def open_watch(prefix: bytes, *, values: bool) -> Watch:
            return await stack.enter_async_context(kv.watch(prefix, values=values))

        # Opened first, so that they miss nothing of what the other one tells.
        entries = _Companion(await open_watch(keys.prefix + b"D", values=True))
        inodes = _Companion(await open_watch(keys.inodes(), values=True))
        yield _Changes(keys, await open_watch(keys.prefix, values=False), entries, inodes)


class _Companion:
    """A watch that has the values of some changes of another one."""

    def __init__(self, watch: Watch) -> None:
        self._events = aiter(watch)

    async def event_of(self, revision: int) -> WatchEvent:
        """Return the event of a commit that this watch must have, too."""
        async for event in self._events:
            if event.revision == revision:
                return event
            if event.revision > revision:
                break
        raise WatchGapError(f"the values that revision {revision} put are missing")


class _Changes:
    """Iterates over the events of a volume."""

    def __init__(self, keys: Keys, watch: Watch, entries: _Companion, inodes: _Companion) -> None:
        self._events = aiter(watch)
        self._entries = entries
        self._inodes = inodes
        self._kind_at = len(keys.prefix)
        self._entries_prefix = keys.prefix + b"D"

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self

    async def __anext__(self) -> WatchEvent:
        """Return the next event that has something to tell."""
        async for event in self._events:
            told = await self._with_values(event)
            if told.changes:
                return told
        raise StopAsyncIteration

    async def _with_values(self, event: WatchEvent) -> WatchEvent:
        changes = []
        has_entries = has_inodes = False
        for change in event.changes:
            kind = change.key[self._kind_at : self._kind_at + 1]
            if change.end is not None:
                has_entries |= change.key <= self._entries_prefix < change.end or kind == b"D"
            elif kind == b"D":
                has_entries = True
            elif kind == b"I":
                has_inodes = True
            elif kind in {b"C", b"X"}:
                changes.append(change)
        if has_entries:
            changes += (await self._entries.event_of(event.revision)).changes
        if has_inodes:
            event_of_inodes = await self._inodes.event_of(event.revision)
            changes += [change for change in event_of_inodes.changes if change.end is None]
        return WatchEvent(event.revision, tuple(changes))
