"""Runs the command that follows it on the line, a mount, with a feed that signals cut and heal.

``cut_feed.py PYTHON … -m aspenfs mount …``, as the ``prefix`` of a mount. Upon SIGUSR1 the watch of
the volume breaks and no new one opens; upon SIGUSR2 one may. On standard error, and so in the log
of the mount, stands FOLLOWED or NOT_FOLLOWED whenever that has changed.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from aspenfs import watch
from aspenfs.cache import Caches
from aspenfs.cli import main
from aspenfs.keys import Keys
from aspenkv.contract import KeyValue, Watch
from aspenkv.errors import UnavailableError

CUT: Final = signal.SIGUSR1
HEAL: Final = signal.SIGUSR2
FOLLOWED: Final = "the changes of others are followed"
NOT_FOLLOWED: Final = "the changes of others are not followed"


class _Cuttable:
    """The store as the watcher sees it."""

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv
        self._is_cut = False
        self._scope = trio.CancelScope()
        token = trio.lowlevel.current_trio_token()
        signal.signal(CUT, lambda *_: token.run_sync_soon(self._cut))
        signal.signal(HEAL, lambda *_: token.run_sync_soon(self._heal))

    def _cut(self) -> None:
        self._is_cut = True
        self._scope.cancel()

    def _heal(self) -> None:
        self._is_cut = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    @asynccontextmanager
    async def watch(self, *arguments: Any, **options: Any) -> AsyncIterator[Watch]:
        if not self._is_cut:
            with trio.CancelScope() as self._scope:
                async with self._kv.watch(*arguments, **options) as followed:
                    yield followed
                    return
        raise UnavailableError("the feed is cut")


def patch() -> None:
    """Give each watcher such a store, and have the caches say what they are told of it."""
    init, set_live = watch.Watcher.__init__, Caches.set_live
    was_live = False

    def cuttable_init(self: watch.Watcher, kv: KeyValue, keys: Keys, caches: Caches) -> None:
        cuttable: Any = _Cuttable(kv)
        init(self, cuttable, keys, caches)

    def telling_set_live(self: Caches, live: bool) -> None:
        nonlocal was_live
        set_live(self, live)
        if live != was_live:
            sys.stderr.write(f"{FOLLOWED if live else NOT_FOLLOWED}\n")
            sys.stderr.flush()
        was_live = live

    watch.Watcher.__init__ = cuttable_init  # type: ignore[method-assign]
    Caches.set_live = telling_set_live  # type: ignore[method-assign]


if __name__ == "__main__":
    patch()
    sys.argv = sys.argv[sys.argv.index("aspenfs") :]
    main()
