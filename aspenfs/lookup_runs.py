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
    """Names to read at once: up to ``limit``, from the one that is sought or from the first.

    Their inodes are read with them if ``has_inodes``.
    """

    limit: int
    is_from_first: bool
    has_inodes: bool


ALONE = Stretch(1, is_from_first=False, has_inodes=False)
BEGINNING = Stretch(limits.LOOKUP_BEGINNING, is_from_first=True, has_inodes=True)
ALL_NAMES = Stretch(limits.LOOKUP_NAMES_MAX, is_from_first=True, has_inodes=False)


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

        The first lookup in a directory asks for its name alone, the second for the directory's
        beginning, which mostly is all of it. In a larger one, each lookup above the last asks for
        more, up to LOOKUP_AHEAD_MAX; and the one that makes LOOKUP_MISSES_MAX for all names, once,
        so that what is not there takes no more calls.
        """
        run = self._runs.get(parent)
        stretch, misses = ALONE, 1
        if run is not None:
            misses = run.misses + 1
            if misses == 2:
                stretch = BEGINNING
            elif misses == limits.LOOKUP_MISSES_MAX:
                stretch = ALL_NAMES
            elif name > run.name:
                ahead = run.stretch.limit * limits.LOOKUP_AHEAD_GROWTH
                stretch = Stretch(
                    min(ahead, limits.LOOKUP_AHEAD_MAX), is_from_first=False, has_inodes=True
                )
        self._runs[parent] = _Run(name, misses, stretch)
        return stretch
