"""A whole history against what docs/consistency.md promises. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tests.history.appends import check_appends
from tests.history.excepted import is_excepted
from tests.history.history import Call
from tests.history.linearize import linearize
from tests.history.parts import DIRECTORIES, FILES, KINDS
from tests.history.registers import RegisterModel, check_close_to_open
from tests.history.trees import TreeModel
from tests.history.violation import Violation


def check(history: Sequence[Call]) -> list[Violation]:
    """Return what is wrong with a history: for each part the first thing, if any."""
    parts: dict[str, list[Call]] = {}
    for call in history:
        parts.setdefault(call.part, []).append(call)
    found = [_check_part(KINDS[name], calls) for name, calls in parts.items()]
    return [violation for violation in found if violation is not None]


def _check_part(kind: str, calls: Sequence[Call]) -> Violation | None:
    if kind in {"flat", "tree"}:
        return _check_tree(calls)
    if kind == "replaced":
        return linearize(calls, RegisterModel())
    if kind == "log":
        return check_appends(calls)
    return check_close_to_open(calls)


def _check_tree(calls: Sequence[Call]) -> Violation | None:
    """Check directories; calls that are excepted are left out, but only where they are wrong."""
    model = TreeModel((*FILES, *DIRECTORIES))
    while True:
        violation = linearize(calls, model)
        if violation is None or not is_excepted(violation.call, calls):
            return violation
        calls = [call for call in calls if call != violation.call]
