"""Lets synchronous tests, as hypothesis writes them, call trio code step by step.

One trio run lives in a thread of its own. Its clock stands still between the steps; while a step
runs it jumps to the next deadline whenever every task waits, so nothing sleeps or is a race.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, TypeVar

import trio
import trio.testing

T = TypeVar("T")


class Hosted:
    """An asynchronous context manager held open by a task of its own."""

    def __init__(self) -> None:
        self.leave = trio.Event()
        self.left = trio.Event()


class Portal:
    """A trio run in a thread, entered from this one call at a time."""

    def __init__(self) -> None:
        self.clock = trio.testing.MockClock()
        self._ready: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="portal")
        self._thread.start()
        self._ready.get()

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run an asynchronous function to its end and return what it returns."""
        try:
            return trio.from_thread.run(self._step, function, args, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            self.close()
            raise

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return what it returns."""

        async def await_it() -> T:
            return await coroutine

        return self.call(await_it)

    def enter(self, manager: AbstractAsyncContextManager[T]) -> tuple[T, Hosted]:
        """Enter a context manager; :meth:`exit` leaves it."""
        hosted = Hosted()

        async def start() -> T:
            value: T = await self._nursery.start(self._host, manager, hosted)
            return value

        return self.call(start), hosted

    def exit(self, hosted: Hosted) -> None:
        """Leave a context manager and wait until it is done."""

        async def leave() -> None:
            hosted.leave.set()
            await hosted.left.wait()

        self.call(leave)

    def settle(self) -> None:
        """Return when every task has handled all that it was told."""
        self.call(trio.testing.wait_all_tasks_blocked)

    def sleep(self, seconds: float) -> None:
        """Let time pass, and with it everything happen that waits for it."""
        self.call(trio.sleep, seconds)

    def close(self) -> None:
        """End the run. Raises what made it end by itself, if something did."""
        with suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(self._nursery.cancel_scope.cancel, trio_token=self._token)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            trio.run(self._main, clock=self.clock)
        except BaseException as error:  # noqa: BLE001  # handed to the thread that closes
            self._error = error
            self._ready.put(None)

    async def _main(self) -> None:
        async with trio.open_nursery() as self._nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._ready.put(None)
            await trio.sleep_forever()

    async def _step(self, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
        self.clock.autojump_threshold = 0
        try:
            return await function(*args)
        finally:
            self.clock.autojump_threshold = math.inf

    @staticmethod
    async def _host(
        manager: AbstractAsyncContextManager[Any],
        hosted: Hosted,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        try:
            async with manager as value:
                task_status.started(value)
                await hosted.leave.wait()
        finally:
            hosted.left.set()
