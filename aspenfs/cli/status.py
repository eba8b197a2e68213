"""``aspenfs status``."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import trio

from aspenfs.cli.help import Command
from aspenfs.cli.mounts import find_mount
from aspenfs.cli.output import displayed, print_fields, print_json, readable_bytes
from aspenfs.config import ExitCode
from aspenfs.control import ControlCallError, ControlProtocolError, NotServedError, connect
from aspenfs.limits import MOUNT_ANSWER_TIMEOUT_S, MOUNT_DEAD_TIMEOUT_S
from aspenfs.mountpoint import Answer, MountEntry, probe, read_mounts

Status = dict[str, Any]


@click.command(
    "status",
    short_help="Show one mount or all.",
    cls=Command,
    sections={
        "Examples": (
            "aspenfs status",
            "aspenfs status /mnt/aspen --json | jq '.[0].store.used_bytes'",
        )
    },
)
@click.argument("mountpoint", type=Path, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, one object a mount.")
def command(mountpoint: Path | None, as_json: bool) -> int:
    """Show the mount on MOUNTPOINT, or all that this machine has."""
    if mountpoint is None:
        entries = [entry for entry in read_mounts() if entry.is_aspenfs]
    else:
        entries = [find_mount(mountpoint)]
    statuses = [trio.run(_status_of, entry) for entry in entries]
    if as_json:
        print_json(statuses)
        return ExitCode.OK
    if not statuses:
        click.echo("nothing is mounted")
    for number, status in enumerate(statuses):
        if number:
            click.echo()
        print_fields(_rows(status))
    return ExitCode.OK


async def _status_of(entry: MountEntry) -> Status:
    """Ask the mount, or say why it does not answer."""
    known: Status = {"mountpoint": str(entry.mountpoint), "data": str(entry.state_dir)}
    if entry.state_dir is None:
        return {**known, "state": "of an unknown data directory"}
    answer = await trio.to_thread.run_sync(probe, entry.mountpoint, MOUNT_DEAD_TIMEOUT_S)
    if answer is Answer.DEAD:
        return {**known, "state": "dead: its process is gone; the next mount takes it away"}
    reason = f"no answer within {MOUNT_ANSWER_TIMEOUT_S:g} s"
    with trio.move_on_after(MOUNT_ANSWER_TIMEOUT_S):
        try:
            async with connect(entry.state_dir) as client:
                status = await client.call("status")
        except PermissionError:
            return {**known, "state": "mounted by another user"}
        except (NotServedError, ControlProtocolError, ControlCallError) as error:
            reason = str(error)
        else:
            return {**known, "state": "mounted", **status}
    if answer is Answer.SILENT:
        return {**known, "state": "does not answer: 'aspenfs umount --force' takes it away"}
    return {**known, "state": f"does not answer: {reason}"}


def _rows(status: Status) -> Iterator[tuple[str, object]]:
    yield "mountpoint", displayed(status["mountpoint"])
    yield "state", status["state"] + (", read-only" if status.get("read_only") else "")
    if status.get("away"):
        yield "away", f"the server does not answer: {status['away']}"
    if not status.get("is_remote"):
        yield "data", displayed(status["data"])
    if "statistics" not in status:
        return
    if status["addresses"]:
        yield ("server" if status["is_remote"] else "address"), ", ".join(status["addresses"])
    if status["ticket_file"]:
        yield "ticket", displayed(status["ticket_file"])
    statistics = status["statistics"]
    data, transactions = statistics["data"], statistics["transactions"]
    yield "volume", _volume(status)
    yield "process", f"{status['pid']}, aspenfs {status['version']}"
    yield "up for", datetime.timedelta(seconds=int(status["uptime_s"]))
    if status["store"] is not None:
        yield from _store_rows(status["store"])
    yield "open", f"{data['open_files']} files, {statistics['known_inodes']} inodes known"
    yield "dirty", f"{readable_bytes(data['dirty_bytes'])} in {data['dirty_files']} files"
    yield "commits", f"{transactions['commits']}, {transactions['conflicts']} conflicts"
    for name, cache in statistics["caches"].items():
        hits, misses = cache["hits"], cache["misses"]
        share = f"{hits / (hits + misses):.0%}" if hits + misses else "-"
        yield f"{name} cache", f"{share} hits of {hits + misses}, {cache['entries']} entries"
    if status.get("why_no_extension"):  # which a mount by an older aspenfs does not know
        yield "extension", f"not in use: {status['why_no_extension']}"
    if status["bugs"]:
        yield "bugs", f"{status['bugs']}: see the log, and report them"


def _volume(status: Status) -> str:
    if status["uuid"] is None:
        return str(status["volume"])
    return f"{status['volume']} ({status['uuid']}, format {status['format_version']})"


def _store_rows(store: Status) -> Iterator[tuple[str, object]]:
    yield "store", f"{store['engine']}, revision {store['revision']}"
    for session in store["sessions"]:
        access = "read-write" if session["can_write"] else "read-only"
        yield (
            "session",
            f"{displayed(session['client'])} from {session['address']}, "
            f"{session['connections']} connections, {access}",
        )
    used, available = store["used_bytes"], store["available_bytes"]
    yield "space", f"{readable_bytes(used)} used, {readable_bytes(available)} available"
