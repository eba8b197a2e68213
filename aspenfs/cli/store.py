"""A store for a command: by ticket, by way of its mount, or opened directly."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import click

from aspenfs.cli.configure import chosen_data_dir
from aspenfs.cli.mounts import find_mount
from aspenfs.config import DEFAULT_TIMEOUT_S, TICKET_VARIABLE, ExitCode
from aspenfs.control import NotServedError, RemoteKeyValue, connect, serving_process
from aspenfs.errors import StartupError
from aspenfs.mount.storage import open_storage
from aspenfs.remote import open_remote, read_ticket
from aspenkv.contract import KeyValue
from aspenkv.embedded import open_embedded
from aspenkv.hosting import ADMIN_TICKET_NAME

F = TypeVar("F", bound=Callable[..., Any])


class Store(NamedTuple):
    """An open store. ``is_live``: others use it meanwhile; ``prefix``: of the keys one may use."""

    kv: KeyValue
    is_live: bool
    prefix: bytes = b""


class StoreChoice(NamedTuple):
    """Which store a command works on; :func:`store_options` fill it in.

    ``ticket_file`` stands for its server if ``is_remote``, and None for the ticket in the
    environment. Otherwise it is what ``data_dir`` holds.
    """

    data_dir: Path
    is_remote: bool = False
    ticket_file: Path | None = None


@asynccontextmanager
async def open_store(choice: StoreChoice) -> AsyncIterator[Store]:
    """Open a store, whether it is mounted or not.

    Raises:
        StartupError: there is none, or it cannot be used.
    """
    if choice.is_remote:
        ticket = read_ticket(choice.ticket_file)
        async with open_remote(ticket, timeout_s=DEFAULT_TIMEOUT_S) as kv:
            rights = await kv.hello()
            yield Store(kv, is_live=True, prefix=rights.prefix)
        return
    data_dir = choice.data_dir
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(connect(data_dir))
        except NotServedError:
            engine = await stack.enter_async_context(open_storage(data_dir, create=False))
            service = await stack.enter_async_context(open_embedded(engine))
            yield Store(service.connect(), is_live=False)
        except PermissionError:
            raise StartupError(
                f"no permission on data directory {data_dir}: run as its owner or as root",
                ExitCode.DATA_PERMISSION,
            ) from None
        else:
            yield Store(RemoteKeyValue(client), is_live=True)


@asynccontextmanager
async def open_whole_store(choice: StoreChoice) -> AsyncIterator[Store]:
    """Open a store with all that a filesystem needs, of which the control socket has a part only.

    Raises:
        StartupError: there is none, or it cannot be used.
    """
    if not choice.is_remote and serving_process(choice.data_dir) is not None:
        ticket_file = choice.data_dir / ADMIN_TICKET_NAME
        if not ticket_file.exists():
            raise StartupError(
                "a mount uses that store, and there is no ticket beside it to reach its server: "
                "use --ticket FILE",
                ExitCode.TICKET_UNREADABLE,
            )
        choice = StoreChoice(choice.data_dir, is_remote=True, ticket_file=ticket_file)
    async with open_store(choice) as store:
        yield store


def store_options(function: F) -> F:
    """Add the options that say which store a command works on; it gets a ``store``."""

    @functools.wraps(function)
    def with_store(
        *, data: Path | None, mount: Path | None, ticket: Path | None, **own: object
    ) -> object:
        return function(store=_chosen(data, mount, ticket), **own)

    for name, metavar, text in (
        ("--ticket", "FILE", "The server that a ticket names [default: $ASPENFS_TICKET, if set]."),
        ("--mount", "MNT", "The store behind a mount."),
        ("--data", "DIR", "A data directory [default: this user's]."),
    ):
        with_store = click.option(name, type=Path, metavar=metavar, help=text)(with_store)
    return cast("F", with_store)


def _chosen(data: Path | None, mount: Path | None, ticket: Path | None) -> StoreChoice:
    if sum(each is not None for each in (data, mount, ticket)) > 1:
        raise StartupError(
            "--data, --mount and --ticket exclude each other: give one", ExitCode.USAGE
        )
    if ticket is not None:
        return StoreChoice(Path(), is_remote=True, ticket_file=ticket)
    if mount is None:
        if data is None and TICKET_VARIABLE in os.environ:
            return StoreChoice(Path(), is_remote=True)
        return StoreChoice(chosen_data_dir(data))
    entry = find_mount(mount)
    if entry.state_dir is None:
        raise StartupError(
            f"the mount table does not say where the data of {mount} is: use --data DIR",
            ExitCode.FAILURE,
        )
    return StoreChoice(entry.state_dir)
