"""Time that jumps to the next deadline whenever every task waits, so that no test sleeps."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import pytest
import trio
from trio.abc import Clock, Instrument
from trio.testing import MockClock

TIMEOUT_S: Final = 3600
"""Of the clock that jumps: only what waits for ever reaches it."""


def _run(
    function: Callable[[], Awaitable[Any]],
    *,
    clock: Clock | None,
    instruments: Sequence[Instrument],
) -> Any:
    assert clock is None, "the clock is chosen here"
    return trio.run(function, clock=MockClock(autojump_threshold=0), instruments=instruments)


def seed_scheduling(dice: random.Random) -> None:
    """Let the order in which tasks run depend on the dice only, so that a failure can be repeated.

    pytest-trio has told trio that its order may be decided.
    """
    trio._core._run._r.seed(dice.random())


async def let_others_run(dice: random.Random) -> None:
    """Let other tasks take a few steps."""
    for _ in range(1 + dice.randrange(6)):
        await trio.lowlevel.checkpoint()


jumping_clock = pytest.mark.trio(run=_run)
"""Runs a test and its fixtures on such a clock. A mark of the function: a module's is overruled."""
