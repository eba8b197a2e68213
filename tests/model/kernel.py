"""Parts shared by the tests that have the kernel on one side or on both."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

from tests.model.calls import Side, run_now
from tests.model.kernel_calls import KernelCalls
from tests.model.tree import Tree

RECENT_NS = 3600 * 10**9
_directory_numbers = itertools.count()


def fresh_directory(root: Path) -> Side:
    """Return the calls on a new directory, so that examples do not see each other."""
    path = root / f"example{next(_directory_numbers)}"
    path.mkdir(mode=0o755)
    return Side(KernelCalls(os.fsencode(path)), run_now)


def without_present_times(tree: Tree) -> Tree:
    """Return a tree in which times that only the clock can have set are all the same.

    Two filesystems cannot be asked at one moment. Times that were set on purpose are long ago or
    far in the future, and stay. When a read changes atime is up to mount options.
    """
    now_ns = time.time_ns()
    return {
        path: entry._replace(
            atime_ns=0,
            ctime_ns=0,
            mtime_ns=0 if abs(entry.mtime_ns - now_ns) < RECENT_NS else entry.mtime_ns,
        )
        for path, entry in tree.items()
    }
