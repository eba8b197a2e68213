"""The fuzz targets work: each takes its seeds, and what a fuzzer begins with beside them."""

from __future__ import annotations

import importlib

import pytest

from fuzz.__main__ import names


@pytest.mark.parametrize("name", names())
def test_a_target_takes_its_seeds(name: str) -> None:
    target = importlib.import_module(f"fuzz.targets.{name}")
    for seed in (b"", b"\0", *target.SEEDS):
        target.check(seed)
        target.check(seed[:-1])
