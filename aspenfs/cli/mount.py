"""``aspenfs mount``."""

from __future__ import annotations

import faulthandler
import logging
import os
import shlex
from functools import partial
from pathlib import Path

import click
import trio

from aspenfs.cli.background import mount_in_background
from aspenfs.cli.configure import StoreOptions, configure
from aspenfs.cli.failures import failure_of
from aspenfs.cli.help import Command
from aspenfs.cli.logs import log_to_file, log_to_stderr
from aspenfs.cli.output import displayed
from aspenfs.cli.report import Reporter
from aspenfs.config import ExitCode, HostedStore, MountConfig, Mounted
from aspenfs.types import CoherenceLevel

log = logging.getLogger(__name__)

_PRIVATE_UMASK = 0o077


@click.command(
    "mount",
    short_help="Mount, and return when it answers.",
    cls=Command,
    sections={
        "Words for -o": (
            "ro, rw, nonempty",
            "data, ticket, volume, listen, coherence, timeout, log_file, each as name=value",
            "local_locks              let file locks hold within this mount only",
            "carrier=quic             let the hosting mount use the network protocol too",
            "allow_other              let other users in (root's mounts always do)",
            "dev, suid, exec, noatime, sync ... and their opposites, for the kernel",
            "defaults, _netdev, nofail, auto, user, x-* ... do nothing here",
        ),
        "Examples": (
            "aspenfs mount /mnt/aspen",
            "aspenfs mount /mnt/photos --data /srv/photos --read-only",
            "aspenfs mount /mnt/team --ticket team.ticket",
            "aspenfs mount ~/aspen -o noatime,nodev --foreground",
        ),
    },
)
@click.argument("mountpoint", type=Path)
@click.option(
    "--data",
    "data_dir",
    type=Path,
    metavar="DIR",
    help="Where the data lives [default: /var/lib/aspenfs for root, else "
    "$XDG_DATA_HOME/aspenfs or ~/.local/share/aspenfs].",
)
@click.option(
    "--ticket",
    "ticket_file",
    type=Path,
    metavar="FILE",
    help="Use the server that this ticket names [default: $ASPENFS_TICKET, if it is set].",
)
@click.option(
    "--volume",
    metavar="NAME",
    help="The volume, made if absent [default: the ticket's, or default].",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Where to serve who has a ticket, or none [default: 127.0.0.1, any port].",
)
@click.option(
    "--advertise",
    multiple=True,
    metavar="HOST:PORT",
    help="How others reach that address, for tickets; may be repeated [default: --listen].",
)
@click.option(
    "--coherence",
    type=click.Choice([level.value for level in CoherenceLevel]),
    help="What others' changes are seen by: open (default), every stat (strict), time (ttl).",
)
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    help="How long a call waits for a server that does not answer [default: 30].",
)
@click.option("--read-only", is_flag=True, help="Forbid every change.")
@click.option(
    "-o", "options", multiple=True, metavar="OPTIONS", help="Mount options with commas between."
)
@click.option("-f", "--foreground", is_flag=True, help="Serve in this process until unmounted.")
@click.option(
    "--log-file",
    type=Path,
    metavar="FILE",
    help="[default: DIR/aspenfs.log; in the foreground, standard error]",
)
@click.option("--report-to", type=int, hidden=True)
def command(
    *,
    mountpoint: Path,
    data_dir: Path | None,
    ticket_file: Path | None,
    volume: str | None,
    listen: str | None,
    advertise: tuple[str, ...],
    coherence: CoherenceLevel | None,
    timeout: float | None,
    read_only: bool,
    options: tuple[str, ...],
    foreground: bool,
    log_file: Path | None,
    report_to: int | None,
) -> int:
    """Mount a volume on MOUNTPOINT, and return when it answers."""
    config = configure(
        mountpoint,
        options=options,
        store=StoreOptions(data_dir, ticket_file, listen, advertise),
        volume=volume,
        coherence=None if coherence is None else CoherenceLevel(coherence),
        timeout=timeout,
        log_file=log_file,
        read_only=read_only,
    )
    if foreground or report_to is not None:
        return serve_mount(config, Reporter(report_to))
    announce(*mount_in_background(config))
    return ExitCode.OK


def announce(config: MountConfig, mounted: Mounted) -> None:
    """Say in four lines what is mounted and how to go on."""
    access = ", read-only" if mounted.read_only else ""
    log_file = config.log_file or config.default_log_file
    addresses = ", ".join(mounted.addresses)
    click.echo(f"mounted  {displayed(config.mountpoint)} (log {displayed(log_file)})")
    if isinstance(config.store, HostedStore):
        data_dir = displayed(config.store.data_dir)
        click.echo(f"data     {data_dir} (volume {mounted.volume}{access})")
    else:
        click.echo(f"server   {addresses} (volume {mounted.volume}{access})")
    if mounted.ticket_file is not None:
        click.echo(f"ticket   {displayed(mounted.ticket_file)}, for {addresses}")
    click.echo(f"unmount  aspenfs umount {shlex.quote(displayed(config.mountpoint))}")


def serve_mount(config: MountConfig, reporter: Reporter) -> int:
    """Serve until unmounted, and report to whoever started this process."""
    # Imported here: the command that only starts another process needs no FUSE and no database.
    from aspenfs.mount.serving import serve  # noqa: PLC0415

    os.umask(_PRIVATE_UMASK)  # the store's files are private; the kernel hands us users' umasks
    os.chdir("/")  # keep no directory busy
    log_to_stderr()
    faulthandler.enable()

    def on_locked() -> None:
        if config.log_file is not None:
            log_to_file(config.log_file)

    try:
        trio.run(partial(serve, config, on_locked=on_locked, on_ready=reporter.ready))
    except Exception as error:
        failure = failure_of(error)
        if failure.is_bug:
            log.exception("the mount ends on an internal error")
        reporter.failed(failure)
        raise
    return ExitCode.OK
