"""What docs/consistency.md does not promise of paths, since Linux cannot be told in time. Pure.

A kernel walks a path over the directories that it was told of. Where one of them was moved or
removed by another mount a moment ago, it looks for the next name in what the directory was before:
there it may be missing. An open that finds it is sent back; but most calls that look for a name
give up at ESTALE (filename_create in fs/namei.c). And while it renames, it cannot move a directory
to where a lookup finds that it was moved (__d_unalias in fs/dcache.c): that is ESTALE as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.history.history import OK, Call
from tests.history.parts import DIRECTORIES

FEED_LAG_NS: Final = 250_000_000
"""How late a kernel hears of a move: a few milliseconds, and more on a loaded machine."""


def is_excepted(call: Call, calls: Sequence[Call]) -> bool:
    """Return whether a call was refused just when another mount had moved its way.

    It did nothing, and saw nothing that the others must explain.
    """
    if call.outcome not in {"ENOENT", "ESTALE"} or not _leads_over_directories(call):
        return False
    return any(
        each.mount != call.mount
        and each.action in {"rename", "rmdir"}
        and each.outcome == OK
        and _leads_over_directories(each)
        and each.start_ns <= call.end_ns
        and call.start_ns - each.end_ns <= FEED_LAG_NS
        for each in calls
    )


def _leads_over_directories(call: Call) -> bool:
    """Return whether a path goes through a directory, or what is renamed or removed is one."""
    is_of_names = call.action in {"rename", "rmdir"}
    return any(
        "/" in path or (is_of_names and path.rpartition("/")[2] in DIRECTORIES)
        for path in call.names
    )
