"""``aspenfs umount``."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from aspenfs.cli.help import Command
from aspenfs.cli.mounts import ServingProcess, find_mount
from aspenfs.cli.output import displayed
from aspenfs.config import ExitCode
from aspenfs.control import ControlCallError, ControlProtocolError, NotServedError, connect
from aspenfs.errors import StartupError
from aspenfs.limits import (
    FORCED_UNMOUNT_WAIT_S,
    MOUNT_DEAD_TIMEOUT_S,
    UNMOUNT_CLONES_S,
    UNMOUNT_WAIT_S,
)
from aspenfs.mountpoint import (
    Answer,
    MountEntry,
    probe,
    read_mounts,
    unmount,
    unmount_by_force,
)


@click.command(
    "umount",
    short_help="Unmount, when everything is written.",
    cls=Command,
    sections={
        "Examples": (
            "aspenfs umount /mnt/aspen",
            "aspenfs umount --force /mnt/aspen",
        )
    },
)
@click.argument("mountpoint", type=Path)  # click.Path would stat it, and hang with the mount
@click.option(
    "--force", is_flag=True, help="Unmount although it is in use or hangs; see what it may cost."
)
def command(mountpoint: Path, force: bool) -> int:
    """Unmount MOUNTPOINT, and return when everything is written and the data directory is free.

    With --force whoever has something open there gets errors from then on. Data that a program has
    written is kept as far as the serving process still works; changes to mapped files that the
    kernel has not written back, and everything that a hanging process holds, are lost.
    """
    entry = find_mount(mountpoint)
    if force:
        _unmount_by_force(entry)
    elif probe(entry.mountpoint, MOUNT_DEAD_TIMEOUT_S) is Answer.DEAD:
        unmount(entry.mountpoint, lazy=True)
        click.echo(f"took away {displayed(entry.mountpoint)}: its process was gone")
    else:
        _unmount(entry)
    return ExitCode.OK


def _unmount(entry: MountEntry) -> None:
    with ServingProcess(entry) as server:
        trio.run(_flush, entry)
        unmount(entry.mountpoint)
        elsewhere = _mounted_elsewhere(entry)
        if elsewhere is not None:
            click.echo(f"still mounted on {displayed(elsewhere)}")
        elif not server.wait_for_end(UNMOUNT_CLONES_S):
            if trio.run(_still_serves, entry):
                raise StartupError(
                    f"{entry.mountpoint} is unmounted here, but lives on in another mount "
                    f"namespace, such as a container's: end that, or end the mount cleanly with "
                    f"'kill {server.pid}'",
                    ExitCode.STILL_RUNNING,
                )
            if not server.wait_for_end(UNMOUNT_WAIT_S):
                raise StartupError(
                    f"{entry.mountpoint} is unmounted, but process {server.pid} still writes after "
                    f"{UNMOUNT_WAIT_S:.0f} s: wait until it ends, or look into its log",
                    ExitCode.STILL_RUNNING,
                )


def _unmount_by_force(entry: MountEntry) -> None:
    with ServingProcess(entry) as server:
        unmount_by_force(entry)
        click.echo(
            f"unmounted {displayed(entry.mountpoint)} by force: programs that had files open there "
            f"get errors, and changes to mapped files may be lost"
        )
        if not server.wait_for_end(FORCED_UNMOUNT_WAIT_S):
            raise StartupError(
                f"process {server.pid} still holds {entry.state_dir} after "
                f"{FORCED_UNMOUNT_WAIT_S:.0f} s: end it with 'kill -9 {server.pid}', which loses "
                f"what it has not written",
                ExitCode.STILL_RUNNING,
            )


async def _flush(entry: MountEntry) -> None:
    """Have the mount write what is dirty while an error can still be told and the data kept.

    Raises:
        StartupError: it cannot.
    """
    if entry.state_dir is None:
        return
    try:
        async with connect(entry.state_dir) as client:
            unsynced = await client.call("sync")
    except (NotServedError, PermissionError):  # not ours to ask; the process writes it at its end
        return
    except (ControlCallError, ControlProtocolError) as error:
        raise StartupError(
            f"{entry.mountpoint} stays mounted, since what is dirty cannot be written ({error}): "
            f"cure that, or give it up with 'aspenfs umount --force {entry.mountpoint}'",
            ExitCode.FAILURE,
        ) from None
    if unsynced is not None:
        click.echo(
            f"the server has all changes, but does not say that they are on its disk ({unsynced})"
        )


async def _still_serves(entry: MountEntry) -> bool:
    """Return whether the process still serves requests; False as soon as it is about to end."""
    if entry.state_dir is None:
        return False
    try:
        async with connect(entry.state_dir) as client:
            await client.call("status")
    except (NotServedError, PermissionError, ControlProtocolError, ControlCallError):
        return False
    return True


def _mounted_elsewhere(entry: MountEntry) -> Path | None:
    """Return another place where the same mount is seen, such as a bind mount."""
    same = (other.mountpoint for other in read_mounts() if other.device == entry.device)
    return next(same, None)
