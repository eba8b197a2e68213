"""One call for all who want its answer: what a moment's crowd asks is asked once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class SharedCall(Generic[T]):
    """A call whose answer serves everybody who asked before it began.

    Who asks while one is under way waits for the next, since the one under way may have looked at
    the world before. It is made by one of those who wait; if that one is cancelled or the call
    fails, another makes it anew.
    """

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        """Take the call."""
        self._call = call
        self._lock = trio.Lock()  # held by the one who calls, for as long as the call takes
        self._begun = 0
        self._answered: tuple[int, T] | None = None

    async def __call__(self) -> T:
        """Return what a call answered that began after this one was asked for.

        Raises:
            Exception: what the call raised.
        """
        begun_before = self._begun
        async with self._lock:
            if self._answered is not None and self._answered[0] > begun_before:
                return self._answered[1]
            self._begun += 1
            number = self._begun
            answer = await self._call()
            self._answered = number, answer
            return answer
