"""Samples in, a table and a JSON document out."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Final

from rich.table import Table

from bench import limits
from bench.rows import ROWS, Row

SUBJECT: Final = "aspenfs"

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""The rates of each row and, in it, of each peer, one per round."""


def medians(samples: Samples) -> dict[str, dict[str, float]]:
    """Return the median of each row and peer."""
    return {
        row: {peer: statistics.median(rates) for peer, rates in peers.items() if rates}
        for row, peers in samples.items()
    }


def ratios(rates: Mapping[str, float]) -> dict[str, float]:
    """Return aspenfs's rate over that of each peer; nothing if aspenfs was not measured."""
    subject = rates.get(SUBJECT)
    if subject is None:
        return {}
    return {peer: subject / rate for peer, rate in rates.items() if peer != SUBJECT}


def missed(row: Row, found: Mapping[str, float]) -> list[str]:
    """Return the peers against which a row's goal was measured and not reached."""
    return [peer for peer, goal in row.goals.items() if found.get(peer, goal) < goal]


def table(samples: Samples, peers: Sequence[str]) -> Table:
    """Lay the medians out, one line a row, with the ratios that have a goal."""
    goal_peers = [peer for peer in peers if any(peer in row.goals for row in ROWS.values())]
    result = Table(title="medians; ratios are aspenfs over the peer, with the goal in brackets")
    result.add_column("workload")
    for peer in peers:
        result.add_column(peer, justify="right")
    result.add_column("unit")
    for peer in goal_peers:
        result.add_column(f"× {peer}", justify="right")
    for name, rates in medians(samples).items():
        row, found = ROWS[name], ratios(rates)
        cells = [_number(rates.get(peer)) for peer in peers]
        marks = [_ratio(found.get(peer), row.goals.get(peer)) for peer in goal_peers]
        result.add_row(row.title, *cells, row.unit, *marks)
    return result


def document(samples: Samples) -> dict[str, object]:
    """Return all that was measured, fit for JSON."""
    by_row = medians(samples)
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "rows": {
            name: {
                "title": ROWS[name].title,
                "unit": ROWS[name].unit,
                "samples": {peer: list(rates) for peer, rates in samples[name].items()},
                "median": rates,
                "ratio": ratios(rates),
                "goal": dict(ROWS[name].goals),
                "missed": missed(ROWS[name], ratios(rates)),
            }
            for name, rates in by_row.items()
        },
    }


def _number(rate: float | None) -> str:
    if rate is None:
        return "–"
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:,.1f}"


def _ratio(ratio: float | None, goal: float | None) -> str:
    if ratio is None:
        return "–"
    if goal is None:
        return f"{ratio:.2f}"
    if ratio >= goal:
        mark = "[green]✓[/green]"
    elif ratio >= goal * (1 - limits.NOISE):
        mark = "[yellow]≈[/yellow]"
    else:
        mark = "[red]✗[/red]"
    return f"{ratio:.2f} ({goal:.1f}) {mark}"
