"""What many ask at once is asked once, and each answer is from after its question."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aspenfs.shared_call import SharedCall


class Slow:
    """A call that waits until it is let go, and answers how many were made."""

    def __init__(self) -> None:
        self.count = 0
        self.gate = trio.Event()

    async def __call__(self) -> int:
        self.count += 1
        count = self.count
        await self.gate.wait()
        return count


async def test_who_asks_while_one_is_under_way_gets_the_next() -> None:
    slow = Slow()
    shared = SharedCall(slow)
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await shared())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        for _ in range(5):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert slow.count == 1
        slow.gate.set()
    assert answers == [1, 2, 2, 2, 2, 2]
    assert await shared() == 3


async def test_one_who_is_cancelled_leaves_the_call_to_another() -> None:
    slow = Slow()
    shared = SharedCall(slow)
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await shared())

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as first:
                first.start_soon(ask)
                await wait_all_tasks_blocked()
                nursery.start_soon(ask)
                await wait_all_tasks_blocked()
                scope.cancel()
        await wait_all_tasks_blocked()
        slow.gate.set()
    assert answers == [2]


async def test_a_failure_is_its_callers_alone() -> None:
    outcomes = [OSError("broken"), None]

    async def call() -> str:
        await trio.lowlevel.checkpoint()
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        return "well"

    shared = SharedCall(call)
    with pytest.raises(OSError, match="broken"):
        await shared()
    assert await shared() == "well"
