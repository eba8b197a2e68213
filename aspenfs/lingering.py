"""Which orphans wait until other mounts have had the time to hold them. Pure; time is passed in."""

from __future__ import annotations

from collections import OrderedDict

from aspenfs import limits
from aspenfs.types import Ino


class Lingering:
    """Inodes, and when each is due.

    At most ORPHANS_LINGERING_MAX linger: beyond, the oldest is due at once. As many may be due and
    not taken yet: beyond, the oldest is forgotten. Who scans the orphans finds it again.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._due_s: OrderedDict[Ino, float] = OrderedDict()  # in order: all linger equally long
        self._due: OrderedDict[Ino, None] = OrderedDict()

    def __len__(self) -> int:
        """Return how many linger or are due."""
        return len(self._due_s) + len(self._due)

    def __contains__(self, ino: Ino) -> bool:
        """Return whether an inode lingers or is due."""
        return ino in self._due_s or ino in self._due

    def add(self, ino: Ino, now_s: float) -> None:
        """Let an inode linger from now on; nothing changes if it does already, or is due."""
        if ino in self:
            return
        self._due_s[ino] = now_s + limits.ORPHAN_LINGER_S
        if len(self._due_s) > limits.ORPHANS_LINGERING_MAX:
            self.add_due(next(iter(self._due_s)))

    def add_due(self, ino: Ino) -> None:
        """Let an inode be due now."""
        self._due_s.pop(ino, None)
        self._due[ino] = None
        if len(self._due) > limits.ORPHANS_LINGERING_MAX:
            self._due.popitem(last=False)

    def next_due_s(self) -> float:
        """Return when the next inode is due; infinity if there is none."""
        if self._due:
            return float("-inf")
        return next(iter(self._due_s.values()), float("inf"))

    def take_due(self, now_s: float, count: int) -> list[Ino]:
        """Take out up to ``count`` inodes that are due."""
        while self._due_s and next(iter(self._due_s.values())) <= now_s:
            self.add_due(next(iter(self._due_s)))
        return [self._due.popitem(last=False)[0] for _ in range(min(count, len(self._due)))]
