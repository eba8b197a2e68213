"""Files that hold one value, written as a whole: what may a read return? Pure.

A write's value is unique: the read tells which write it saw. ``0`` is the value from the beginning.
What a read returned instead of one whole value is told by its outcome: ``empty`` or ``mixed``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tests.history.history import OK, Call
from tests.history.linearize import Progress
from tests.history.violation import Violation, around

FIRST_VALUE: Final = "0"
EMPTY: Final = "empty"
MIXED: Final = "mixed"


class RegisterModel:
    """A file that is only ever replaced by rename: writes and reads have one order in time.

    A read is one step, because open(2) finds the file by its name, and a file never changes.
    """

    def first(self) -> str:
        """Return the value from the beginning."""
        return FIRST_VALUE

    def steps(
        self, state: str, call: Call, progress: Progress
    ) -> Iterator[tuple[str, Progress | None]]:
        """Yield the value after a call."""
        assert not progress, "each call has one step"
        if call.outcome != OK:
            return
        if call.action == "write":
            yield call.seen[0], None
        elif call.seen == (state,):
            yield state, None


def check_close_to_open(calls: Sequence[Call]) -> Violation | None:
    """Check a file that is written in place: a regular register.

    A read returns the value of a write that began before the read ended, unless another write began
    after that one had ended, and ended before the read began. While a write is under way, whatever
    of it has arrived may be seen: nothing yet of a file that was truncated, or parts.
    """
    writes = [call for call in calls if call.action == "write"]
    by_value = {call.seen[0]: call for call in writes}
    for call in calls:
        if call.outcome == OK and call.action == "write":
            continue
        if call.outcome in {EMPTY, MIXED}:
            if any(
                each.start_ns <= call.end_ns and call.start_ns <= each.end_ns for each in writes
            ):
                continue
            return Violation(call, "there was no write under way", around(call, calls))
        if call.outcome != OK:
            return Violation(call, "it must not fail", around(call, calls))
        reason = _wrong_with(call, by_value, writes)
        if reason is not None:
            return Violation(call, reason, around(call, calls))
    return None


def _wrong_with(read: Call, by_value: dict[str, Call], writes: Sequence[Call]) -> str | None:
    (value,) = read.seen
    write = by_value.get(value)
    if write is None and value != FIRST_VALUE:
        return "nobody wrote this value"
    if write is not None and write.start_ns > read.end_ns:
        return "the value is written only later"
    for later in writes:
        if later.end_ns < read.start_ns and (write is None or write.end_ns < later.start_ns):
            return f"this value was overwritten with {later.seen[0]} before"
    return None
