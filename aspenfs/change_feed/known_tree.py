"""All names below one name, from which paths are made. Pure."""

from __future__ import annotations

import stat
from typing import Final, NamedTuple

from aspenfs import limits
from aspenfs.errors import AspenError
from aspenfs.metadata import Dentry
from aspenfs.types import NO_INO, Ino

_DIRECTORY: Final = stat.S_IFDIR >> 12


class Place(NamedTuple):
    """Where an inode can be: a name in a directory."""

    parent: Ino
    name: bytes


MOUNT_ROOT: Final = Place(NO_INO, b"")
"""Stands for the root directory, which is in none."""


class TooManyNamesError(AspenError):
    """There are more names than a feed may know."""


class KnownTree:
    """A name and, if that is a directory's, every name below it.

    It holds at most FEED_NAMES_MAX names. A directory is in one place only, and never below itself;
    any other inode may have several names.
    """

    def __init__(self, top: Place) -> None:
        """Start without anything at ``top``."""
        self._top = top
        self._at_top: Dentry | None = None
        self._entries: dict[Ino, dict[bytes, Dentry]] = {}
        self._places: dict[Ino, tuple[Place, ...]] = {}
        self._count = 0

    def covers(self, place: Place) -> bool:
        """Return whether a name there would belong to the tree."""
        return place == self._top or place.parent in self._entries

    def get(self, place: Place) -> Dentry | None:
        """Return what a name means; None if it is not known."""
        if place == self._top:
            return self._at_top
        return self._entries.get(place.parent, {}).get(place.name)

    def places(self, ino: Ino) -> tuple[Place, ...]:
        """Return the names of an inode."""
        return self._places.get(ino, ())

    def path(self, place: Place) -> bytes:
        """Return the path of a name from the top, whose own path is empty."""
        names = []
        while place != self._top:
            names.append(place.name)
            (place,) = self._places[place.parent]
        return b"/".join(reversed(names))

    def is_within(self, place: Place, directory: Ino) -> bool:
        """Return whether a name lies in a directory or anywhere below it."""
        while place != self._top:
            if place.parent == directory:
                return True
            (place,) = self._places[place.parent]
        return False

    def add(self, place: Place, dentry: Dentry) -> bool:
        """Take a new name; return whether it is that of a directory, whose names are to be read.

        The place is covered and free, and a directory is not known yet.

        Raises:
            TooManyNamesError: there are FEED_NAMES_MAX names.
        """
        if self._count >= limits.FEED_NAMES_MAX:
            raise TooManyNamesError(
                f"there are more than {limits.FEED_NAMES_MAX} names below the path: watch a "
                f"directory further down"
            )
        self._count += 1
        self._put(place, dentry)
        if dentry.file_type != _DIRECTORY:
            return False
        self._entries[dentry.ino] = {}
        return True

    def remove(self, place: Place) -> list[Ino]:
        """Forget a known name and all below it; return the inodes that are left without a name."""
        unnamed = []
        doomed = [(place, self._take(place))]
        while doomed:
            each, dentry = doomed.pop()
            self._count -= 1
            if not self._drop_place(each, dentry.ino):
                unnamed.append(dentry.ino)
            below = self._entries.pop(dentry.ino, {})
            doomed += [(Place(dentry.ino, name), inner) for name, inner in below.items()]
        return unnamed

    def move(self, old: Place, new: Place) -> None:
        """Give a known name another place, which is covered, free, and not within itself."""
        dentry = self._take(old)
        self._drop_place(old, dentry.ino)
        self._put(new, dentry)

    def exchange(self, one: Place, two: Place) -> None:
        """Let two known names, neither within the other, mean what the other one meant."""
        at_one, at_two = self._take(one), self._take(two)
        self._drop_place(one, at_one.ino)
        self._drop_place(two, at_two.ino)
        self._put(one, at_two)
        self._put(two, at_one)

    def _put(self, place: Place, dentry: Dentry) -> None:
        if place == self._top:
            self._at_top = dentry
        else:
            self._entries[place.parent][place.name] = dentry
        self._places[dentry.ino] = (*self.places(dentry.ino), place)

    def _take(self, place: Place) -> Dentry:
        """Take a known name out of its directory."""
        if place != self._top:
            return self._entries[place.parent].pop(place.name)
        dentry, self._at_top = self._at_top, None
        assert dentry is not None, "the caller has seen it"
        return dentry

    def _drop_place(self, place: Place, ino: Ino) -> bool:
        """Forget one place of an inode; return whether it has others."""
        rest = tuple(each for each in self._places[ino] if each != place)
        if rest:
            self._places[ino] = rest
        else:
            del self._places[ino]
        return bool(rest)
