"""Commits become events of paths: each rule of the translator, its tree and its held writes."""

from __future__ import annotations

import stat
from typing import Any, Final

import pytest

from aspenfs import limits
from aspenfs.change_feed import (
    MOUNT_ROOT,
    Place,
    TooManyNamesError,
    UntranslatableError,
)
from aspenfs.change_feed.held_writes import HeldWrites
from aspenfs.change_feed.translator import Translator
from aspenfs.errors import CorruptRecordError
from aspenfs.keys import Keys, range_end
from aspenfs.metadata import Dentry, Inode, Times, encode_dentry, encode_inode, encode_times
from aspenfs.types import NO_INO, ROOT_INO, Ino
from aspenkv.contract import Change, WatchEvent

KEYS: Final = Keys("test")
DIRECTORY: Final = stat.S_IFDIR >> 12
REGULAR: Final = stat.S_IFREG >> 12
SYMLINK: Final = stat.S_IFLNK >> 12
OUTSIDE: Final = Ino(99)
"""A directory that is not watched."""

D1, D2, F1, F2, LINK = (
    Dentry(Ino(11), DIRECTORY),
    Dentry(Ino(12), DIRECTORY),
    Dentry(Ino(21), REGULAR),
    Dentry(Ino(22), REGULAR),
    Dentry(Ino(31), SYMLINK),
)

Told = list[tuple[str | None, ...]]


def put(parent: Ino, name: str, dentry: Dentry) -> Change:
    return Change(KEYS.dentry(parent, name.encode()), None, encode_dentry(dentry))


def delete(parent: Ino, name: str) -> Change:
    return Change(KEYS.dentry(parent, name.encode()), None, None)


def inode(ino: Ino, mode: int = stat.S_IFREG, **changes: Any) -> Change:
    fields = {
        "mode": mode,
        "uid": 0,
        "gid": 0,
        "nlink": 1,
        "size": 0,
        "allocated_bytes": 0,
        "rdev": 0,
        "atime_ns": 0,
        "btime_ns": 0,
        "parent": NO_INO,
        "generation": 0,
        "has_xattrs": False,
        "target": None,
        "inline": None,
    }
    return Change(KEYS.inode(ino), None, encode_inode(Inode(**(fields | changes))))


def times(ino: Ino) -> Change:
    return Change(KEYS.times(ino), None, encode_times(Times(1, 1)))


def chunk(ino: Ino) -> Change:
    return Change(KEYS.chunk(ino, 0), None, None)


def xattr(ino: Ino) -> Change:
    return Change(KEYS.xattr(ino, b"user.a"), None, None)


class Feed:
    """A translator that has been told of everything below the root directory."""

    def __init__(self) -> None:
        self.translator = Translator(KEYS, MOUNT_ROOT)
        self.translator.found(MOUNT_ROOT, Dentry(ROOT_INO, DIRECTORY), 0)
        self._revision = 0

    def commit(self, *changes: Change, now_s: float = 0.0) -> Told:
        self._revision += 1
        event = WatchEvent(self._revision, changes)
        return [self._short(each) for each in self.translator.translate(event, now_s)]

    def make(self, parent: Ino, name: str, dentry: Dentry) -> Told:
        """Make an inode, as the filesystem does."""
        mode = dentry.file_type << 12
        return self.commit(
            put(parent, name, dentry), inode(dentry.ino, mode), times(dentry.ino), times(parent)
        )

    def due(self, now_s: float) -> Told:
        return [self._short(each) for each in self.translator.take_due(now_s)]

    def _short(self, event: Any) -> tuple[str | None, ...]:
        old = () if event.old_path is None else (event.old_path.decode(),)
        return (event.kind.value, *old, event.path.decode())


@pytest.fixture
def feed() -> Feed:
    """Of the tree d1/f1, d1/d2 and link."""
    feed = Feed()
    feed.translator.unread.clear()
    feed.make(ROOT_INO, "d1", D1)
    feed.make(D1.ino, "f1", F1)
    feed.make(D1.ino, "d2", D2)
    feed.make(ROOT_INO, "link", LINK)
    assert not feed.translator.unread
    return feed


# --- names --------------------------------------------------------------------------------------


