"""What a mount answers on its control socket."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import trio

from aspenfs import limits
from aspenfs.config import MountConfig, RemoteStore, aspenfs_version
from aspenfs.control import Handlers, change_handlers, describe_inode, key_value_handlers
from aspenfs.filesystem import Filesystem
from aspenfs.metadata import decode_superblock
from aspenfs.mount.stores import MountStore
from aspenfs.types import Clock, Ino
from aspenkv.contract import KeyValue
from aspenkv.errors import AspenKvError, EngineError, InvalidRequestError, UnavailableError


class Served(NamedTuple):
    """What the calls are about: a mount that runs."""

    config: MountConfig
    store: MountStore
    filesystem: Filesystem
    clock: Clock
    started_s: float
    bug_count: Callable[[], int]
    why_no_extension: Callable[[], str | None]


def mount_handlers(served: Served) -> Handlers:
    """Return the calls that one control client may make.

    Where that client shares the mount's own of the store, it may only look: the mount's watch would
    not show the mount what it writes.
    """
    own_kv = served.store.observe()
    filesystem = served.filesystem

    async def status(_args: Mapping[str, Any]) -> object:
        uptime_s = served.clock.monotonic() - served.started_s
        return {**await _status(served, own_kv), "uptime_s": round(uptime_s, 3)}

    async def sync(_args: Mapping[str, Any]) -> str | None:
        return await _sync(served)

    async def inode(args: Mapping[str, Any]) -> object:
        await filesystem.sync()
        return await describe_inode(own_kv, filesystem.keys, Ino(args["ino"]))

    handlers = {
        **key_value_handlers(own_kv, read_only=served.config.read_only),
        **change_handlers(own_kv, filesystem.keys),
        "status": status,
        "sync": sync,
        "inode": inode,
    }
    if not served.store.is_observer_apart:
        handlers["kv_commit"] = _refuse_commit
    return handlers


async def _refuse_commit(_args: Mapping[str, Any]) -> None:
    raise InvalidRequestError(
        "this mount would not notice a change made through it: use --ticket, as the mount does"
    )


async def _sync(served: Served) -> str | None:
    """Commit what is dirty and sync it; say so if it is committed and no more is known of it."""
    is_reachable = served.store.is_reachable()
    try:
        with trio.fail_after(math.inf if is_reachable else limits.SHUTDOWN_AWAY_S):
            await served.filesystem.sync()
    except EngineError:  # changes are lost, or will be
        raise
    except (AspenKvError, trio.TooSlowError) as error:
        reason = str(error) or f"no server answers within {limits.SHUTDOWN_AWAY_S:g} s"
        if served.filesystem.statistics().data.dirty_files:
            raise UnavailableError(reason) from error
        return reason
    return None


async def _status(served: Served, kv: KeyValue) -> dict[str, object]:
    config = served.config
    return {
        "mountpoint": os.fspath(config.mountpoint),
        "data": os.fspath(config.state_dir),
        "is_remote": isinstance(config.store, RemoteStore),
        "addresses": served.store.mounted.addresses,
        "ticket_file": served.store.mounted.ticket_file,
        "volume": config.volume,
        "read_only": config.read_only,
        "pid": os.getpid(),
        "version": aspenfs_version(),
        "statistics": _named(served.filesystem.statistics()),
        "bugs": served.bug_count(),
        "why_no_extension": served.why_no_extension(),
        **await _store_status(kv, served.filesystem.keys.superblock),
    }


async def _store_status(kv: KeyValue, superblock_key: bytes) -> dict[str, object]:
    """Return what the store knows; of one that does not answer soon, only why."""
    away = f"no answer within {limits.CONTROL_STORE_S:g} s"
    with trio.move_on_after(limits.CONTROL_STORE_S):
        try:
            (found,) = await kv.get((superblock_key,))
            store = await kv.status()
        except AspenKvError as error:
            away = str(error)
        else:
            superblock = None if found is None else decode_superblock(superblock_key, found.value)
            return {
                "uuid": None if superblock is None else str(uuid.UUID(bytes=superblock.uuid)),
                "format_version": None if superblock is None else superblock.format_version,
                "store": _named(store),
                "away": None,
            }
    return {"uuid": None, "format_version": None, "store": None, "away": away}


def _named(value: object) -> object:
    """Return a value with every named tuple in it as a map, so that its names survive msgpack."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _named(value._asdict())
    if isinstance(value, dict):
        return {name: _named(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_named(inner) for inner in value]
    return value
