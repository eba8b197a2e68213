"""Three mounts are used at random, at once, and what their programs saw is checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

from tests.history import deaf_mount
from tests.history.check import check
from tests.history.mounts import record, three_mounts

SEEDS: Final = 10
DEAF_CALLS: Final = 50  # enough to be wrong, and slow: each change fails until its caches are gone


@pytest.mark.mount
def test_mounts_that_hear_nothing_of_each_other_are_found_out(tmp_path: Path) -> None:
    deaf = (sys.executable, deaf_mount.__file__)
    with three_mounts(tmp_path, prefix=deaf) as mounts:
        histories = (record(mounts, tmp_path, seed, DEAF_CALLS) for seed in range(SEEDS))
        assert any("was overwritten" in str(wrong) for each in histories for wrong in check(each))
