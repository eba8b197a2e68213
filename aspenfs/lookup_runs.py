"""Recognises programs that look up the names of a directory in order. Pure.

What lists a tree, compares it or checks its state takes the names as a listing gives them. Over a
network each lookup is a round trip; so when lookups go upward, a stretch of names is read at once.
"""

from __future__ import annotations

from typing import NamedTuple

from cachetools import LRUCache

from aspenfs import limits
from aspenfs.types import Ino


class _Run(NamedTuple):
    """The last name that was not known, and how many names were read for it."""

    name: bytes
    ahead: int


class LookupRuns:
    """One run for each of the directories in which something was looked up last."""

    def __init__(self) -> None:
        """Start with none."""
        self._runs: LRUCache[Ino, _Run] = LRUCache(limits.LOOKUP_RUNS_MAX)

    def advance(self, parent: Ino, name: bytes) -> int:
        """Return how many names to read from ``name`` on, which no cache knows: 1 for it alone.

        The first lookup in a directory asks for its name alone. Each further one above the last
        asks for more, up to LOOKUP_AHEAD_MAX; one below starts anew.
        """
        run = self._runs.get(parent)
        count = 1
        if run is not None and name > run.name:
            count = min(
                max(limits.LOOKUP_AHEAD_FIRST, run.ahead * limits.LOOKUP_AHEAD_GROWTH),
                limits.LOOKUP_AHEAD_MAX,
            )
        self._runs[parent] = _Run(name, count)
        return count
