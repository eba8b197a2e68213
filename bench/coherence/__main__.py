"""The command line of the benchmark of coherence."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from bench.coherence import limits
from bench.coherence.latencies import LATENCIES, Latency
from bench.coherence.mounts import Mounts, mounts_of_one_volume
from bench.coherence.rates import HOT, rate
from bench.system import BenchError

Times = Mapping[str, Sequence[float]]
"""The milliseconds of each round, by the name of the latency."""

Rates = Mapping[str, Sequence[tuple[float, float]]]
"""The rates of the mount and of tmpfs in each round, by the name of the hot work."""


class Spread(NamedTuple):
    """Of many times, in milliseconds."""

    median: float
    p99: float
    most: float


@click.command()
@click.option("--rounds", default=300, show_default=True, help="Of each latency.")
@click.option("--repeat", default=5, show_default=True, help="Of each rate; medians are shown.")
@click.option("--seconds", default=1.0, show_default=True, help="For each rate of each round.")
@click.option(
    "--level",
    type=click.Choice(["default", "strict", "ttl"]),
    default="default",
    show_default=True,
    help="Coherence of the mount that looks; with ttl, only the rates.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all samples.")
@click.option("--check", is_flag=True, help="Fail if a goal is missed.")
def main(
    *,
    rounds: int,
    repeat: int,
    seconds: float,
    level: str,
    json_file: Path | None,
    check: bool,
) -> None:
    """Measure how soon one mount shows what another did, and what that costs. Needs root."""
    console = Console()
    try:
        with mounts_of_one_volume(Path(tempfile.gettempdir()), level) as mounts:
            times = {} if level == "ttl" else _measure_times(mounts, rounds)
            rates = _measure_rates(mounts, repeat, seconds)
    except BenchError as error:
        console.print(f"bench: {error}", style="red", markup=False)
        sys.exit(1)
    if times:
        console.print(_table_of_times(times))
    console.print(_table_of_rates(rates))
    if json_file is not None:
        samples = {"level": level, "milliseconds": times, "rates": rates}
        json_file.write_text(json.dumps(samples, indent=2) + "\n", "utf-8")
    if check and not _reaches_goals(times, rates):
        sys.exit(1)


def _measure_times(mounts: Mounts, rounds: int) -> Times:
    return {
        name: [1000 * seconds for seconds in latency.measure(mounts, rounds)]
        for name, latency in LATENCIES.items()
    }


def _measure_rates(mounts: Mounts, repeat: int, seconds: float) -> Rates:
    """Measure the mount and tmpfs one after the other, so that what slows one slows both."""
    for hot in HOT.values():
        hot.prepare(mounts.writer)
        hot.prepare(mounts.tmpfs)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in HOT}
    for _ in range(repeat):
        for name, hot in HOT.items():
            ours = rate(hot, mounts.reader, seconds)
            rates[name].append((ours, rate(hot, mounts.tmpfs, seconds)))
    return rates


def _spread(milliseconds: Sequence[float]) -> Spread:
    in_order = sorted(milliseconds)
    return Spread(statistics.median(in_order), in_order[len(in_order) * 99 // 100], in_order[-1])


def _is_soon(latency: Latency, spread: Spread) -> bool:
    return (latency.median_ms_max is None or spread.median < latency.median_ms_max) and (
        latency.ms_max is None or spread.most < latency.ms_max
    )


def _ratio(rounds: Sequence[tuple[float, float]]) -> float:
    return statistics.median(ours / theirs for ours, theirs in rounds)


def _reaches_goals(times: Times, rates: Rates) -> bool:
    return all(_is_soon(LATENCIES[name], _spread(each)) for name, each in times.items()) and all(
        _ratio(each) >= limits.HOT_RATIO_MIN for each in rates.values()
    )


def _table_of_times(times: Times) -> Table:
    table = Table(title="Two mounts over loopback; milliseconds, with the goal in brackets")
    table.add_column("what")
    for column in ("median", "99 %", "most"):
        table.add_column(column, justify="right")
    table.add_column("")
    for name, milliseconds in times.items():
        latency, spread = LATENCIES[name], _spread(milliseconds)
        has_goal = latency.ms_max is not None
        table.add_row(
            latency.title,
            _bounded(spread.median, latency.median_ms_max),
            f"{spread.p99:.2f}",
            _bounded(spread.most, latency.ms_max),
            _mark(is_reached=_is_soon(latency, spread)) if has_goal else "",
        )
    return table


def _bounded(milliseconds: float, goal: float | None) -> str:
    return f"{milliseconds:.2f}" if goal is None else f"{milliseconds:.2f} (< {goal:g})"


def _table_of_rates(rates: Rates) -> Table:
    table = Table(title="What does not change, while it could; medians")
    table.add_column("what")
    for column in ("aspenfs", "tmpfs"):
        table.add_column(column, justify="right")
    table.add_column("unit")
    table.add_column(f"× tmpfs ({limits.HOT_RATIO_MIN:g})", justify="right")
    for name, rounds in rates.items():
        ratio = _ratio(rounds)
        table.add_row(
            HOT[name].title,
            *(f"{statistics.median(column):,.0f}" for column in zip(*rounds, strict=True)),
            HOT[name].unit,
            f"{ratio:.2f} {_mark(is_reached=ratio >= limits.HOT_RATIO_MIN)}",
        )
    return table


def _mark(*, is_reached: bool) -> str:
    return "[green]✓[/green]" if is_reached else "[red]✗[/red]"


if __name__ == "__main__":
    main()
