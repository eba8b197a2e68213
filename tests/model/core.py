"""The core for synchronous tests: on a memory engine, over a store that lets other tasks run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.types import Clock
from aspenkv.contract import KeyValue
from aspenkv.embedded import open_embedded
from aspenkv.engine import Engine
from aspenkv.service import Service
from tests.model.portal import Hosted, Portal

YIELDING_CALLS = frozenset(("get", "scan", "commit", "lease", "keepalive", "revoke", "sync"))


class YieldingStore:
    """A store whose calls take a moment: other tasks run before and after each.

    Calls of an engine in the same process never wait, which would hide every race that a network
    shows.
    """

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._kv, name)
        return _yielding(value) if name in YIELDING_CALLS else value


def _yielding(call: Callable[..., Any]) -> Callable[..., Any]:
    async def yielding(*args: Any, **options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        result = await call(*args, **options)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    return yielding


class Server:
    """One engine and its service, for any number of clients, in one trio run."""

    def __init__(self, engine: Engine, now_ns: Callable[[], int]) -> None:
        self.portal = Portal()
        self._clock = Clock(self.portal.clock.current_time, now_ns)
        self._service, self._hosted = self.portal.enter(open_embedded(engine))

    def connect(self) -> KeyValue:
        """Return a client of the store."""
        service: Service = self._service
        kv: KeyValue = YieldingStore(service.connect())
        return kv

    def open(self) -> tuple[Filesystem, Hosted]:
        """Open the filesystem as one more mount would."""
        manager: AbstractAsyncContextManager[Filesystem] = open_filesystem(
            self.connect(), clock=self._clock
        )
        return self.portal.enter(manager)

    def close(self) -> None:
        """End the service and the run."""
        try:
            self.portal.exit(self._hosted)
        finally:
            self.portal.close()
