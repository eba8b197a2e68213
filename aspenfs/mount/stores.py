"""The store of a mount: served by this very process, or by a server that a ticket names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from aspenfs.config import (
    DEFAULT_VOLUME,
    Carrier,
    ExitCode,
    HostedStore,
    MountConfig,
    Mounted,
    RemoteStore,
)
from aspenfs.errors import StartupError
from aspenfs.keys import Keys, volume_of_prefix
from aspenfs.mount.state_dir import holding
from aspenfs.mount.storage import open_storage
from aspenfs.remote import open_remote, read_ticket
from aspenkv.contract import KeyValue
from aspenkv.embedded import open_embedded
from aspenkv.hosting import Hosted, open_listener
from aspenkv.service import Service
from aspenkv.tickets import parse_endpoint


class MountStore(NamedTuple):
    """An open store, and what to tell of it.

    ``kv`` is the mount's own client of it. ``observe`` returns the client for those who ask over
    the control socket; the mount sees what it writes only if ``is_observer_apart``.
    ``is_reachable`` says whether the store can be called now.
    """

    kv: KeyValue
    mounted: Mounted
    observe: Callable[[], KeyValue]
    is_observer_apart: bool
    is_reachable: Callable[[], bool]


@asynccontextmanager
async def open_mount_store(
    config: MountConfig, *, on_locked: Callable[[], None]
) -> AsyncIterator[MountStore]:
    """Open the store of a mount until the block ends.

    Args:
        config: says which.
        on_locked: called once its directory belongs to this process.

    Raises:
        StartupError: it cannot be used.
        AspenKvError: its server does not answer, or does not accept the ticket.
    """
    if isinstance(config.store, RemoteStore):
        opened = _open_remote(config, config.store, on_locked)
    else:
        opened = _open_hosted(config, config.store, on_locked)
    async with opened as store:
        yield store


@asynccontextmanager
async def _open_hosted(
    config: MountConfig, hosted: HostedStore, on_locked: Callable[[], None]
) -> AsyncIterator[MountStore]:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            open_storage(hosted.data_dir, create=not config.read_only)
        )
        on_locked()
        service = await stack.enter_async_context(open_embedded(engine))
        listening = await stack.enter_async_context(_listening(service, hosted))
        kv: KeyValue = service.connect()
        is_reachable = _always
        if hosted.carrier is Carrier.QUIC:
            if listening is None:
                raise StartupError(
                    "-o carrier=quic needs an address: leave out --listen none", ExitCode.USAGE
                )
            ticket = read_ticket(listening.ticket_file)
            pooled = await stack.enter_async_context(
                open_remote(ticket, timeout_s=config.timeout_s)
            )
            kv, is_reachable = pooled, lambda: pooled.is_connected
        yield MountStore(
            kv,
            Mounted(
                volume=config.volume or DEFAULT_VOLUME,
                read_only=config.read_only,
                addresses=[] if listening is None else [str(each) for each in listening.endpoints],
                ticket_file=None if listening is None else os.fspath(listening.ticket_file),
            ),
            service.connect,
            is_observer_apart=True,
            is_reachable=is_reachable,
        )


def _always() -> bool:
    return True


@asynccontextmanager
async def _listening(service: Service, hosted: HostedStore) -> AsyncIterator[Hosted | None]:
    if hosted.listen is None:
        yield None
        return
    async with AsyncExitStack() as stack:
        try:
            listening = await stack.enter_async_context(
                open_listener(
                    service,
                    hosted.data_dir,
                    parse_endpoint(hosted.listen),
                    tuple(map(parse_endpoint, hosted.advertise)),
                )
            )
        except OSError as error:
            raise StartupError(
                f"cannot listen on {hosted.listen} ({error.strerror}): choose another address "
                f"with --listen HOST:PORT, or --listen none",
                ExitCode.ADDRESS_UNUSABLE,
            ) from None
        yield listening


@asynccontextmanager
async def _open_remote(
    config: MountConfig, remote: RemoteStore, on_locked: Callable[[], None]
) -> AsyncIterator[MountStore]:
    ticket = read_ticket(remote.ticket_file)
    async with AsyncExitStack() as stack:
        stack.enter_context(holding(remote.state_dir, config.mountpoint))
        on_locked()
        kv = await stack.enter_async_context(open_remote(ticket, timeout_s=config.timeout_s))
        rights = await kv.hello()
        yield MountStore(
            kv,
            Mounted(
                volume=_volume(config.volume, rights.prefix),
                read_only=config.read_only or not rights.can_write,
                addresses=[str(endpoint) for endpoint in ticket.endpoints],
                ticket_file=None,
            ),
            lambda: kv,
            is_observer_apart=False,
            is_reachable=lambda: kv.is_connected,
        )


def _volume(asked: str | None, prefix: bytes) -> str:
    """Return the volume to mount with a ticket for the keys below ``prefix``."""
    allowed = volume_of_prefix(prefix)
    if allowed is None:
        return asked or DEFAULT_VOLUME
    if asked is not None and asked != allowed:
        raise StartupError(
            f"the ticket is for volume '{allowed}', not '{asked}': leave out --volume, or ask for "
            f"a ticket for '{asked}'",
            ExitCode.TICKET_OF_OTHER_VOLUME,
        )
    return Keys(allowed).volume
