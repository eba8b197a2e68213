"""``mount.aspenfs``: what mount(8) calls for a line of /etc/fstab, in the words of mount(8)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import click

from aspenfs.cli.app import run_command
from aspenfs.cli.background import mount_in_background
from aspenfs.cli.configure import StoreOptions, configure
from aspenfs.cli.help import Command
from aspenfs.cli.mount import announce
from aspenfs.config import ExitCode, aspenfs_version, data_dir_of_fstab

# From mount(8), section EXIT STATUS.
_INCORRECT_INVOCATION: Final = 1
_INTERNAL: Final = 4
_MOUNT_FAILURE: Final = 32
_MOUNT_STATUS: Final = {
    ExitCode.OK: 0,
    ExitCode.USAGE: _INCORRECT_INVOCATION,
    ExitCode.INTERNAL: _INTERNAL,
}


@click.command(
    "mount.aspenfs",
    context_settings={"help_option_names": ["-h", "--help"]},
    cls=Command,
    sections={
        "Examples of lines in /etc/fstab": (
            "aspenfs      /mnt/aspen   aspenfs  defaults,nofail  0 0",
            "/srv/photos  /mnt/photos  aspenfs  ro,noauto,user   0 0",
            "aspenfs      /mnt/team    aspenfs  ticket=/etc/aspenfs/team.ticket,_netdev  0 0",
        )
    },
)
@click.argument("source")
@click.argument("mountpoint", type=Path)
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Mount options.")
@click.option("-s", "sloppy", is_flag=True, help="Leave out unknown options.")
@click.option("-f", "fake", is_flag=True, help="Do everything but mount.")
@click.option("-v", "verbose", is_flag=True, help="Say what was mounted.")
@click.option("-n", "no_mtab", is_flag=True, help="Ignored: there is no mtab to write.")
@click.option("-t", "kind", metavar="TYPE", help="Ignored: there is one type.")
@click.version_option(aspenfs_version(), prog_name="mount.aspenfs")
def command(
    source: str,
    mountpoint: Path,
    options: tuple[str, ...],
    sloppy: bool,
    fake: bool,
    verbose: bool,
    no_mtab: bool,
    kind: str | None,
) -> int:
    """Mount for mount(8). SOURCE is 'aspenfs' or 'none', or the path of a data directory."""
    del no_mtab, kind
    choice = StoreOptions(data_dir_of_fstab(source))
    config = configure(mountpoint, options=options, store=choice, sloppy=sloppy)
    if fake:
        return ExitCode.OK
    config, mounted = mount_in_background(config)
    if verbose:
        announce(config, mounted)
    return ExitCode.OK


def mount_helper(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``mount.aspenfs`` and end the process with an exit status of mount(8)."""
    sys.exit(_MOUNT_STATUS.get(ExitCode(run_command(command, arguments)), _MOUNT_FAILURE))
