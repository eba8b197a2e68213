"""``aspenfs kv``: a look inside the store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import click
import trio

from aspenfs.cli.help import Command, Group
from aspenfs.cli.output import escaped, print_json, unescaped
from aspenfs.cli.store import StoreChoice, open_store, store_options
from aspenfs.config import ExitCode
from aspenfs.errors import StartupError
from aspenfs.keys import range_end
from aspenkv.contract import Delete, KeyValue, Op, Put, Record, Versioned
from aspenkv.limits import RANGE_BOUND_BYTES_MAX, SCAN_ENTRIES_MAX, VALUE_BYTES_MAX

_SHOWN_VALUE_BYTES: Final = 64


@click.group(
    "kv",
    cls=Group,
    sections={
        "Examples": (
            "aspenfs kv scan fs:default: --keys-only",
            "aspenfs kv get fs:default:S",
            "aspenfs kv get --raw 'fs:default:I\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x01' | xxd",
            "aspenfs kv put app:greeting hello",
        )
    },
)
def command() -> None:
    r"""Look inside the store, also while it is mounted.

    Keys and values are text in which \xNN is a byte and \\ a backslash. Changing a filesystem's
    records by hand can damage it; a mount sees such a change as another client's.
    """


@command.command("get", cls=Command, sections={"Example": ("aspenfs kv get fs:default:S",)})
@click.argument("key")
@click.option("--raw", is_flag=True, help="Write the value's bytes and nothing else.")
@store_options
def get(key: str, raw: bool, store: StoreChoice) -> int:
    """Print the value of KEY."""
    found = trio.run(_get, store, unescaped(key))
    if found is None:
        raise StartupError(
            f"there is no key {key}: 'aspenfs kv scan' lists keys", ExitCode.KEY_ABSENT
        )
    if raw:
        click.echo(found.value, nl=False)
    else:
        click.echo(escaped(found.value))
    return ExitCode.OK


@command.command(
    "put",
    cls=Command,
    sections={
        "Examples": (
            "aspenfs kv put app:greeting 'hello\\x0a'",
            "aspenfs kv put app:picture - < picture.png",
        )
    },
)
@click.argument("key")
@click.argument("value")
@store_options
def put(key: str, value: str, store: StoreChoice) -> int:
    """Write VALUE to KEY; a VALUE of - takes bytes as they are from standard input."""
    content = unescaped(value)
    if value == "-":
        content = sys.stdin.buffer.read(VALUE_BYTES_MAX + 1)  # one more, so that it is refused
    trio.run(_commit, store, (Put(unescaped(key), content),))
    return ExitCode.OK


@command.command("delete", cls=Command, sections={"Example": ("aspenfs kv delete app:greeting",)})
@click.argument("key")
@store_options
def delete(key: str, store: StoreChoice) -> int:
    """Remove KEY; nothing happens if there is none."""
    trio.run(_commit, store, (Delete(unescaped(key)),))
    return ExitCode.OK


@command.command(
    "scan",
    cls=Command,
    sections={
        "Examples": (
            "aspenfs kv scan fs:default: --limit 20",
            "aspenfs kv scan --keys-only --json",
        )
    },
)
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--keys-only", is_flag=True, help="Leave out the values.")
@click.option("--reverse", is_flag=True, help="Begin with the last key.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with whole values.")
@store_options
def scan(
    prefix: str,
    limit: int,
    keys_only: bool,
    reverse: bool,
    as_json: bool,
    store: StoreChoice,
) -> int:
    """List the keys that start with PREFIX: revision, key, and the beginning of the value."""
    found = trio.run(_scan, store, unescaped(prefix), limit, keys_only, reverse)
    if as_json:
        print_json([record._asdict() for record in found])
    else:
        for record in found:
            click.echo(f"{record.revision:>10}  {escaped(record.key)}{_shown_value(record)}")
    return ExitCode.OK


def _shown_value(record: Record) -> str:
    if not record.value:
        return ""
    more = "..." if len(record.value) > _SHOWN_VALUE_BYTES else ""
    return f"  {escaped(record.value[:_SHOWN_VALUE_BYTES])}{more}"


async def _get(choice: StoreChoice, key: bytes) -> Versioned | None:
    async with open_store(choice) as store:
        (found,) = await store.kv.get((key,), bulk=True)
        return found


async def _commit(choice: StoreChoice, ops: Sequence[Op]) -> None:
    """Commit and sync: what a command has changed stays changed."""
    async with open_store(choice) as store:
        await store.kv.commit((), ops)
        await store.kv.sync()


async def _scan(
    choice: StoreChoice, prefix: bytes, limit: int, keys_only: bool, reverse: bool
) -> list[Record]:
    async with open_store(choice) as store:
        return await _records(store.kv, prefix, limit, keys_only=keys_only, reverse=reverse)


async def _records(
    kv: KeyValue, prefix: bytes, limit: int, *, keys_only: bool, reverse: bool
) -> list[Record]:
    has_successor = bool(prefix.rstrip(b"\xff"))
    end = range_end(prefix) if has_successor else b"\xff" * RANGE_BOUND_BYTES_MAX
    records: list[Record] = []
    continuation: bytes | None = None
    while len(records) < limit:
        page = await kv.scan(
            prefix,
            end,
            limit=min(limit - len(records), SCAN_ENTRIES_MAX),
            keys_only=keys_only,
            reverse=reverse,
            continuation=continuation,
        )
        records += page.records
        continuation = page.continuation
        if continuation is None:
            break
    return records
