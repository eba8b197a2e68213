"""Reads the names below a path, then tells what commits do to them."""

from __future__ import annotations

import math
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing

import trio

from aspenfs import limits
from aspenfs.change_feed.events import FeedEvent
from aspenfs.change_feed.known_tree import MOUNT_ROOT, Place
from aspenfs.change_feed.translator import Translator
from aspenfs.errors import AspenError
from aspenfs.keys import Keys
from aspenfs.metadata import Dentry, decode_dentry
from aspenfs.scans import records_below
from aspenfs.types import ROOT_INO
from aspenkv.contract import KeyValue, WatchEvent
from aspenkv.errors import AspenKvError


class FeedGapError(AspenError):
    """Changes were lost; a new follower begins with all names as they are then."""


class Follower:
    """Tells what anybody changes at one place and below.

    Args:
        keys: the volume's keys.
        top: the place.
        open_kv: lends a client of the store, for as long as names are read.
        on_live: called with the revision after which everything is told.
        tell: called with events, in order. It may take its time: FEED_BACKLOG_EVENTS_MAX commits
            wait meanwhile.
    """

    def __init__(
        self,
        keys: Keys,
        top: Place,
        open_kv: Callable[[], AbstractAsyncContextManager[KeyValue]],
        *,
        on_live: Callable[[int], Awaitable[None]],
        tell: Callable[[Sequence[FeedEvent]], Awaitable[None]],
    ) -> None:
        """Take whom to ask and whom to tell; :meth:`run` does it."""
        self._keys = keys
        self._top = top
        self._open_kv = open_kv
        self._on_live = on_live
        self._tell = tell
        self._translator = Translator(keys, top)
        self._failure: Exception | None = None

    async def run(self, changes: AsyncIterator[WatchEvent]) -> None:
        """Follow the changes of :func:`open_changes`, opened just before, until something fails.

        Raises:
            FeedGapError: they came faster than ``tell`` took them, for too long.
            UntranslatableError: they cannot be told by path; a new follower can go on.
            TooManyNamesError: there is more below the place than may be known.
            CorruptRecordError, FormatVersionError: a record cannot be read.
            AspenError, AspenKvError: whatever ``changes``, the store or ``tell`` raise.
        """
        sending, receiving = trio.open_memory_channel[WatchEvent](limits.FEED_BACKLOG_EVENTS_MAX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, changes, sending)
            try:
                await self._follow(receiving)
            except trio.EndOfChannel:
                pass  # the failure says why
            except (AspenError, AspenKvError) as error:
                self._failure = error
            nursery.cancel_scope.cancel()
        assert self._failure is not None, "nothing else ends it"
        raise self._failure

    async def _receive(
        self, changes: AsyncIterator[WatchEvent], sending: trio.MemorySendChannel[WatchEvent]
    ) -> None:
        """Take in what comes at once, so that nobody at the other end waits for who is told."""
        with sending:
            try:
                async for event in changes:
                    sending.send_nowait(event)
                self._failure = FeedGapError("the feed of changes has ended")
            except trio.WouldBlock:
                self._failure = FeedGapError("changes came faster than they could be told")
            except (AspenError, AspenKvError) as error:
                self._failure = error

    async def _follow(self, receiving: trio.MemoryReceiveChannel[WatchEvent]) -> None:
        translator = self._translator
        async with self._open_kv() as kv:
            await self._read_top(kv)
            await self._read_names(kv, 0)
            live_revision = await kv.revision()
        await self._on_live(live_revision)
        while True:
            due_s = translator.due_s
            event = None
            with trio.move_on_at(math.inf if due_s is None else due_s):
                event = await receiving.receive()
            told = translator.take_due(trio.current_time())
            if event is not None:
                told += translator.translate(event, trio.current_time())
                if translator.unread:
                    async with self._open_kv() as kv:
                        told += await self._read_names(kv, event.revision)
            # What was read in the beginning is newer than the first commits that come.
            told = [each for each in told if each.revision > live_revision]
            if told:
                await self._tell(told)

    async def _read_top(self, kv: KeyValue) -> None:
        if self._top == MOUNT_ROOT:
            self._translator.found(self._top, Dentry(ROOT_INO, stat.S_IFDIR >> 12), 0)
            return
        key = self._keys.dentry(*self._top)
        (found,) = await kv.get((key,))
        if found is not None:
            self._translator.found(self._top, decode_dentry(key, found.value), found.revision)

    async def _read_names(self, kv: KeyValue, revision: int) -> list[FeedEvent]:
        """Read the directories whose names are not known; return what that makes known.

        Nothing is told as if it were older than ``revision``, the commit that brought them.
        """
        told = []
        unread = self._translator.unread
        while unread:
            directory = unread.popleft()
            prefix = self._keys.dentries(directory)
            async with aclosing(records_below(kv, prefix)) as records:
                async for record in records:
                    place = Place(directory, record.key[len(prefix) :])
                    dentry = decode_dentry(record.key, record.value)
                    told += self._translator.found(place, dentry, max(record.revision, revision))
        return told
