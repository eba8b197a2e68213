"""``aspenfs fsck``."""

from __future__ import annotations

from typing import Final

import click
import trio
from rich.console import Console

from aspenfs.cli.help import Command
from aspenfs.cli.output import escaped, print_json, readable_bytes
from aspenfs.cli.store import StoreChoice, open_store, store_options
from aspenfs.config import DEFAULT_VOLUME, ExitCode
from aspenfs.fsck import Report, check_volume
from aspenfs.keys import Keys

_SHOWN_KEY_BYTES: Final = 80


@click.command(
    "fsck",
    short_help="Check a volume; change nothing.",
    cls=Command,
    sections={
        "Examples": (
            "aspenfs fsck",
            "aspenfs fsck --mount /mnt/aspen",
            "aspenfs fsck --data /srv/photos --volume raw --json",
        )
    },
)
@click.option("--volume", metavar="NAME", default=DEFAULT_VOLUME, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@store_options
def command(volume: str, as_json: bool, store: StoreChoice) -> int:
    """Check a volume against every rule of its format. Changes nothing; works while mounted.

    The exit code is 4 if something is wrong.
    """
    keys = Keys(volume)
    with Console(stderr=True).status("checking"):  # shown on a terminal only
        report = trio.run(_check, store, keys)
    if as_json:
        print_json(
            {
                **report._asdict(),
                "counts": report.counts._asdict(),
                "problems": [problem._asdict() for problem in report.problems],
            }
        )
    else:
        _print(report)
    return ExitCode.OK if report.is_clean else ExitCode.CHECK_FOUND_PROBLEMS


async def _check(choice: StoreChoice, keys: Keys) -> Report:
    async with open_store(choice) as store:
        return await check_volume(store.kv, keys, live=store.is_live)


def _print(report: Report) -> None:
    for problem in report.problems:
        key = escaped(problem.key[:_SHOWN_KEY_BYTES])
        click.echo(f"{problem.kind}: {problem.text} (key {key})")
    hidden = report.problem_count - len(report.problems)
    if hidden:
        click.echo(f"... and {hidden} more")
    counts = report.counts
    click.echo(
        f"{counts.inodes} inodes, {counts.dentries} names, {counts.chunks} chunks, "
        f"{readable_bytes(counts.allocated_bytes)}: "
        + ("clean" if report.is_clean else f"{report.problem_count} problems")
    )
