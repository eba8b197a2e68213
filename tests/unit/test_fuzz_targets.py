"""The fuzz targets hold: for their seeds, and for some of what a fuzzer makes of these."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.__main__ import names

_SLOW_EXAMPLES_MAX = 15
"""Of the targets that begin with a handshake."""


def _target(name: str) -> Any:
    return importlib.import_module(f"fuzz.targets.{name}")


@st.composite
def _mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Return a seed with a few pieces replaced, put in, taken out or repeated."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(start + 8, len(data))))
        piece = draw(st.binary(max_size=8) | st.just(2 * data[start:end]))
        data = data[:start] + piece + data[end:]
    return data


@pytest.mark.parametrize("name", names())
def test_a_target_takes_its_seeds(name: str) -> None:
    target = _target(name)
    for seed in (b"", b"\0", *target.SEEDS):
        target.check(seed)
        target.check(seed[:-1])


@pytest.mark.parametrize("name", names())
def test_a_target_takes_what_is_near_its_seeds(name: str) -> None:
    target = _target(name)

    @given(_mutated(target.SEEDS) | st.binary(max_size=200))
    def check(data: bytes) -> None:
        target.check(data)

    if name.startswith("quic"):
        check = settings(max_examples=_SLOW_EXAMPLES_MAX)(check)
    check()
