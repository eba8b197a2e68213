"""Commits of keys to events of paths. Pure.

Every step leaves in the tree exactly what a listener has who carries out each event that it is
told, in order. The names of a directory that comes into the tree are read from the store after
that commit; so what was read may be newer than the next commits that are translated. That does no
harm: they come to what is known already, or lead there by a detour.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

from aspenfs.change_feed.events import EventKind, FeedEvent
from aspenfs.change_feed.held_writes import HeldWrites
from aspenfs.change_feed.known_tree import KnownTree, Place
from aspenfs.errors import AspenError
from aspenfs.keys import Keys, ParsedKey
from aspenfs.metadata import Dentry, decode_dentry, decode_inode
from aspenfs.types import Ino
from aspenkv.contract import WatchEvent

_DIRECTORY: Final = stat.S_IFDIR >> 12
_REGULAR: Final = stat.S_IFREG >> 12
_OF_INODES: Final = frozenset(("C", "I", "I.meta", "X"))


class UntranslatableError(AspenError):
    """A commit cannot be told by paths, or what is known does not fit it: read all names anew."""


class _Touched:
    """What one commit did to one inode, apart from its names; ``inode`` is its new record."""

    __slots__ = ("has_chunks", "inode", "is_set")

    def __init__(self) -> None:
        self.has_chunks = False
        self.inode: bytes | None = None
        self.is_set = False  # an attribute or a time: each sets the time of change


class _Commit:
    """The changes of one commit, by place and by inode."""

    def __init__(self, keys: Keys, tree: KnownTree, event: WatchEvent) -> None:
        self.revision = event.revision
        self.entries: dict[Place, Dentry | None] = {}
        self.inodes: dict[Ino, _Touched] = {}
        self._entry_count = 0  # of the whole volume
        for change in event.changes:
            if change.end is not None:
                raise UntranslatableError("a range of names was removed at once")
            parsed = keys.parse(change.key)
            if parsed is None:
                continue
            if parsed.kind == "D":
                self._entry_count += 1
                place = Place(parsed.ino, parsed.name)
                if tree.covers(place):
                    value = change.value
                    dentry = None if value is None else decode_dentry(change.key, value)
                    self.entries[place] = dentry
            elif parsed.kind in _OF_INODES:
                self._touch(parsed, change.value)
        known = filter(None, map(tree.get, self.entries))
        meant = filter(None, self.entries.values())
        self.renamed: Final = {dentry.ino for dentry in (*known, *meant)}
        self.listed: Final = {place.parent for place in self.entries}

    def made(self, ino: Ino) -> bool:
        """Return whether it made an inode, so that this is a directory without names if it is one.

        It has the inode's record, and no other entry that could have meant it before.
        """
        touched = self.inodes.get(ino)
        return self._entry_count == 1 and touched is not None and touched.inode is not None

    def _touch(self, parsed: ParsedKey, value: bytes | None) -> None:
        touched = self.inodes.setdefault(parsed.ino, _Touched())
        match parsed.kind:
            case "C":
                touched.has_chunks = True
            case "I":
                touched.inode = value
            case _:
                touched.is_set = True


class Translator:
    """Knows the names below one place, and tells what commits do to them.

    Directories in ``unread`` are known by name only. The caller reads them from the store and hands
    in each name with :meth:`found`, until there is none, before it translates the next commit.
    """

    def __init__(self, keys: Keys, top: Place) -> None:
        """Start with nothing known at ``top``, which is handed in by :meth:`found`, too."""
        self._keys = keys
        self._tree = KnownTree(top)
        self._writes = HeldWrites()
        self._content: dict[Ino, int] = {}  # of files as the newest inode record has it
        self.unread: deque[Ino] = deque()

    def found(self, place: Place, dentry: Dentry, revision: int) -> list[FeedEvent]:
        """Take a name that was read; return the event that makes it known, if it was not.

        A directory that is known elsewhere has been moved; the commit which tells that is still to
        come.

        Raises:
            TooManyNamesError: it is one too many.
        """
        if self._tree.get(place) is not None:
            return []
        if dentry.file_type == _DIRECTORY and self._tree.places(dentry.ino):
            return []
        return [self._create(place, dentry, revision, is_empty=False)]

    def translate(self, event: WatchEvent, now_s: float) -> list[FeedEvent]:
        """Return what a commit did, in an order in which a listener can do the same.

        Args:
            event: its changes, with the values of all entries, inodes and times that it put.
            now_s: the time, on a clock that only grows.

        Raises:
            UntranslatableError: what is known is of no more use.
            TooManyNamesError: the tree has become too large.
            CorruptRecordError, FormatVersionError: a record cannot be read.
        """
        commit = _Commit(self._keys, self._tree, event)
        told = self._change_names(commit)
        for ino, touched in commit.inodes.items():
            told += self._change_inode(commit, ino, touched, now_s)
        return told

    @property
    def due_s(self) -> float | None:
        """When :meth:`take_due` is to be called next; None: not before another commit."""
        return self._writes.due_s

    def take_due(self, now_s: float) -> list[FeedEvent]:
        """Return the events of writes that were held and are to be told now."""
        return [
            event
            for ino, revision in self._writes.take_due(now_s)
            for event in self._tell(EventKind.WRITTEN, ino, revision)
        ]

    def _change_names(self, commit: _Commit) -> list[FeedEvent]:
        """Bring the tree up to date, and tell it: what goes, what moves, then what comes."""
        entries = {
            place: dentry
            for place, dentry in commit.entries.items()
            if dentry != self._tree.get(place)
        }
        moves = self._moves(entries)
        stay = frozenset(moves.values())
        told = [
            self._remove(place, commit.revision)
            for place in entries
            if place not in stay and self._tree.get(place) is not None
        ]
        if any(self._tree.get(place) is None for place in stay):
            raise UntranslatableError("a name was moved out of a directory that was removed")
        for place, dentry in entries.items():
            if dentry is None or not self._tree.covers(place):
                continue
            old = moves.get(place)
            if old is not None and moves.get(old) == place:
                if self._tree.get(place) != dentry:  # else told when it was the other one's turn
                    told.append(self._exchange(old, place, commit.revision))
            elif old is not None:
                told.append(self._move(old, place, commit.revision))
            elif dentry.file_type == _DIRECTORY and (known := self._tree.places(dentry.ino)):
                told.append(self._move(known[0], place, commit.revision))
            else:
                is_empty = commit.made(dentry.ino)
                told.append(self._create(place, dentry, commit.revision, is_empty=is_empty))
        return told

    def _moves(self, entries: Mapping[Place, Dentry | None]) -> dict[Place, Place]:
        """Return from where each name was moved that one commit moved, two also crosswise.

        Longer chains, which no operation of the filesystem makes, count as removed and created.
        """
        left = {
            known.ino: place for place in entries if (known := self._tree.get(place)) is not None
        }
        moves = {
            place: left[dentry.ino]
            for place, dentry in entries.items()
            if dentry is not None and left.get(dentry.ino, place) != place
        }
        return {new: old for new, old in moves.items() if old not in moves or moves[old] == new}

    def _create(self, place: Place, dentry: Dentry, revision: int, *, is_empty: bool) -> FeedEvent:
        """Take a new name; ``is_empty``: where it is a directory's, that has no names yet."""
        if self._tree.add(place, dentry) and not is_empty:
            self.unread.append(dentry.ino)
        path = self._tree.path(place)
        return FeedEvent(revision, EventKind.CREATED, path, dentry.file_type)

    def _remove(self, place: Place, revision: int) -> FeedEvent:
        dentry = self._known(place)
        path = self._tree.path(place)
        for ino in self._tree.remove(place):
            self._writes.forget(ino)
            self._content.pop(ino, None)
        return FeedEvent(revision, EventKind.REMOVED, path, dentry.file_type)

    def _move(self, old: Place, new: Place, revision: int) -> FeedEvent:
        dentry = self._known(old)
        self._check_above(dentry, new)
        old_path = self._tree.path(old)
        self._tree.move(old, new)
        path = self._tree.path(new)
        return FeedEvent(revision, EventKind.RENAMED, path, dentry.file_type, old_path)

    def _exchange(self, old: Place, new: Place, revision: int) -> FeedEvent:
        dentry = self._known(old)
        self._check_above(dentry, new)
        self._check_above(self._known(new), old)
        old_path, path = self._tree.path(old), self._tree.path(new)
        self._tree.exchange(old, new)
        return FeedEvent(revision, EventKind.EXCHANGED, path, dentry.file_type, old_path)

    def _known(self, place: Place) -> Dentry:
        dentry = self._tree.get(place)
        assert dentry is not None, "the caller has looked"
        return dentry

    def _check_above(self, dentry: Dentry, place: Place) -> None:
        """Refuse to put a directory below itself.

        No commit does that: a part of what is known is newer than the commit.
        """
        if self._tree.is_within(place, dentry.ino):
            raise UntranslatableError("directories were moved while their names were read")

    def _change_inode(
        self, commit: _Commit, ino: Ino, touched: _Touched, now_s: float
    ) -> Iterator[FeedEvent]:
        """Tell what became of an inode itself, by each of its names."""
        places = self._tree.places(ino)
        if not places:
            return
        is_written = False
        if self._known(places[0]).file_type == _REGULAR:
            is_written = self._notes_content(ino, touched) or touched.has_chunks
        if ino in commit.renamed or ino in commit.listed:
            return  # whatever else it is, it comes with what is told already
        if is_written:
            if self._writes.note(ino, commit.revision, now_s):
                yield from self._tell(EventKind.WRITTEN, ino, commit.revision)
        elif touched.is_set:
            yield from self._tell(EventKind.CHANGED, ino, commit.revision)

    def _notes_content(self, ino: Ino, touched: _Touched) -> bool:
        """Return whether a file's inode record says that its content has changed, or may have.

        It holds the size and the content of a small file, together with much else. Of a file whose
        record was not seen before, nobody can tell.
        """
        if touched.inode is None:
            return False
        inode = decode_inode(self._keys.inode(ino), touched.inode)
        content = hash((inode.size, inode.inline))
        before = self._content.get(ino)
        self._content[ino] = content
        return content != before

    def _tell(self, kind: EventKind, ino: Ino, revision: int) -> Iterator[FeedEvent]:
        for place in self._tree.places(ino):
            path, file_type = self._tree.path(place), self._known(place).file_type
            yield FeedEvent(revision, kind, path, file_type)
