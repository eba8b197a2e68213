"""The command line of the server: serve a data directory, or look at one."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Sequence
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio

from aspenkv.contract import Status
from aspenkv.daemon import run_server
from aspenkv.embedded import read_status
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.errors import AspenKvError, DataCorruptError, DataDirectoryLockedError
from aspenkv.hosting import Hosted
from aspenkv.logs import log_to_stderr
from aspenkv.tickets import Endpoint, parse_endpoint


class ExitCode(IntEnum):
    """What a command ends with; the numbers mean the same to ``aspenfs``."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    DATA_LOCKED = 31
    DATA_DAMAGED = 32
    ADDRESS_UNUSABLE = 53


DEFAULT_LISTEN: Final = "127.0.0.1:7400"

_PRIVATE_UMASK: Final = 0o077
_ADDRESS_ERRORS: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})
_BYTE_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")


class _EndpointType(click.ParamType[Endpoint]):
    """``HOST:PORT`` as an :class:`aspenkv.tickets.Endpoint`."""

    name = "endpoint"

    def convert(
        self, value: str | Endpoint, param: click.Parameter | None, ctx: click.Context | None
    ) -> Endpoint:
        if isinstance(value, Endpoint):
            return value
        try:
            return parse_endpoint(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


ENDPOINT: Final = _EndpointType()


@click.group()
@click.version_option(package_name="aspenfs", prog_name="aspenkv")
def aspenkv() -> None:
    """The key-value server under aspenfs."""


@aspenkv.command(
    epilog="Example: aspenkv serve --data /srv/aspen --listen 0.0.0.0:7400 "
    "--advertise files.example.org:7400"
)
@click.option(
    "--data",
    "data_dir",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The data directory, made if absent.",
)
@click.option(
    "--listen",
    type=ENDPOINT,
    default=DEFAULT_LISTEN,
    show_default=True,
    metavar="HOST:PORT",
    help="The UDP address to serve on; port 0 takes the one used last, or any.",
)
@click.option(
    "--advertise",
    type=ENDPOINT,
    multiple=True,
    metavar="HOST:PORT",
    help="How clients reach it, written into tickets; may be repeated [default: --listen].",
)
@click.option("--log-json", is_flag=True, help="Log JSON objects, one a line.")
def serve(
    data_dir: Path, listen: Endpoint, advertise: tuple[Endpoint, ...], log_json: bool
) -> None:
    """Serve a data directory to who has a ticket, until SIGTERM or SIGINT.

    The ticket that allows everything is DIR/admin.ticket. Who holds it makes others with
    'aspenfs ticket create' and mounts with 'aspenfs mount MNT --ticket FILE'.
    """
    os.umask(_PRIVATE_UMASK)
    log_to_stderr(as_json=log_json)
    trio.run(partial(run_server, data_dir, listen, advertise, on_ready=_announce))


def _announce(hosted: Hosted) -> None:
    click.echo(f"serving  {', '.join(map(str, hosted.endpoints))}")
    click.echo(f"ticket   {hosted.ticket_file}")


@aspenkv.command()
@click.option(
    "--data",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    help="The data directory; a server may be using it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def status(path: Path, as_json: bool) -> None:
    """Show what a data directory holds."""
    found = trio.run(_status, path)
    if as_json:
        click.echo(json.dumps(found._asdict(), indent=2))
        return
    click.echo(f"engine     {found.engine}")
    click.echo(f"revision   {found.revision}")
    click.echo(f"used       {_readable_bytes(found.used_bytes)}")
    click.echo(f"available  {_readable_bytes(found.available_bytes)}")
    click.echo(f"capacity   {_readable_bytes(found.capacity_bytes)}")
    click.echo(f"leases     {found.leases}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``aspenkv`` and end the process with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None) -> int:
    """Run ``aspenkv`` and return its exit code; every failure is one line on standard error."""
    try:
        aspenkv.main(arguments, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except click.ClickException as error:
        click.echo(f"aspenkv: {error.format_message()}", err=True)
        return error.exit_code
    except AspenKvError as error:
        click.echo(f"aspenkv: {error}", err=True)
        if isinstance(error, DataDirectoryLockedError):
            return ExitCode.DATA_LOCKED
        damaged = isinstance(error, DataCorruptError)
        return ExitCode.DATA_DAMAGED if damaged else ExitCode.FAILURE
    except OSError as error:
        click.echo(f"aspenkv: {error}: choose another address or directory", err=True)
        unusable = isinstance(error, socket.gaierror) or error.errno in _ADDRESS_ERRORS
        return ExitCode.ADDRESS_UNUSABLE if unusable else ExitCode.FAILURE
    return ExitCode.OK


async def _status(path: Path) -> Status:
    async with RocksdbEngine.open(path, read_only=True) as engine:
        return await read_status(engine)


def _readable_bytes(size: int) -> str:
    amount, unit = float(size), "B"
    for larger in _BYTE_UNITS:
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
