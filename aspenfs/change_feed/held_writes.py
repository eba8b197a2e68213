"""Which writes are told at once, and which wait to be told as one. Pure."""

from __future__ import annotations

from aspenfs import limits
from aspenfs.types import Ino


class _Pause:
    """The time after a write was told, in which further ones of that file are held."""

    __slots__ = ("end_s", "held_revision")

    def __init__(self, end_s: float) -> None:
        self.end_s = end_s
        self.held_revision: int | None = None  # of the newest write that is held


class HeldWrites:
    """Tells the first write of a file at once, and those of the next FEED_WRITES_S as one.

    So a file that is being written is told about once each FEED_WRITES_S, and nothing is written to
    it after what was told last. Times are those of one clock that only grows.
    """

    def __init__(self) -> None:
        """Start with nothing held."""
        self._pauses: dict[Ino, _Pause] = {}  # in the order in which they end: all are as long

    def note(self, ino: Ino, revision: int, now_s: float) -> bool:
        """Take a write of ``revision``; return whether it is to be told now. Else it is held."""
        pause = self._pauses.get(ino)
        if pause is not None:
            pause.held_revision = revision
            return False
        self._pauses[ino] = _Pause(now_s + limits.FEED_WRITES_S)
        return True

    @property
    def due_s(self) -> float | None:
        """When :meth:`take_due` is to be called next; None: not before another write."""
        first = next(iter(self._pauses.values()), None)
        return None if first is None else first.end_s

    def take_due(self, now_s: float) -> list[tuple[Ino, int]]:
        """Return the files whose held writes are to be told now, with the newest one's revision."""
        due = []
        while (due_s := self.due_s) is not None and due_s <= now_s:
            ino = next(iter(self._pauses))
            held_revision = self._pauses.pop(ino).held_revision
            if held_revision is not None:
                due.append((ino, held_revision))
                self._pauses[ino] = _Pause(now_s + limits.FEED_WRITES_S)
        return due

    def forget(self, ino: Ino) -> None:
        """Drop what is held of a file that no path leads to any more."""
        self._pauses.pop(ino, None)
