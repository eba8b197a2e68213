"""The changes of a mounted volume, by way of its control socket: both ends of the stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from aspenfs.change_feed import open_changes
from aspenfs.control.client import ControlClient
from aspenfs.control.server import Handlers, StreamHandler
from aspenfs.keys import Keys
from aspenkv.contract import Change, KeyValue, WatchEvent


def change_handlers(kv: KeyValue, keys: Keys) -> Handlers:
    """Return the server's end. A client that is slow holds up nobody: it is cut off in the end."""

    def changes(_args: Mapping[str, Any]) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        return open_changes(kv, keys)

    async def volume(_args: Mapping[str, Any]) -> str:
        return keys.volume

    return {"changes": StreamHandler(changes), "volume": volume}


@asynccontextmanager
async def open_remote_changes(client: ControlClient) -> AsyncIterator[AsyncIterator[WatchEvent]]:
    """Watch the volume as :func:`open_changes` does, on a connection that serves nothing else.

    Raises:
        ControlCallError, ControlProtocolError: as :meth:`ControlClient.stream`.
    """
    async with client.stream("changes") as items:
        yield _Changes(items)


class _Changes:
    """Iterates over the events of a stream."""

    def __init__(self, items: AsyncIterator[Any]) -> None:
        self._items = items

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self

    async def __anext__(self) -> WatchEvent:
        revision, changes = await anext(self._items)
        return WatchEvent(revision, tuple(Change(*change) for change in changes))
