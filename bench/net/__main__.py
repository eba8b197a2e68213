"""The command line of the network benchmark."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import click
import trio
from rich.console import Console
from rich.table import Table

from bench.net.goals import GOALS
from bench.net.limits import SERVER_END_TIMEOUT_S, SERVER_START_TIMEOUT_S
from bench.net.rows import ROWS, Row, measure
from bench.net.subject import Call, Server, Subject
from bench.net.subjects import SUBJECTS

Rates = dict[tuple[str, Row], list[float]]


@click.command()
@click.option("--repeat", default=5, show_default=True, help="Rounds; the table shows medians.")
@click.option("--seconds", default=0.5, show_default=True, help="For each cell of each round.")
@click.option("--check", is_flag=True, help="Fail if a goal is missed.")
def main(*, repeat: int, seconds: float, check: bool) -> None:
    """Measure each layer of the network beside the one below it, in turn, over loopback."""
    rates = trio.run(_measure_all, repeat, seconds)
    console = Console()
    console.print(_table(rates))
    missed = _print_goals(console, rates)
    if check and missed:
        sys.exit(1)


async def _measure_all(repeat: int, seconds: float) -> Rates:
    rates: Rates = {(subject.name, row): [] for subject in SUBJECTS for row in ROWS}
    async with AsyncExitStack() as stack:
        calls = [await stack.enter_async_context(_opened(subject)) for subject in SUBJECTS]
        for _ in range(repeat):
            for row in ROWS:
                for subject, call in zip(SUBJECTS, calls, strict=True):
                    rates[subject.name, row].append(await measure(row, call, seconds))
    return rates


@asynccontextmanager
async def _opened(subject: Subject) -> AsyncIterator[Call]:
    """Start a subject's server and connect to it."""
    command = [sys.executable, "-m", "bench.net.serve", subject.name]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                command,
                stdin=subprocess.PIPE,
                capture_stdout=False,
                stdout=subprocess.PIPE,
            )
        )
        assert process.stdin is not None, "asked for"
        assert process.stdout is not None, "asked for"
        try:
            with trio.fail_after(SERVER_START_TIMEOUT_S):
                line = b""
                while not line.endswith(b"\n"):
                    line += await process.stdout.receive_some()
            port, fingerprint, *ticket = line.decode().split()
            server = Server(int(port), bytes.fromhex(fingerprint), "".join(ticket))
            async with subject.connect(server) as call:
                yield call
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(SERVER_END_TIMEOUT_S):
                await process.stdin.aclose()
                await process.wait()
            nursery.cancel_scope.cancel()


def _table(rates: Rates) -> Table:
    table = Table(title="Calls over loopback, client and server in a process each; medians")
    table.add_column("call")
    for subject in SUBJECTS:
        table.add_column(subject.name, justify="right")
    table.add_column("unit")
    for row in ROWS:
        cells = [f"{statistics.median(rates[each.name, row]):,.0f}" for each in SUBJECTS]
        table.add_row(row.name, *cells, row.unit)
    return table


def _print_goals(console: Console, rates: Rates) -> int:
    """Print each ratio beside its goal, and return how many are missed.

    The ratio is the median of the rounds' ratios: the two rates of a round were measured one after
    the other, so what slows the machine slows both.
    """
    missed = 0
    for goal in GOALS:
        ratio = statistics.median(
            rate / other
            for rate, other in zip(
                rates[goal.subject, goal.row],
                rates[goal.than_subject, goal.than_row],
                strict=True,
            )
        )
        is_missed = ratio < goal.ratio
        missed += is_missed
        than = goal.than_subject if goal.than_subject != goal.subject else goal.than_row.name
        console.print(
            f"{'missed' if is_missed else 'reached'}: {goal.subject}, {goal.row.name}: "
            f"{ratio:.2f} × {than} (goal: {goal.ratio:.2f} ×)",
            style="red" if is_missed else "green",
            highlight=False,
        )
    return missed


if __name__ == "__main__":
    main()
