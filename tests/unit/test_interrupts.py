"""Which signals end a request, when they are looked for, and for whom."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import trio

from aspenfs import limits
from aspenfs.interrupts import Caller, Interrupts
from tests.faults.jumping import jumping_clock

TID = 4711


def mask(signals: Iterable[int]) -> str:
    return f"{sum(1 << (number - 1) for number in signals):016x}"


class Proc:
    """A /proc with one process of two threads: TID, which leads it, and TID + 1."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(TID)
        self.set(TID + 1)

    def set(
        self,
        tid: int,
        *,
        own: Iterable[int] = (),
        shared: Iterable[int] = (),
        blocked: Iterable[int] = (),
        ignored: Iterable[int] = (),
    ) -> None:
        status = (
            f"Name:\tprogram\nPid:\t{tid}\nSigQ:\t1/1000\nSigPnd:\t{mask(own)}\n"
            f"ShdPnd:\t{mask(shared)}\nSigBlk:\t{mask(blocked)}\nSigIgn:\t{mask(ignored)}\n"
            f"SigCgt:\t{mask([2])}\n"
        )
        for directory in (self.path / str(tid), self.path / str(TID) / "task" / str(tid)):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "status").write_text(status)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


@pytest.fixture
async def interrupts(proc: Proc) -> AsyncIterator[Interrupts]:
    interrupts = Interrupts(proc.path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupts.run)
        yield interrupts
        nursery.cancel_scope.cancel()


async def is_ended(interrupts: Interrupts, caller: Caller, duration_s: float = 10.0) -> bool:
    """Return whether a request of this caller that takes so long is ended before its time."""
    with trio.CancelScope() as scope:
        interrupts.begin(scope, caller)
        try:
            await trio.sleep(duration_s)
        finally:
            interrupts.end(scope)
    return scope.cancelled_caught


THREAD = Caller(TID, is_opener=False)
PROCESS = Caller(TID, is_opener=True)


@jumping_clock
@pytest.mark.parametrize("caller", [THREAD, PROCESS])
async def test_a_slow_request_without_a_signal_is_left_alone(
    interrupts: Interrupts, caller: Caller
) -> None:
    assert not await is_ended(interrupts, caller)


@jumping_clock
@pytest.mark.parametrize("caller", [THREAD, PROCESS])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGALRM, 64])
@pytest.mark.parametrize("kind", ["own", "shared"])
async def test_a_signal_ends_a_slow_request(
    interrupts: Interrupts, proc: Proc, caller: Caller, number: int, kind: str
) -> None:
    if kind == "own":
        proc.set(TID, own=[number])
    else:
        proc.set(TID, shared=[number])
    before_s = trio.current_time()
    assert await is_ended(interrupts, caller)
    assert trio.current_time() - before_s <= 2 * limits.INTERRUPT_LOOK_S + 1e-9


@jumping_clock
async def test_a_signal_that_comes_later_does_too(interrupts: Interrupts, proc: Proc) -> None:
    async with trio.open_nursery() as nursery:
        ended: list[bool] = []

        async def wait() -> None:
            ended.append(await is_ended(interrupts, THREAD))

        nursery.start_soon(wait)
        await trio.sleep(5)
        proc.set(TID, shared=[signal.SIGTERM])
    assert ended == [True]
    assert trio.current_time() < 5.5


@jumping_clock
async def test_a_request_that_is_not_slow_is_never_looked_at(
    interrupts: Interrupts, proc: Proc
) -> None:
    proc.set(TID, own=[signal.SIGINT])
    for _ in range(100):
        assert not await is_ended(interrupts, THREAD, duration_s=0.9 * limits.INTERRUPT_LOOK_S)


@jumping_clock
@pytest.mark.parametrize(
    "state",
    [
        {"shared": [signal.SIGINT], "blocked": [signal.SIGINT]},
        {"own": [signal.SIGHUP], "ignored": [signal.SIGHUP]},
        {"shared": [signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGTSTP]},
    ],
    ids=["blocked", "ignored", "no end"],
)
async def test_a_signal_that_ends_nothing(
    interrupts: Interrupts, proc: Proc, state: dict[str, list[int]]
) -> None:
    proc.set(TID, **state)
    assert not await is_ended(interrupts, THREAD)


@jumping_clock
async def test_a_signal_for_another_thread_counts_only_if_the_caller_is_not_known(
    interrupts: Interrupts, proc: Proc
) -> None:
    proc.set(TID + 1, own=[signal.SIGINT])
    assert not await is_ended(interrupts, THREAD)
    assert await is_ended(interrupts, PROCESS)


@jumping_clock
@pytest.mark.parametrize("is_opener", [False, True])
async def test_a_caller_that_is_gone(interrupts: Interrupts, is_opener: bool) -> None:
    assert not await is_ended(interrupts, Caller(1, is_opener))


@jumping_clock
async def test_of_many_threads_some_are_looked_at(
    interrupts: Interrupts, proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "THREADS_LOOKED_AT", 1)
    for tid in (TID, TID + 1):
        proc.set(tid, own=[signal.SIGINT])
    assert await is_ended(interrupts, PROCESS)


@jumping_clock
async def test_the_fields_are_those_of_the_real_proc() -> None:
    interrupts = Interrupts()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupts.run)
        ours = Caller(os.getpid(), is_opener=True)
        assert not await is_ended(interrupts, ours)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        try:
            signal.raise_signal(signal.SIGUSR1)
            assert not await is_ended(interrupts, ours)  # it is blocked
            assert signal.sigwait([signal.SIGUSR1]) == signal.SIGUSR1
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        nursery.cancel_scope.cancel()
