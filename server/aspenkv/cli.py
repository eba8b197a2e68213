"""The command line of the server: look at a data directory."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final

import click
import trio

from aspenkv.contract import Status
from aspenkv.embedded import read_status
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.errors import AspenKvError, DataCorruptError


class ExitCode(IntEnum):
    """What a command ends with; the numbers mean the same to ``aspenfs``."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    DATA_DAMAGED = 32


_BYTE_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")


@click.group()
@click.version_option(package_name="aspenfs", prog_name="aspenkv")
def aspenkv() -> None:
    """The key-value server under aspenfs."""


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
        damaged = isinstance(error, DataCorruptError)
        return ExitCode.DATA_DAMAGED if damaged else ExitCode.FAILURE
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
