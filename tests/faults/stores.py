"""Stores that fail, or take their time, as a test asks."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from typing import Any, Final

import trio

from aspenkv.contract import KeyValue
from aspenkv.errors import EngineError, OutcomeUnknownError

CALLS: Final = frozenset(("get", "scan", "commit", "lease", "keepalive", "revoke", "sync"))


class Fault(enum.Enum):
    """What happens to one call of a store."""

    FAILS = "fails"
    """It fails, and nothing was done."""
    ANSWER_LOST = "answer lost"
    """It is done, but the caller gets an error."""
    CANCELLED = "cancelled"
    """Its caller is cancelled before anything was done."""
    CANCELLED_LATE = "cancelled late"
    """Its caller is cancelled after it was done."""

    @property
    def is_done(self) -> bool:
        """Whether the call takes effect nevertheless."""
        return self in (Fault.ANSWER_LOST, Fault.CANCELLED_LATE)

    @property
    def cancels(self) -> bool:
        """Whether the caller is cancelled, in place of getting an error."""
        return self in (Fault.CANCELLED, Fault.CANCELLED_LATE)


class FaultyStore:
    """A store one of whose calls meets a fault: the one when ``countdown`` reaches 0.

    A cancelling fault needs ``scope``, the scope of the operation under test; a call made by any
    other task, in the background, fails instead.
    """

    def __init__(self, kv: KeyValue, fault: Fault) -> None:
        self._kv = kv
        self.fault = fault
        self.countdown = -1
        self.has_struck = False
        self.scope: trio.CancelScope | None = None
        self.task: trio.lowlevel.Task | None = None

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._kv, name)
        return self._faulty(value) if name in CALLS else value

    def _faulty(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def faulty(*args: Any, **options: Any) -> Any:
            strikes = self.countdown == 0
            self.countdown -= 1
            if not strikes:
                return await call(*args, **options)
            self.has_struck = True
            if self.fault.is_done:
                await call(*args, **options)
            if self.fault.cancels and trio.lowlevel.current_task() is self.task:
                assert self.scope is not None
                self.scope.cancel()
                await trio.lowlevel.checkpoint()
            error = OutcomeUnknownError if self.fault.is_done else EngineError
            raise error("the test lets this call fail")

        return faulty


class BrokenStore:
    """A store of which every commit and sync fails while ``is_broken`` is set."""

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv
        self.is_broken = False

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._kv, name)
        return self._broken(value) if name in ("commit", "sync") else value

    def _broken(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def broken(*args: Any, **options: Any) -> Any:
            if self.is_broken:
                raise EngineError("the disk is full; make room")
            return await call(*args, **options)

        return broken


class SlowStore:
    """A store whose calls take a while, before and after what they do, as over a network.

    Which task goes on first is random, and the same for the same seed.
    """

    def __init__(self, kv: KeyValue, dice: random.Random) -> None:
        self._kv = kv
        self._dice = dice

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._kv, name)
        return self._slow(value) if name in CALLS else value

    def _slow(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def slow(*args: Any, **options: Any) -> Any:
            await self._wait()
            result = await call(*args, **options)
            with trio.CancelScope(shield=True):
                await self._wait()
            return result

        return slow

    async def _wait(self) -> None:
        for _ in range(self._dice.randrange(4)):
            await trio.lowlevel.checkpoint()
