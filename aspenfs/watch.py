"""What other clients change, told to the caches and, by callback, to the kernel.

While the watch runs, the caches are live: entries outlive their TTL. When it breaks, every TTL is
in force again, counted from then, and the listener is told to drop all that the kernel keeps. The
next watch goes on where this one broke if the store still has the history; else the caches are
emptied.

A barrier asks the server how far the watch has to come, and waits until it is there: then all that
was committed before is in the caches. While the server has promised that nobody else commits (a
delegation), there is nothing to ask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from aspenfs import limits
from aspenfs.cache import Caches
from aspenfs.keys import Keys, ParsedKey
from aspenfs.shared_call import SharedCall
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
        self._watch: Watch | None = None  # while it is live
        self._moved = trio.lowlevel.ParkingLot()  # those who wait until it has come further
        self._catching_up = SharedCall(self._catch_up)
        self._alone_until_s = float("-inf")
        self._heard_of_names = False
        self._heard_count = 0
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

    @property
    def alone_for_s(self) -> float:
        """For how many seconds from now nobody else can change the volume; 0: they can."""
        return max(0.0, self._alone_until_s - trio.current_time())

    @property
    def heard_of_names(self) -> bool:
        """Whether others have ever changed a directory entry, or may have."""
        return self._heard_of_names

    @property
    def heard_count(self) -> int:
        """How many commits by others the caches were told of so far."""
        return self._heard_count

    async def barrier(self) -> bool:
        """Return once all that was committed before the call is in the caches, and was told.

        One round trip, shared by those who ask at the same time; none while nobody else may commit.

        Returns:
            False: changes cannot be followed now. The times to live are in force.
        """
        if not self._is_live:
            return False
        if trio.current_time() < self._alone_until_s:
            return True
        return await self._catching_up()

    async def _catch_up(self) -> bool:
        """Wait until the watch has handed out all that was committed before.

        One that does not get there within BARRIER_S is given up for a new one.
        """
        watch = self._watch
        if watch is None:
            return False
        asked_at_s = trio.current_time()
        reason = f"the server told nothing for {limits.BARRIER_S:g} s"
        with trio.move_on_after(limits.BARRIER_S):
            try:
                newest = await watch.newest()
            except AspenKvError as error:
                reason = str(error)
            else:
                while self._watch is watch and watch.revision < newest.revision:
                    await self._moved.park()
                if self._watch is not watch:
                    return False
                self._alone_until_s = asked_at_s + newest.alone_s
                return True
        if self._watch is watch:
            log.warning("changes by others cannot be followed: %s; trying anew", reason)
            self._set_live(None)
            self._following.cancel()
        return False

    def _set_live(self, watch: Watch | None) -> None:
        """Let a watch be followed, or none any more."""
        self._watch = watch
        self._is_live = watch is not None
        self._alone_until_s = float("-inf")
        self._caches.set_live(self._is_live)
        self._moved.unpark_all()

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
            self._set_live(watch)
            async for event in events:
                self._apply_all(event)
                self._moved.unpark_all()
        finally:
            self._seen_revision = watch.revision
            self._set_live(None)
            self._heard_of_names = True  # by what is missed from now on
            self._tell(None)

    def _drop_all(self, revision: int) -> None:
        self._caches.clear(revision)
        self._tell(None)

    def _tell(self, key: ParsedKey | None) -> None:
        if self._listener is not None:
            self._listener(key)

    def _apply_all(self, event: WatchEvent) -> None:
        self._heard_count += 1
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
            self._heard_of_names = True
            directory = change.key[: -len(parsed.name)]
            self._caches.scan.invalidate(directory, revision)
            self._caches.names.invalidate(directory, revision)
        self._tell(parsed)
