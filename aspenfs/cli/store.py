"""The store of a data directory for a command: by way of its mount, or opened directly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from aspenfs.cli.configure import chosen_data_dir
from aspenfs.cli.mounts import find_mount
from aspenfs.config import ExitCode
from aspenfs.control import NotServedError, RemoteKeyValue, connect
from aspenfs.errors import StartupError
from aspenfs.mount.storage import open_storage
from aspenkv.contract import KeyValue
from aspenkv.embedded import open_embedded

F = TypeVar("F", bound=Callable[..., Any])


class Store(NamedTuple):
    """An open store. ``is_live``: others use it meanwhile."""

    kv: KeyValue
    is_live: bool


@asynccontextmanager
async def open_store(data_dir: Path) -> AsyncIterator[Store]:
    """Open the store of a data directory, whether it is mounted or not.

    Raises:
        StartupError: there is none, or it cannot be used.
    """
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


def store_options(function: F) -> F:
    """Add the options that say which store a command works on; :func:`data_dir_of` reads them."""
    function = click.option(
        "--data",
        type=Path,
        metavar="DIR",
        help="A data directory [default: this user's].",
    )(function)
    return click.option(
        "--mount",
        type=Path,
        metavar="MNT",
        help="In place of --data: the data directory behind a mount.",
    )(function)


def data_dir_of(data: Path | None, mount: Path | None) -> Path:
    """Return the data directory that :func:`store_options` name.

    Raises:
        StartupError: there is no such mount, or both are given.
    """
    if mount is None:
        return chosen_data_dir(data)
    if data is not None:
        raise StartupError("--data and --mount exclude each other: give one", ExitCode.USAGE)
    entry = find_mount(mount)
    if entry.data_dir is None:
        raise StartupError(
            f"the mount table does not say where the data of {mount} is: use --data DIR",
            ExitCode.FAILURE,
        )
    return entry.data_dir
