"""Requests whose caller is signalled while they wait end at once, with EINTR.

The kernel says so with FUSE_INTERRUPT, but pyfuse3 does not hand that on, and the caller can
neither be interrupted nor killed before its request is answered. So this looks at the signals that
wait for the callers of slow requests, in /proc. A request that is answered soon costs an entry in a
table.
"""

from __future__ import annotations

import functools
import itertools
import signal
from pathlib import Path
from typing import Final, NamedTuple

import trio

from aspenfs import limits

_PROC: Final = Path("/proc")
_FIELDS: Final = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn")


def _mask(*signals: signal.Signals) -> int:
    return functools.reduce(lambda mask, number: mask | 1 << (number - 1), signals, 0)


_MEANS_NO_END: Final = _mask(
    # These stop a program or tell it something, often many times a second (SIGURG: goroutines).
    signal.SIGCHLD,
    signal.SIGCONT,
    signal.SIGPROF,
    signal.SIGSTOP,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGURG,
    signal.SIGVTALRM,
    signal.SIGWINCH,
)


class Caller(NamedTuple):
    """Who waits: a thread, or, if only the opener of a handle is known, any of its process.

    ``tid`` is 0 for a caller in a pid namespace that we cannot see into.
    """

    tid: int
    is_opener: bool


class _Request(NamedTuple):
    caller: Caller
    begun_at: int


class Interrupts:
    """The requests in work, and the task that cancels those whose caller is signalled."""

    def __init__(self, proc: Path = _PROC) -> None:
        """Watch nothing yet; ``proc`` is where the threads of the system are found."""
        self._proc = proc
        self._requests: dict[trio.CancelScope, _Request] = {}
        self._began = trio.Event()
        self._looks = 0

    def begin(self, scope: trio.CancelScope, caller: Caller) -> None:
        """Cancel ``scope`` if a signal comes for the caller, until :meth:`end`."""
        self._requests[scope] = _Request(caller, self._looks)
        self._began.set()

    def end(self, scope: trio.CancelScope) -> None:
        """Forget a request, which has been answered."""
        del self._requests[scope]

    async def run(self) -> None:
        """Look at slow requests every INTERRUPT_LOOK_S, as long as there are requests."""
        while True:
            await self._began.wait()
            while self._requests:
                await trio.sleep(limits.INTERRUPT_LOOK_S)
                self._looks += 1
                self._look()
            self._began = trio.Event()

    def _look(self) -> None:
        for scope, request in self._requests.items():
            is_slow = self._looks - request.begun_at > 1
            if is_slow and self._is_signalled(request.caller):
                scope.cancel()

    def _is_signalled(self, caller: Caller) -> bool:
        thread = self._proc / str(caller.tid)
        if not caller.is_opener:
            return _has_signal(thread)
        try:
            threads = list(itertools.islice((thread / "task").iterdir(), limits.THREADS_LOOKED_AT))
        except OSError:
            return False  # it has ended; others use its handle
        return any(map(_has_signal, threads))


def _has_signal(thread: Path) -> bool:
    """Return whether a signal waits that would end what the thread waits for.

    One that the thread handles, or dies of, stays pending as long as it is in the system call.
    """
    try:
        status = (thread / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    found = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(_FIELDS))
    pending, shared, blocked, ignored = (int(found.get(field, "0"), 16) for field in _FIELDS)
    return bool((pending | shared) & ~blocked & ~ignored & ~_MEANS_NO_END)
