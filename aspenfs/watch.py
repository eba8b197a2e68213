"""What other clients change, told to the caches and, by callback, to the kernel.

While the watch runs, the caches are live: entries outlive their TTL. When it breaks, every TTL is
in force again, counted from then, and the listener is told to drop all that the kernel keeps. The
next watch goes on where this one broke if the store still has the history; else the caches are
emptied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from aspenfs import limits
from aspenfs.cache import Caches
from aspenfs.keys import Keys, ParsedKey
from aspenkv.contract import Change, KeyValue, Watch, WatchEvent
from aspenkv.errors import AspenKvError, ClosedError, WatchGapError

log = logging.getLogger(__name__)

Listener = Callable[[ParsedKey | None], None]
"""Told each key that another client changed; None: anything may have changed."""


class Watcher:
    """Follows one volume's commits by others."""

    def __init__(self, kv: KeyValue, keys: Keys, caches: Caches) -> None:
        """Take the client whose own commits are left out."""
        self._kv = kv
        self._keys = keys
        self._caches = caches
        self._listener: Listener | None = None
        self._seen_revision: int | None = None  # up to which every change was applied
        self._is_live = False
        self._following = trio.CancelScope()
        self._skips_own = True
        self._hears_own_until_s = float("-inf")

    def listen(self, listener: Listener | None) -> None:
        """Set who is told of changes by others. It is called synchronously and must not block."""
        self._listener = listener

    @property
    def is_live(self) -> bool:
        """Whether every change by others reaches the caches and the listener."""
        return self._is_live

    def _set_live(self, live: bool) -> None:
        self._is_live = live
        self._caches.set_live(live)

    def hear_own(self) -> None:
        """Also hear of this mount's own commits for LATE_COMMIT_S: one may be done late, unseen.

        Else what it changes stays in the caches, and in the kernel, as it was before.
        """
        self._hears_own_until_s = trio.current_time() + limits.LATE_COMMIT_S
        if self._skips_own:
            self._following.cancel()
        else:
            self._following.deadline = self._hears_own_until_s

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the volume until cancelled; reports started when the first watch is open."""
        started = is_said = False
        backoff_s = limits.TXN_BACKOFF_FIRST_S
        while True:
            self._skips_own = trio.current_time() >= self._hears_own_until_s
            self._following = trio.CancelScope()
            if not self._skips_own:
                self._following.deadline = self._hears_own_until_s
            try:
                with self._following:
                    async with self._kv.watch(
                        self._keys.prefix, self._seen_revision, skip_own=self._skips_own
                    ) as watch:
                        backoff_s = limits.TXN_BACKOFF_FIRST_S
                        is_said = False
                        if not started:
                            started = True
                            task_status.started()
                        await self._follow(watch)
            except WatchGapError:
                log.info("changes of other clients were missed; all caches are dropped")
                self._seen_revision = None
                self._drop_all(0)
            except ClosedError:
                return
            except AspenKvError as error:
                if not started:
                    raise
                if not is_said:
                    log.warning("changes by others cannot be followed: %s; trying again", error)
                is_said = True
            if not self._following.cancelled_caught:
                await trio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, limits.TXN_BACKOFF_MAX_S)

    async def _follow(self, watch: Watch) -> None:
        """Apply what others change, until the watch breaks.

        One that goes on where the last one broke first tells what was missed; the caches are live
        when all of it is applied.
        """
        try:
            events = aiter(watch)
            if self._seen_revision is None:
                self._drop_all(watch.revision)  # what changed before is not known
            else:
                now_revision = await self._kv.revision()
                while watch.revision < now_revision:
                    # The revision also moves without an event: by commits that touch other keys.
                    with trio.move_on_after(limits.WATCH_CATCH_UP_S):
                        self._apply_all(await anext(events))
            self._set_live(True)
            async for event in events:
                self._apply_all(event)
        finally:
            self._seen_revision = watch.revision
            self._set_live(False)
            self._tell(None)

    def _drop_all(self, revision: int) -> None:
        self._caches.clear(revision)
        self._tell(None)

    def _tell(self, key: ParsedKey | None) -> None:
        if self._listener is not None:
            self._listener(key)

    def _apply_all(self, event: WatchEvent) -> None:
        for change in event.changes:
            self._apply(change, event.revision)

    def _apply(self, change: Change, revision: int) -> None:
        if change.end is not None:
            self._caches.invalidate_range(change.key, change.end, revision)
        else:
            self._caches.invalidate_key(self._keys.inode_of_times(change.key), revision)
        parsed = self._keys.parse(change.key)
        if parsed is None:
            return
        if parsed.kind == "D":
            directory = change.key[: -len(parsed.name)]
            self._caches.scan.invalidate(directory, revision)
            self._caches.names.invalidate(directory, revision)
        self._tell(parsed)
