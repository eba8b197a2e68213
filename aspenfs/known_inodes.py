"""What the kernel was told of this mount's inodes and may still use: how often, by which names.

Linux keeps the names that a reply told it (dentries) and walks a path over them without asking. So
a path can lead it to an inode whose name another client has moved or replaced since. Who knows
under which names the kernel was told of an inode can check that they still mean it. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from aspenfs import limits
from aspenfs.types import ROOT_INO, Ino


class Name(NamedTuple):
    """A directory entry as the kernel addresses it."""

    parent: Ino
    name: bytes


class OutdatedNames:
    """Names that no longer mean what the kernel was told, from when that is seen until it knows.

    A request that walked over such a name can still be on its way a while after the kernel was told
    to drop it; after OUTDATED_NAME_S it cannot.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._since_s: OrderedDict[tuple[Ino, Name], float] = OrderedDict()

    def note(self, ino: Ino, name: Name, now_s: float) -> bool:
        """Note that ``name`` does not mean ``ino``; return whether the kernel surely knows."""
        key = (ino, name)
        if now_s - self._since_s.setdefault(key, now_s) >= limits.OUTDATED_NAME_S:
            del self._since_s[key]
            return True
        if len(self._since_s) > limits.OUTDATED_NAMES_MAX:
            self._since_s.popitem(last=False)
        return False

    def forget(self, ino: Ino, name: Name) -> None:
        """Note that the kernel was told again, just now, that ``name`` means ``ino``."""
        self._since_s.pop((ino, name), None)


class KnownInodes:
    """The inodes that the kernel was told of and has not yet forgotten.

    The count says how long the kernel may still name an inode; see "lookup count" in the
    documentation of libfuse's low-level API. Not bounded by a limit of ours: it mirrors the
    kernel's inode cache, which the kernel bounds. Of an inode with more than KNOWN_NAMES_MAX names
    the latest are known.
    """

    def __init__(self) -> None:
        """Start with no inode known."""
        self._counts: dict[Ino, int] = {}
        self._names: dict[Ino, Name | tuple[Name, ...]] = {}  # mostly one: a tuple costs more
        self._outdated = OutdatedNames()

    def __len__(self) -> int:
        """Return how many inodes the kernel knows."""
        return len(self._counts)

    def __iter__(self) -> Iterator[Ino]:
        """Iterate over the inodes that the kernel knows."""
        return iter(self._counts)

    def __contains__(self, ino: Ino) -> bool:
        """Return whether the kernel may still name the inode."""
        return ino in self._counts

    def told(self, ino: Ino, name: Name | None) -> None:
        """Count that a reply told the kernel of the inode; None: by no name of its own."""
        self._counts[ino] = self._counts.get(ino, 0) + 1
        if name is not None:
            self._add(ino, name)

    def forget(self, ino: Ino, lookup_count: int) -> bool:
        """Take ``lookup_count`` off; return whether the kernel no longer knows the inode."""
        remaining = self._counts.get(ino, 0) - lookup_count
        if remaining > 0:
            self._counts[ino] = remaining
            return False
        self._counts.pop(ino, None)
        self._names.pop(ino, None)
        return True

    def names(self, ino: Ino) -> tuple[Name, ...]:
        """Return the names by which the kernel was told of an inode, the latest last."""
        names = self._names.get(ino, ())
        return (names,) if isinstance(names, Name) else names

    def all_names(self) -> list[Name]:
        """Return every name that the kernel was told."""
        return [name for ino in self._names for name in self.names(ino)]

    def ways_up(self, ino: Ino) -> list[tuple[Ino, Name]]:
        """Return the names of an inode and of all directories by which the kernel gets to it.

        Each with what it meant when the kernel was told.
        """
        found: list[tuple[Ino, Name]] = []
        seen = {ROOT_INO}
        waiting = [ino]
        while waiting:
            ino = waiting.pop()
            if ino in seen:
                continue
            seen.add(ino)
            for name in self.names(ino):
                found.append((ino, name))
                waiting.append(name.parent)
        return found

    def moved(self, ino: Ino, old: Name, new: Name) -> None:
        """Note that the kernel itself moved an inode's name, as it does after its own rename."""
        self.removed(ino, old)
        if ino in self._counts:
            self._add(ino, new)

    def is_used_still(self, ino: Ino, name: Name, now_s: float) -> bool:
        """Return whether the kernel may still get to an inode by a name that means another now.

        Once it may not, the name is forgotten.
        """
        if self._outdated.note(ino, name, now_s):
            self.removed(ino, name)
            return False
        return True

    def removed(self, ino: Ino, name: Name) -> None:
        """Note that the kernel no longer uses a name for an inode."""
        left = tuple(each for each in self.names(ino) if each != name)
        if len(left) > 1:
            self._names[ino] = left
        elif left:
            self._names[ino] = left[0]
        else:
            self._names.pop(ino, None)

    def _add(self, ino: Ino, name: Name) -> None:
        self._outdated.forget(ino, name)
        known = self._names.get(ino)
        if known is None:
            self._names[ino] = name
        elif known != name:
            others = tuple(each for each in self.names(ino) if each != name)
            self._names[ino] = (*others, name)[-limits.KNOWN_NAMES_MAX :]
