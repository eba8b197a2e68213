"""Files that several append to, line by line: every line is kept, whole and in order. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tests.history.history import OK, Call
from tests.history.violation import Violation, around


def check_appends(calls: Sequence[Call]) -> Violation | None:
    """Check what reads saw of a file that is only appended to.

    An append is a session of one or more lines. A read sees, once, each line of all that had closed
    before it began, none of those that opened after it ended, and of two lines first the one
    whose session had closed, or which was written earlier in the same. Every two reads agree on the
    order of the lines that both must see.
    """
    session_of = {line: call for call in calls if call.action == "append" for line in call.seen}
    earlier: tuple[Call, list[str]] | None = None
    for call in sorted(calls, key=_end):
        if call.outcome != OK:
            return Violation(call, "it must not fail", around(call, calls))
        if call.action == "append":
            continue
        reason = _wrong_with(call, session_of)
        if reason is not None:
            return Violation(call, reason, around(call, calls))
        settled = [line for line in call.seen if session_of[line].end_ns < call.start_ns]
        if earlier is not None and not _agree(earlier[1], settled):
            return Violation(call, "two reads saw another order", (earlier[0],))
        earlier = call, settled
    return None


def _agree(one: Sequence[str], other: Sequence[str]) -> bool:
    both = {*one} & {*other}
    return [line for line in one if line in both] == [line for line in other if line in both]


def _wrong_with(read: Call, session_of: Mapping[str, Call]) -> str | None:
    for line in read.seen:
        if line not in session_of:
            return f"nobody appended {line}"
        if session_of[line].start_ns > read.end_ns:
            return f"{line} is appended only later"
        if read.seen.count(line) > 1:
            return f"{line} is there twice"
    for line, session in session_of.items():
        if session.end_ns < read.start_ns and line not in read.seen:
            return f"{line} is lost"
    return _wrong_order(read, session_of)


def _wrong_order(read: Call, session_of: Mapping[str, Call]) -> str | None:
    """Return what stands before a line although it was surely written after it."""
    places = {line: place for place, line in enumerate(read.seen)}
    for session in session_of.values():
        for first, second in pairwise(session.seen):
            if places.get(first, -1) > places.get(second, len(places)):
                return f"{second} stands before {first}, which was written first"
    latest = None
    for line in read.seen:
        session = session_of[line]
        if latest is not None and session.end_ns < session_of[latest].start_ns:
            return f"{latest} stands before {line}, which was there first"
        if latest is None or session.start_ns > session_of[latest].start_ns:
            latest = line
    return None


def _end(call: Call) -> int:
    return call.end_ns