def test_a_new_name_is_created_and_nothing_else(feed: Feed) -> None:
    assert feed.make(D2.ino, "f2", F2) == [("created", "d1/d2/f2")]
    event = feed.translator.translate(
        WatchEvent(77, (put(D2.ino, "f3", Dentry(Ino(23), REGULAR)),)), 0.0
    )
    assert event == [(77, "created", b"d1/d2/f3", REGULAR, None)]


def test_another_name_of_a_file_is_created(feed: Feed) -> None:
    told = feed.commit(put(ROOT_INO, "hard", F1), inode(F1.ino, nlink=2), times(F1.ino))
    assert told == [("created", "hard")]
    assert feed.commit(xattr(F1.ino)) == [("changed", "d1/f1"), ("changed", "hard")]
    told = feed.commit(delete(ROOT_INO, "hard"), inode(F1.ino), times(F1.ino))
    assert told == [("removed", "hard")]
    assert feed.commit(chunk(F1.ino)) == [("written", "d1/f1")]


def test_a_rename_is_one_event(feed: Feed) -> None:
    moved = (delete(D1.ino, "f1"), put(D2.ino, "new", F1), times(F1.ino))
    assert feed.commit(*moved) == [("renamed", "d1/f1", "d1/d2/new")]
    told = feed.commit(delete(D1.ino, "d2"), put(ROOT_INO, "d3", D2), inode(D2.ino, stat.S_IFDIR))
    assert told == [("renamed", "d1/d2", "d3")]
    assert feed.commit(chunk(F1.ino)) == [("written", "d3/new")]


def test_what_a_rename_replaces_is_removed_first(feed: Feed) -> None:
    feed.make(D2.ino, "f2", F2)
    told = feed.commit(put(D1.ino, "f1", F2), delete(D2.ino, "f2"), xattr(F1.ino))
    assert told == [("removed", "d1/f1"), ("renamed", "d1/d2/f2", "d1/f1")]


def test_an_exchange_is_one_event(feed: Feed) -> None:
    told = feed.commit(put(ROOT_INO, "link", D2), put(D1.ino, "d2", LINK))
    assert told == [("exchanged", "d1/d2", "link")]
    assert feed.make(D2.ino, "f2", F2) == [("created", "link/f2")]
    told = feed.commit(put(ROOT_INO, "d1", D2), put(ROOT_INO, "link", D1))
    assert told == [("exchanged", "link", "d1")]
    assert feed.commit(chunk(F2.ino), xattr(F1.ino)) == [
        ("written", "d1/f2"),
        ("changed", "link/f1"),
    ]


def test_a_longer_chain_of_moves_is_taken_apart(feed: Feed) -> None:
    feed.make(ROOT_INO, "f2", F2)
    told = feed.commit(put(ROOT_INO, "link", F1), put(ROOT_INO, "f2", LINK), delete(D1.ino, "f1"))
    assert told == [
        ("removed", "link"),
        ("removed", "f2"),
        ("renamed", "d1/f1", "link"),
        ("created", "f2"),
    ]


def test_a_directory_goes_with_all_below_it(feed: Feed) -> None:
    feed.make(D2.ino, "f2", F2)
    assert feed.commit(delete(ROOT_INO, "d1"), put(OUTSIDE, "d1", D1)) == [("removed", "d1")]
    assert feed.commit(chunk(F1.ino), chunk(F2.ino), xattr(D2.ino)) == []
    assert feed.commit(delete(D1.ino, "f1"), put(D2.ino, "more", F1)) == []


def test_a_directory_that_comes_is_to_be_read(feed: Feed) -> None:
    came = Dentry(Ino(13), DIRECTORY)
    told = feed.commit(
        delete(OUTSIDE, "came"), put(ROOT_INO, "came", came), inode(came.ino, stat.S_IFDIR)
    )
    assert told == [("created", "came")]
    assert list(feed.translator.unread) == [came.ino]
    (event,) = feed.translator.found(Place(came.ino, b"f2"), F2, 5)
    assert event == (5, "created", b"came/f2", REGULAR, None)
    assert feed.translator.found(Place(came.ino, b"f2"), F2, 5) == []


def test_a_name_whose_record_is_another_one_is_another_thing(feed: Feed) -> None:
    told = feed.commit(put(ROOT_INO, "link", LINK._replace(file_type=REGULAR)))
    assert told == [("removed", "link"), ("created", "link")]


