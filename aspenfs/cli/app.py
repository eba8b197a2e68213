"""The command ``aspenfs``: its subcommands, and what becomes of their failures."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from aspenfs.cli.failures import failure_of
from aspenfs.cli.help import Group
from aspenfs.cli.output import displayed
from aspenfs.config import ExitCode, aspenfs_version

# Modules are imported when their command is used: unmounting needs no database and no FUSE library.
_COMMANDS: Final = {
    "fsck": "aspenfs.cli.fsck",
    "info": "aspenfs.cli.info",
    "kv": "aspenfs.cli.kv",
    "mount": "aspenfs.cli.mount",
    "status": "aspenfs.cli.status",
    "ticket": "aspenfs.cli.ticket",
    "umount": "aspenfs.cli.umount",
    "volume": "aspenfs.cli.volume",
    "watch": "aspenfs.cli.watch",
}


class _LazyGroup(Group):
    """Finds a command in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(_COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command), f"{_COMMANDS[cmd_name]} has no command"
        return command


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    sections={
        "Examples": (
            "aspenfs mount /mnt/aspen",
            "aspenfs status",
            "aspenfs umount /mnt/aspen",
        )
    },
)
@click.version_option(aspenfs_version(), prog_name="aspenfs")
def aspenfs() -> None:
    """A POSIX filesystem whose every byte lives in a transactional key-value store."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``aspenfs`` and end the process with its exit code."""
    sys.exit(run_command(aspenfs, arguments))


def run_command(command: click.Command, arguments: Sequence[str] | None) -> int:
    """Run a click command and return its exit code; what it raises becomes one line."""
    try:
        outcome = command.main(arguments, prog_name=command.name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except click.Abort:
        click.echo("aspenfs: interrupted", err=True)
        return ExitCode.FAILURE
    except Exception as error:  # noqa: BLE001 - the last resort: no user should meet a traceback
        failure = failure_of(error)
        if failure.is_bug and os.environ.get("ASPENFS_DEBUG"):
            traceback.print_exc()
        click.echo(f"aspenfs: {displayed(failure.line)}", err=True)
        return failure.exit_code
    return outcome if isinstance(outcome, int) else ExitCode.OK
