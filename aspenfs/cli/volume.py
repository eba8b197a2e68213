"""``aspenfs volume create|list``."""

from __future__ import annotations

import uuid
from typing import NamedTuple

import click
import trio
from rich.table import Table

from aspenfs.cli.help import Command, Group
from aspenfs.cli.output import print_json, print_table, readable_bytes, readable_time
from aspenfs.cli.store import StoreChoice, open_store, open_whole_store, store_options
from aspenfs.config import ExitCode
from aspenfs.errors import StartupError, VolumeError
from aspenfs.filesystem import open_filesystem
from aspenfs.keys import VOLUMES_PREFIX, Keys, range_end, volume_of_prefix
from aspenfs.metadata import decode_superblock
from aspenfs.volume import usage
from aspenkv.contract import KeyValue


class VolumeInfo(NamedTuple):
    """One volume: its name, its superblock's words, and how much is in it."""

    name: str
    uuid: str
    created_ns: int
    inodes: int
    used_bytes: int


@click.group(
    "volume",
    short_help="Make and list volumes.",
    cls=Group,
    sections={"Examples": ("aspenfs volume create photos", "aspenfs volume list")},
)
def command() -> None:
    """Make and list volumes. Each is a filesystem of its own, and what a ticket is for."""


@command.command(
    "create",
    cls=Command,
    sections={"Example": ("aspenfs volume create photos --ticket admin.ticket",)},
)
@click.argument("name")
@store_options
def create(name: str, store: StoreChoice) -> int:
    """Make an empty volume NAME. Mounting one that does not exist makes it too."""
    try:
        keys = Keys(name)
    except VolumeError as error:
        raise StartupError(str(error), ExitCode.USAGE) from None
    trio.run(_create, store, keys)
    click.echo(f"created {name}")
    return ExitCode.OK


@command.command(
    "list", cls=Command, sections={"Example": ("aspenfs volume list --ticket admin.ticket",)}
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@store_options
def list_command(as_json: bool, store: StoreChoice) -> int:
    """List the volumes of a store."""
    found = trio.run(_list, store)
    if as_json:
        print_json([volume._asdict() for volume in found])
        return ExitCode.OK
    table = Table("VOLUME", "INODES", "USED", "CREATED", "UUID", box=None)
    for volume in found:
        created = readable_time(volume.created_ns)[: len("2026-01-31 12:00")]
        used = readable_bytes(volume.used_bytes)
        table.add_row(volume.name, str(volume.inodes), used, created, volume.uuid)
    print_table(table)
    return ExitCode.OK


async def _create(choice: StoreChoice, keys: Keys) -> None:
    async with open_whole_store(choice) as store:
        (found,) = await store.kv.get((keys.superblock,))
        if found is not None:
            raise StartupError(f"volume '{keys.volume}' exists: use it", ExitCode.FAILURE)
        async with open_filesystem(store.kv, volume=keys.volume):
            pass  # opening it makes it


async def _list(choice: StoreChoice) -> list[VolumeInfo]:
    found: list[VolumeInfo] = []
    async with open_store(choice) as store:
        only = volume_of_prefix(store.prefix)
        if only is not None:
            return [await _describe(store.kv, Keys(only))]
        start, end = VOLUMES_PREFIX, range_end(VOLUMES_PREFIX)
        while True:
            page = await store.kv.scan(start, end, limit=1, keys_only=True)
            if not page.records:
                return found
            name, _, _ = page.records[0].key.removeprefix(VOLUMES_PREFIX).partition(b":")
            keys = Keys(name.decode("ascii", "replace"))
            found.append(await _describe(store.kv, keys))
            start = range_end(keys.prefix)


async def _describe(kv: KeyValue, keys: Keys) -> VolumeInfo:
    (found,) = await kv.get((keys.superblock,))
    if found is None:
        raise VolumeError(f"volume '{keys.volume}' has keys but no superblock: see 'aspenfs fsck'")
    superblock = decode_superblock(keys.superblock, found.value)
    space = await usage(kv, keys)
    return VolumeInfo(
        keys.volume,
        str(uuid.UUID(bytes=superblock.uuid)),
        superblock.created_ns,
        space.inodes_used,
        (space.blocks_total - space.blocks_free) * space.block_bytes,
    )