def test_what_is_known_already_is_not_told(feed: Feed) -> None:
    assert feed.commit(put(D1.ino, "f1", F1), delete(D1.ino, "absent")) == []


def test_names_elsewhere_are_not_told(feed: Feed) -> None:
    assert feed.make(OUTSIDE, "f2", F2) == []
    assert feed.commit(Change(KEYS.prefix + b"?", None, None)) == []
    assert feed.commit(Change(KEYS.orphan(F1.ino), None, None)) == []


def test_a_commit_in_a_directory_that_it_removes(feed: Feed) -> None:
    told = feed.commit(delete(D1.ino, "d2"), put(D2.ino, "f2", F2))
    assert told == [("removed", "d1/d2")]


# --- a single name ------------------------------------------------------------------------------


def test_one_file_is_watched_by_its_name() -> None:
    feed = Feed()
    feed.translator = Translator(KEYS, Place(OUTSIDE, b"f"))
    assert [
        (event.kind.value, event.path)
        for event in feed.translator.found(Place(OUTSIDE, b"f"), F1, 3)
    ] == [("created", b"")]
    assert feed.commit(chunk(F1.ino)) == [("written", "")]
    assert feed.make(OUTSIDE, "other", F2) == []
    told = feed.commit(put(OUTSIDE, "f", F2), delete(OUTSIDE, "other"))
    assert told == [("removed", ""), ("created", "")]
    assert feed.commit(chunk(F1.ino), chunk(F2.ino)) == [("written", "")]
    assert feed.commit(delete(OUTSIDE, "f")) == [("removed", "")]
    assert feed.make(OUTSIDE, "f", D1) == [("created", "")]
    assert feed.make(D1.ino, "f1", F1) == [("created", "f1")]


# --- content and attributes ---------------------------------------------------------------------


def test_content_is_told_apart_from_attributes(feed: Feed) -> None:
    small = inode(F1.ino, size=3, inline=b"abc")
    assert feed.commit(small, times(F1.ino)) == [("written", "d1/f1")]
    feed.due(10.0)
    assert feed.commit(small, times(F1.ino), now_s=10.0) == [("changed", "d1/f1")]
    assert feed.commit(times(F1.ino), now_s=10.0) == [("changed", "d1/f1")]
    larger = inode(F1.ino, size=70_000)
    assert feed.commit(larger, times(F1.ino), now_s=10.0) == [("written", "d1/f1")]
    feed.due(20.0)
    assert feed.commit(chunk(F1.ino), times(F1.ino), now_s=20.0) == [("written", "d1/f1")]


def test_a_record_that_is_only_written_again_is_nothing(feed: Feed) -> None:
    assert feed.commit(inode(F1.ino)) == []


def test_a_file_whose_record_was_not_seen_before_may_have_changed() -> None:
    feed = Feed()
    feed.translator.found(Place(ROOT_INO, b"f"), F1, 1)
    assert feed.commit(inode(F1.ino), times(F1.ino)) == [("written", "f")]
    assert feed.commit(inode(F1.ino), times(F1.ino)) == [("changed", "f")]


def test_a_directory_changes_with_its_attributes_not_with_its_names(feed: Feed) -> None:
    assert feed.commit(inode(D1.ino, stat.S_IFDIR), times(D1.ino)) == [("changed", "d1")]
    assert feed.commit(inode(ROOT_INO, stat.S_IFDIR), times(ROOT_INO)) == [("changed", "")]
    told = feed.commit(delete(D1.ino, "f1"), inode(D1.ino, stat.S_IFDIR), times(D1.ino))
    assert told == [("removed", "d1/f1")]
    assert feed.commit(times(LINK.ino)) == [("changed", "link")]


def test_writes_of_one_file_are_told_as_one(feed: Feed) -> None:
    feed.make(ROOT_INO, "f2", F2)
    span_s = limits.FEED_WRITES_S
    assert feed.commit(chunk(F1.ino), now_s=1.0) == [("written", "d1/f1")]
    assert feed.commit(chunk(F1.ino), now_s=1.2) == []
    assert feed.commit(chunk(F2.ino), now_s=1.5) == [("written", "f2")]
    assert feed.translator.due_s == 1.0 + span_s
    assert feed.due(1.0 + span_s / 2) == []
    assert feed.due(1.0 + span_s) == [("written", "d1/f1")]
    assert feed.translator.due_s == 1.5 + span_s
    assert feed.due(9.0) == []  # the pauses are over, and nothing was held
    assert feed.commit(chunk(F1.ino), chunk(F2.ino), now_s=9.0) == [
        ("written", "d1/f1"),
        ("written", "f2"),
    ]


