"""``aspenfs info``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import trio

from aspenfs.cli.help import Command
from aspenfs.cli.output import (
    displayed,
    escaped,
    print_fields,
    print_json,
    readable_bytes,
    readable_time,
)
from aspenfs.config import ExitCode
from aspenfs.control import InodeDescription, connect
from aspenfs.errors import StartupError
from aspenfs.mountpoint import mount_of_device


@click.command(
    "info",
    short_help="Show what the store holds of a file.",
    cls=Command,
    sections={
        "Examples": (
            "aspenfs info /mnt/aspen/notes.txt",
            "aspenfs info /mnt/aspen/notes.txt --json | jq -r '.keys[].key'",
        )
    },
)
@click.argument("path", type=Path)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: Path, as_json: bool) -> int:
    """Show what the store holds of the file at PATH: inode, times, chunks, attributes, keys."""
    found = path.lstat()
    entry = mount_of_device(found.st_dev)
    if entry is None or entry.state_dir is None:
        raise StartupError(
            f"{displayed(path)} is not on an aspenfs mount: 'aspenfs status' lists the mounts",
            ExitCode.NOT_MOUNTED,
        )
    description = trio.run(_describe, entry.state_dir, found.st_ino)
    if as_json:
        print_json({"path": str(path), "mountpoint": str(entry.mountpoint), **description})
    else:
        print_fields(_rows(path, description))
    return ExitCode.OK


async def _describe(data_dir: Path, ino: int) -> InodeDescription:
    async with connect(data_dir) as client:
        answer: InodeDescription = await client.call("inode", ino=ino)
        return answer


def _rows(path: Path, description: InodeDescription) -> Iterator[tuple[str, object]]:
    record: dict[str, Any] = description["record"]
    yield "path", displayed(path)
    yield "inode", f"{description['ino']}, generation {record['generation']}"
    yield "mode", f"{stat.filemode(record['mode'])} ({record['mode']:o})"
    yield "owner", f"{record['uid']}:{record['gid']}"
    yield "links", record["nlink"]
    yield "size", f"{record['size']} bytes, {readable_bytes(record['allocated_bytes'])} allocated"
    if stat.S_ISCHR(record["mode"]) or stat.S_ISBLK(record["mode"]):
        yield "device", f"{os.major(record['rdev'])}:{os.minor(record['rdev'])}"
    if stat.S_ISDIR(record["mode"]):
        yield "parent", record["parent"]
    yield "content", _content(description)
    times = {
        "modified": description["mtime_ns"],
        "changed": description["ctime_ns"],
        "accessed": record["atime_ns"],
        "born": record["btime_ns"],
    }
    for name, time_ns in times.items():
        yield name, readable_time(time_ns)
    for attribute, size in description["xattrs"].items():
        yield "attribute", f"{escaped(attribute)} ({size} bytes)"
    for stored in description["keys"]:
        yield "key", f"{escaped(stored['key'])} at revision {stored['revision']}"


def _content(description: InodeDescription) -> str:
    if description["content"] == "chunks":
        return f"{description['chunk_count']} chunks"
    return description["content"]
