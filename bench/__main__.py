"""The command line of the benchmark."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from bench import limits, peers, report, system
from bench.peers import PeerFactory, mounted
from bench.resident import resident_after_writing
from bench.rows import ROWS
from bench.workloads import WORKLOADS, Sizes

_PEERS = (report.SUBJECT, "passthrough", "juicefs", "tmpfs")

Samples = dict[str, dict[str, list[float]]]


@click.command()
@click.option("--peer", "chosen", multiple=True, type=click.Choice(_PEERS), help="Only these.")
@click.option("--workload", "works", multiple=True, type=click.Choice(list(WORKLOADS)))
@click.option("--repeat", default=3, show_default=True, help="Rounds; the table shows medians.")
@click.option("--files", default=limits.SMALL_FILES, show_default=True, help="Small files.")
@click.option("--mib", default=limits.LARGE_FILE_MIB, show_default=True, help="The large file.")
@click.option("--ios", default=limits.RANDOM_IOS, show_default=True, help="Random reads, writes.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all samples.")
@click.option("--scratch", type=click.Path(path_type=Path, exists=True), help="On a local disk.")
@click.option("--juicefs", type=click.Path(path_type=Path, exists=True), help="Its program.")
@click.option(
    "--passthrough",
    type=click.Path(path_type=Path, exists=True),
    help="The example program of pyfuse3; fetched with pip if not given.",
)
@click.option("--network", is_flag=True, help="Over QUIC to a server, beside JuiceFS on redis.")
@click.option("--rss", is_flag=True, help="Only: memory after writing 4 GiB to aspenfs.")
def main(
    *,
    chosen: Sequence[str],
    works: Sequence[str],
    repeat: int,
    files: int,
    mib: int,
    ios: int,
    json_file: Path | None,
    scratch: Path | None,
    juicefs: Path | None,
    passthrough: Path | None,
    network: bool,
    rss: bool,
) -> None:
    """Measure aspenfs beside its peers, in turn, on the same work.

    With --network both aspenfs and JuiceFS (with redis) have a server process of their own.

    Cold means: unmounted, the kernel's caches dropped (as root), and mounted again.
    """
    parent = scratch or Path(tempfile.gettempdir())
    factories: dict[str, PeerFactory] = {
        report.SUBJECT: peers.aspenfs,
        "passthrough": partial(peers.passthrough, program=passthrough),
        "juicefs": partial(peers.juicefs, program=juicefs),
        "tmpfs": peers.Tmpfs,
    }
    if network:
        factories = {
            report.SUBJECT: peers.aspenfs_served,
            "juicefs": partial(peers.juicefs_served, program=juicefs),
        }
    console = Console(width=None if sys.stdout.isatty() else limits.REPORT_COLUMNS)
    try:
        if rss:
            _print_resident(console, parent)
            return
        names = [name for name in factories if not chosen or name in chosen]
        samples = _measure(
            {name: factories[name] for name in names},
            [name for name in WORKLOADS if not works or name in works],
            Sizes(files, mib, ios),
            repeat,
            parent,
        )
    except system.BenchError as error:
        console.print(f"bench: {error}", style="red", markup=False)
        sys.exit(1)
    if not system.may_drop_caches():
        console.print("not root: the kernel kept its caches, so cold is a remount only")
    console.print(report.table(samples, names))
    if json_file is not None:
        json_file.write_text(json.dumps(report.document(samples), indent=2) + "\n", "utf-8")


def _measure(
    factories: dict[str, PeerFactory],
    works: Sequence[str],
    sizes: Sizes,
    repeat: int,
    scratch: Path,
) -> Samples:
    """Run each workload on every peer before the next, so that all see the same machine."""
    samples: Samples = {row: {} for row in ROWS}
    progress = Console(stderr=True)
    with progress.status("") as status:
        for number in range(1, repeat + 1):
            for work in works:
                for name, factory in factories.items():
                    status.update(f"round {number} of {repeat}: {work} on {name}")
                    with mounted(factory, scratch) as peer:
                        for row, rate in WORKLOADS[work](peer, sizes):
                            samples[row].setdefault(name, []).append(rate)
    return {row: by_peer for row, by_peer in samples.items() if by_peer}


def _print_resident(console: Console, scratch: Path) -> None:
    with mounted(peers.aspenfs, scratch) as peer:
        resident = resident_after_writing(peer)
    mark = "✓" if resident.now_mib < limits.RESIDENT_MIB_MAX else "✗"
    console.print(
        f"resident after writing {limits.RESIDENT_FILE_MIB:,} MiB: {resident.now_mib:.0f} MiB "
        f"(goal: below {limits.RESIDENT_MIB_MAX}) {mark}, at most {resident.peak_mib:.0f} MiB"
    )


if __name__ == "__main__":
    main()