def test_held_writes_of_what_was_removed_are_dropped(feed: Feed) -> None:
    feed.commit(chunk(F1.ino))
    feed.commit(chunk(F1.ino))
    feed.commit(delete(D1.ino, "f1"))
    assert feed.translator.due_s is None


def test_a_held_write_has_the_revision_of_the_newest() -> None:
    writes = HeldWrites()
    assert writes.note(F1.ino, 5, 0.0)
    assert not writes.note(F1.ino, 6, 0.1)
    assert not writes.note(F1.ino, 7, 0.2)
    assert writes.take_due(limits.FEED_WRITES_S) == [(F1.ino, 7)]
    writes.forget(F1.ino)
    writes.forget(F2.ino)
    assert writes.due_s is None


# --- what was read is newer than the next commits -----------------------------------------------


def test_a_directory_that_is_read_elsewhere_is_moved_by_its_commit(feed: Feed) -> None:
    came = Dentry(Ino(13), DIRECTORY)
    feed.commit(delete(OUTSIDE, "came"), put(ROOT_INO, "came", came))
    assert feed.translator.found(Place(came.ino, b"d2"), D2, 9) == []
    told = feed.commit(delete(D1.ino, "d2"), put(came.ino, "d2", D2))
    assert told == [("renamed", "d1/d2", "came/d2")]


def test_a_commit_leads_back_to_where_a_directory_was(feed: Feed) -> None:
    came = Dentry(Ino(13), DIRECTORY)
    found = Dentry(Ino(14), DIRECTORY)
    feed.commit(delete(OUTSIDE, "came"), put(ROOT_INO, "came", came))
    feed.translator.found(Place(came.ino, b"found"), found, 9)
    told = feed.commit(delete(OUTSIDE, "found"), put(ROOT_INO, "first", found))
    assert told == [("renamed", "came/found", "first")]
    told = feed.commit(delete(ROOT_INO, "first"), put(came.ino, "found", found))
    assert told == [("renamed", "first", "came/found")]


def test_directories_that_would_be_below_each_other_are_read_anew(feed: Feed) -> None:
    moved = (delete(ROOT_INO, "d1"), put(D2.ino, "d1", D1))
    with pytest.raises(UntranslatableError, match="while their names were read"):
        feed.commit(*moved)


def test_an_exchange_with_what_is_below_is_read_anew(feed: Feed) -> None:
    with pytest.raises(UntranslatableError):
        feed.commit(put(D1.ino, "f1", D1), put(ROOT_INO, "d1", F1))
    with pytest.raises(UntranslatableError):
        feed.commit(put(ROOT_INO, "d1", F1), put(D1.ino, "f1", D1))


def test_a_move_out_of_a_directory_that_goes_is_read_anew(feed: Feed) -> None:
    with pytest.raises(UntranslatableError, match="that was removed"):
        feed.commit(delete(ROOT_INO, "d1"), delete(D1.ino, "f1"), put(ROOT_INO, "f", F1))


def test_names_that_go_as_a_range_are_read_anew(feed: Feed) -> None:
    entries = KEYS.dentries(D1.ino)
    with pytest.raises(UntranslatableError, match="range"):
        feed.commit(Change(entries, range_end(entries), None))


# --- bounds and damage --------------------------------------------------------------------------


def test_names_are_bounded(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FEED_NAMES_MAX", 6)
    feed.make(ROOT_INO, "f2", F2)
    with pytest.raises(TooManyNamesError, match="more than 6 names"):
        feed.make(ROOT_INO, "f3", Dentry(Ino(23), REGULAR))
    feed.commit(delete(ROOT_INO, "d1"))
    assert feed.make(ROOT_INO, "f4", Dentry(Ino(24), REGULAR)) == [("created", "f4")]


def test_a_damaged_record_is_named(feed: Feed) -> None:
    with pytest.raises(CorruptRecordError):
        feed.commit(Change(KEYS.dentry(D1.ino, b"bad"), None, b"?"))
