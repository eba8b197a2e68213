"""What a checker found wrong, and how a person sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.history.history import Call

_BEFORE_SHOWN_MAX: Final = 12
"""Calls that returned before the wrong one: what it should have seen is among the latest."""


@dataclass(frozen=True)
class Violation:
    """A call that nothing allowed explains."""

    call: Call
    reason: str
    others: tuple[Call, ...]
    """The calls that have to do with it."""

    def __str__(self) -> str:
        """Return the calls that matter in order of time, the wrong one marked."""
        shown = sorted({*self.others, self.call})
        first_ns = shown[0].start_ns
        lines = [
            f"{'>>' if call == self.call else '  '} "
            f"{(call.start_ns - first_ns) / 1e6:9.3f} … {(call.end_ns - first_ns) / 1e6:9.3f} ms  "
            f"mount {call.mount}  {call}"
            for call in shown
        ]
        return "\n".join((f"{self.call}: {self.reason}", *lines))


def around(call: Call, calls: Sequence[Call]) -> tuple[Call, ...]:
    """Return the calls that overlap one, and those that returned last before it began.

    Of those that name paths, only those that have a name in common with it.
    """
    near = [each for each in calls if each.start_ns <= call.end_ns and _meets(each, call)]
    before = sorted((each for each in near if each.end_ns < call.start_ns), key=_end)
    during = [each for each in near if each.end_ns >= call.start_ns]
    return (*before[-_BEFORE_SHOWN_MAX:], *during)


def _meets(one: Call, other: Call) -> bool:
    if one.part != other.part:
        return False
    paths = {name for path in one.names for name in path.split("/")}
    return (
        "list" in {one.action, other.action}
        or not (one.names and other.names)
        or any(name in paths for path in other.names for name in path.split("/"))
    )


def _end(call: Call) -> int:
    return call.end_ns
