"""What a history is: calls of programs on several mounts, each with its times and what it saw.

All times are of ``time.monotonic_ns``, one clock for all processes of a machine. So of two calls,
the one that returned before the other began really came first, on whatever mounts they were. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, NamedTuple

OK: Final = "ok"


class Call(NamedTuple):
    """One call of a program, or a session from open to close."""

    start_ns: int
    end_ns: int
    mount: int
    """The number of the mount it was made on."""
    part: str
    """What it touches, a subject and a number; parts have nothing in common: see ``parts``."""
    action: str
    names: tuple[str, ...]
    """What it was told: paths below the part's directory, or the value that it wrote."""
    outcome: str
    """``ok``, or the name of the error."""
    seen: tuple[str, ...] = ()
    """What the program saw: the identity of a file, a value, names, lines."""

    def __str__(self) -> str:
        """Return it as a person would note it down."""
        told = ", ".join(map(_short, self.names))
        seen = f" {', '.join(map(_short, self.seen[-_SEEN_SHOWN_MAX:]))}" if self.seen else ""
        return f"{self.part}: {self.action}({told}) = {self.outcome}{seen}"


_SEEN_SHOWN_MAX: Final = 12
_TEXT_SHOWN_MAX: Final = 40


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN_MAX else f"{text[:_TEXT_SHOWN_MAX]}…"


def dump(calls: Iterable[Call]) -> str:
    """Return a history as text, one call a line."""
    return "".join(f"{json.dumps(call)}\n" for call in calls)


def load(text: str) -> list[Call]:
    """Return the history that a text holds.

    Raises:
        ValueError: it holds something else.
    """
    return [_call(json.loads(line)) for line in text.splitlines()]


def _call(fields: object) -> Call:
    match fields:
        case [
            int() as start,
            int() as end,
            int() as mount,
            str() as part,
            str() as action,
            list() as names,
            str() as outcome,
            list() as seen,
        ]:
            return Call(start, end, mount, part, action, tuple(names), outcome, tuple(seen))
    raise ValueError(f"not a call: {fields}")
