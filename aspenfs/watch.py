"""What other clients change, told to the caches and, by callback, to the kernel.

While the watch runs, the caches are live: entries outlive their TTL. When it breaks, the caches are
emptied, every TTL is in force again, and the listener is told to drop all that the kernel keeps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from aspenfs import limits
from aspenfs.cache import Caches
from aspenfs.keys import Keys, ParsedKey
from aspenkv.contract import Change, KeyValue
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

    def listen(self, listener: Listener | None) -> None:
        """Set who is told of changes by others. It is called synchronously and must not block."""
        self._listener = listener

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the volume until cancelled; reports started when the first watch is open."""
        started = False
        backoff_s = limits.TXN_BACKOFF_FIRST_S
        while True:
            try:
                async with self._kv.watch(self._keys.prefix, skip_own=True) as watch:
                    # What changed between the last event seen and now is not known.
                    self._drop_all(watch.revision)
                    self._caches.set_live(True)
                    backoff_s = limits.TXN_BACKOFF_FIRST_S
                    if not started:
                        started = True
                        task_status.started()
                    async for event in watch:
                        for change in event.changes:
                            self._apply(change, event.revision)
            except WatchGapError:
                log.info("fell behind the changes of other clients; all caches are dropped")
            except ClosedError:
                return
            except AspenKvError as error:
                if not started:
                    raise
                log.warning("changes by others cannot be followed: %s; trying again", error)
            finally:
                self._caches.set_live(False)
                self._drop_all(0)
            await trio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, limits.TXN_BACKOFF_MAX_S)

    def _drop_all(self, revision: int) -> None:
        self._caches.clear(revision)
        if self._listener is not None:
            self._listener(None)

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
        if self._listener is not None:
            self._listener(parsed)
