"""What a mount answers on its control socket."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aspenfs.config import MountConfig, RemoteStore, aspenfs_version
from aspenfs.control import Handlers, describe_inode, key_value_handlers
from aspenfs.filesystem import Filesystem
from aspenfs.metadata import decode_superblock
from aspenfs.mount.stores import MountStore
from aspenfs.types import Clock, Ino
from aspenkv.contract import KeyValue


class Served(NamedTuple):
    """What the calls are about: a mount that runs."""

    config: MountConfig
    store: MountStore
    filesystem: Filesystem
    clock: Clock
    started_s: float
    bug_count: Callable[[], int]


def mount_handlers(served: Served) -> Handlers:
    """Return the calls that one control client may make.

    Where that client shares the mount's own of the store, it may only look: the mount's watch would
    not show the mount what it writes.
    """
    own_kv = served.store.observe()
    read_only = served.config.read_only or not served.store.is_observer_apart
    filesystem = served.filesystem

    async def status(_args: Mapping[str, Any]) -> object:
        uptime_s = served.clock.monotonic() - served.started_s
        return {**await _status(served, own_kv), "uptime_s": round(uptime_s, 3)}

    async def sync(_args: Mapping[str, Any]) -> None:
        await filesystem.sync()

    async def inode(args: Mapping[str, Any]) -> object:
        await filesystem.sync()
        return await describe_inode(own_kv, filesystem.keys, Ino(args["ino"]))

    return {
        **key_value_handlers(own_kv, read_only=read_only),
        "status": status,
        "sync": sync,
        "inode": inode,
    }


async def _status(served: Served, kv: KeyValue) -> dict[str, object]:
    config, keys = served.config, served.filesystem.keys
    (found,) = await kv.get((keys.superblock,))
    superblock = None if found is None else decode_superblock(keys.superblock, found.value)
    return {
        "mountpoint": os.fspath(config.mountpoint),
        "data": os.fspath(config.state_dir),
        "is_remote": isinstance(config.store, RemoteStore),
        "addresses": served.store.mounted.addresses,
        "ticket_file": served.store.mounted.ticket_file,
        "volume": config.volume,
        "uuid": None if superblock is None else str(uuid.UUID(bytes=superblock.uuid)),
        "format_version": None if superblock is None else superblock.format_version,
        "read_only": config.read_only,
        "pid": os.getpid(),
        "version": aspenfs_version(),
        "store": _named(await kv.status()),
        "statistics": _named(served.filesystem.statistics()),
        "bugs": served.bug_count(),
    }


def _named(value: object) -> object:
    """Return a value with every named tuple in it as a map, so that its names survive msgpack."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _named(value._asdict())
    if isinstance(value, dict):
        return {name: _named(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_named(inner) for inner in value]
    return value
