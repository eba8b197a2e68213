"""Three mounts are used at random, at once; what their programs saw is what was promised."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

from tests.history import deaf_mount
from tests.history.check import check
from tests.history.history import Call
from tests.history.mounts import MOUNTS, record, three_mounts

SEEDS: Final = 10
CALLS: Final = 150
"""Of each mount's worker, for each seed."""
DEAF_CALLS: Final = 50  # enough to be wrong, and slow: each change fails until its caches are gone


@pytest.mark.mount
@pytest.mark.slow
def test_what_programs_see_is_what_was_promised(tmp_path: Path) -> None:
    with three_mounts(tmp_path) as mounts:
        for seed in range(SEEDS):
            history = record(mounts, tmp_path, seed, CALLS)
            violations = check(history)
            assert not violations, "\n\n".join(map(str, violations))
            assert len(history) >= MOUNTS * CALLS
            assert _overlaps(history) > CALLS, "the mounts were not used at the same time"


@pytest.mark.mount
@pytest.mark.slow
def test_mounts_that_hear_nothing_of_each_other_are_found_out(tmp_path: Path) -> None:
    deaf = (sys.executable, deaf_mount.__file__)
    with three_mounts(tmp_path, prefix=deaf) as mounts:
        histories = (record(mounts, tmp_path, seed, DEAF_CALLS) for seed in range(SEEDS))
        assert any("was overwritten" in str(wrong) for each in histories for wrong in check(each))


def _overlaps(history: list[Call]) -> int:
    """Return how many calls began while another mount's was under way, in order of their start."""
    latest_ns = [0] * MOUNTS
    count = 0
    for call in sorted(history):
        others = [end_ns for mount, end_ns in enumerate(latest_ns) if mount != call.mount]
        count += call.start_ns < max(others)
        latest_ns[call.mount] = call.end_ns
    return count
