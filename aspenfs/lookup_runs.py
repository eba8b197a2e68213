"""Decides how much to read at a lookup that no cache answers. Pure.

What lists a tree, compares it or checks its state looks up one name of a directory after the other.
Over a network each lookup is a round trip; so when there are more of them, names are read together.
"""

from __future__ import annotations

from typing import NamedTuple

from cachetools import LRUCache

from aspenfs import limits
from aspenfs.types import Ino


class Stretch(NamedTuple):
    """Names to read at once: up to ``limit``, from the one that is sought or from the first."""

    limit: int
    is_from_first: bool


ALONE = Stretch(1, is_from_first=False)


class _Run(NamedTuple):
    """The lookups of a directory so far: the last name, how many, and what the last one read."""

    name: bytes
    misses: int
    stretch: Stretch


class LookupRuns:
    """One run for each of the directories in which something was looked up last."""

    def __init__(self) -> None:
        """Start with none."""
        self._runs: LRUCache[Ino, _Run] = LRUCache(limits.LOOKUP_RUNS_MAX)

    def advance(self, parent: Ino, name: bytes) -> Stretch:
        """Return what to read for a name that no cache knows.

        The first lookup in a directory asks for its name alone. One above the last asks for more,
        each time, up to LOOKUP_AHEAD_MAX. The one that makes LOOKUP_MISSES_MAX, in any order, asks
        for the first page of the directory: if that is all of it, there will be no more.
        """
        run = self._runs.get(parent)
        stretch, misses = ALONE, 1
        if run is not None:
            misses = run.misses + 1
            if misses == limits.LOOKUP_MISSES_MAX:
                stretch = Stretch(limits.READDIR_PAGE_ENTRIES, is_from_first=True)
            elif name > run.name:
                ahead = max(
                    limits.LOOKUP_AHEAD_FIRST, run.stretch.limit * limits.LOOKUP_AHEAD_GROWTH
                )
                stretch = Stretch(min(ahead, limits.LOOKUP_AHEAD_MAX), is_from_first=False)
        self._runs[parent] = _Run(name, misses, stretch)
        return stretch
