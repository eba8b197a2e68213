"""``make history``: record many histories and check them. It ends at the first that is wrong."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

import click

from tests.history.check import check
from tests.history.history import Call, dump, load
from tests.history.mounts import record, three_mounts
from tests.mount.mounts import clean_directory

CALLS: Final = 300  # of each worker, for each seed


@click.command()
@click.option("--seeds", default=200, show_default=True, help="How many histories.")
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--calls", default=CALLS, show_default=True, help="Calls of each mount's worker.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    default=Path(".cache/history.jsonl"),
    show_default=True,
    help="Where to write a history that is wrong.",
)
@click.argument("recorded", nargs=-1, type=click.Path(path_type=Path, exists=True))
def main(*, seeds: int, first: int, calls: int, keep: Path, recorded: tuple[Path, ...]) -> None:
    """Check that three mounts of one volume, used at once, keep to docs/consistency.md.

    With files, check the histories that were RECORDED there, and mount nothing.
    """
    for path in recorded:
        _conclude(load(path.read_text()))
    if recorded:
        return
    with (
        tempfile.TemporaryDirectory(prefix="aspenfs-history-") as name,
        clean_directory(Path(name)) as place,
        three_mounts(place) as mounts,
    ):
        for seed in range(first, first + seeds):
            history = record(mounts, place, seed, calls)
            if check(history):
                keep.parent.mkdir(parents=True, exist_ok=True)
                keep.write_text(dump(history))
                click.echo(f"seed {seed}: wrong; the history is in {keep}")
            _conclude(history)
            click.echo(f"seed {seed}: {len(history)} calls")


def _conclude(history: list[Call]) -> None:
    """Print what is wrong, and end with exit code 1, if anything is."""
    violations = check(history)
    for violation in violations:
        click.echo(f"\n{violation}")
    if violations:
        sys.exit(1)


if __name__ == "__main__":
    main()
