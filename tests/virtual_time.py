"""Tests on a clock that jumps to the next deadline whenever nothing else can happen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

T = TypeVar("T")


def run_in_virtual_time(item: pytest.Item) -> None:
    """Have a test run so, unless it names a clock among its arguments.

    pytest-trio sees a clock there only, not in what fixtures use.
    """
    in_virtual_time = pytest.mark.trio(run=_run)
    item.add_marker(in_virtual_time, append=False)  # before that of pytest-trio's own


def _run(test: Callable[[], Awaitable[T]], *, clock: trio.abc.Clock | None, instruments: Any) -> T:
    clock = clock or MockClock(autojump_threshold=0)
    return trio.run(test, clock=clock, instruments=instruments)
