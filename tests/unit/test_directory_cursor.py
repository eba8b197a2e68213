"""The cursor against a model: a directory that others change while it is read."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aspenfs import limits
from aspenfs.errors import FilesystemError
from aspenfs.handles import DirectoryCursor, Resume


class Directory:
    """A directory and one open handle on it, read as the filesystem reads it."""

    def __init__(self, names: set[bytes]) -> None:
        self.names = names
        self.cursor = DirectoryCursor()

    def page(self, offset: int, limit: int) -> list[tuple[bytes, int]]:
        """Return names and their offsets, as readdir does."""
        after_name, skip = self.cursor.resume(offset)
        following = sorted(name for name in self.names if after_name is None or name > after_name)
        names = following[skip : skip + limit]
        return list(zip(names, self.cursor.append(names), strict=True))

    def rest(self, offset: int, limit: int) -> list[tuple[bytes, int]]:
        """Return everything after ``offset``."""
        entries: list[tuple[bytes, int]] = []
        while page := self.page(offset, limit):
            entries += page
            offset = page[-1][1]
        return entries


def names(count: int) -> set[bytes]:
    return {b"%06d" % number for number in range(count)}


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    set_small_limits(monkeypatch)


def set_small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READDIR_KEPT_NAMES_MAX", 8)
    monkeypatch.setattr(limits, "READDIR_PAGE_ENTRIES", 4)
    monkeypatch.setattr(limits, "READDIR_CHECKPOINTS_MAX", 8)


def memory_of(cursor: DirectoryCursor) -> tuple[int, int]:
    return len(cursor._names), len(cursor._checkpoints)


def test_a_listing_starts_at_offset_0() -> None:
    assert DirectoryCursor().resume(0) == Resume(None, 0)


def test_an_empty_directory_has_no_offsets() -> None:
    assert Directory(set()).page(0, 10) == []


@pytest.mark.parametrize("offset", [-1, 1, 2**63])
def test_an_offset_that_was_never_given_out_is_invalid(offset: int) -> None:
    with pytest.raises(FilesystemError) as caught:
        DirectoryCursor().resume(offset)
    assert caught.value.errno == errno.EINVAL


def test_a_recent_offset_leads_to_its_name() -> None:
    cursor = DirectoryCursor()
    offsets = cursor.append([b"a", b"b", b"c"])
    assert offsets == [1, 2, 3]
    assert cursor.resume(2) == Resume(b"b", 0)


def test_entries_that_come_again_keep_their_offsets() -> None:
    directory = Directory({b"a", b"b", b"c"})
    first = directory.page(0, 10)
    assert directory.page(first[0][1], 10) == first[1:]
    assert directory.page(0, 10) == first


def test_entries_that_come_otherwise_get_higher_offsets() -> None:
    directory = Directory({b"a", b"b", b"d"})
    assert directory.page(0, 10) == [(b"a", 1), (b"b", 2), (b"d", 3)]
    directory.names.add(b"c")
    assert directory.page(1, 10) == [(b"b", 2), (b"c", 4), (b"d", 5)]
    assert directory.cursor.resume(3) == Resume(b"d", 0)
    assert directory.page(4, 10) == [(b"d", 5)]


@pytest.mark.usefixtures("small_limits")
def test_an_old_offset_leads_to_a_checkpoint_and_a_distance() -> None:
    cursor = DirectoryCursor()
    cursor.append(sorted(names(20)))
    assert cursor.resume(3) == Resume(None, 3)
    assert cursor.resume(4) == Resume(None, 4)
    assert cursor.resume(5) == Resume(b"000003", 1)
    assert cursor.resume(12) == Resume(b"000007", 4)
    assert cursor.resume(13) == Resume(b"000012", 0)


@pytest.mark.usefixtures("small_limits")
def test_every_offset_of_an_unchanged_directory_is_exact() -> None:
    directory = Directory(names(60))
    entries = directory.rest(0, 5)
    for index, (_, offset) in enumerate(entries):
        following = [name for name, _ in entries[index + 1 :]]
        assert [name for name, _ in directory.rest(offset, 7)] == following


@pytest.mark.usefixtures("small_limits")
def test_memory_is_bounded_in_a_large_directory() -> None:
    directory = Directory(names(1000))
    entries = directory.rest(0, 50)
    kept, checkpoints = memory_of(directory.cursor)
    assert kept <= limits.READDIR_KEPT_NAMES_MAX
    assert checkpoints <= limits.READDIR_CHECKPOINTS_MAX
    middle_name, middle_offset = entries[500]
    assert directory.page(middle_offset, 1)[0][0] > middle_name
    assert directory.page(middle_offset, 1)[0][0] == entries[501][0]


@pytest.mark.usefixtures("small_limits")
def test_offsets_of_a_pass_lead_to_what_it_saw_also_after_changes() -> None:
    directory = Directory(names(40))
    directory.rest(0, 5)
    directory.names -= names(3)
    entries = directory.rest(0, 5)
    for index, (_, offset) in enumerate(entries):
        following = [name for name, _ in entries[index + 1 :]]
        assert [name for name, _ in directory.rest(offset, 7)] == following


@pytest.mark.usefixtures("small_limits")
def test_an_offset_whose_place_is_forgotten_is_invalid_and_never_wrong() -> None:
    directory = Directory(names(40))
    early = directory.rest(0, 5)[9][1]
    late_name, late = directory.rest(0, 5)[-2]
    for number in range(2 * limits.READDIR_CHECKPOINTS_MAX):
        directory.names ^= {late_name + b"%d" % number}
        directory.page(late, 2)
    with pytest.raises(FilesystemError, match="is forgotten"):
        directory.page(early, 1)
    assert len(directory.rest(0, 5)) == len(directory.names)


@given(
    present=st.sets(st.binary(min_size=1, max_size=2), max_size=60),
    pages=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=20),
)
def test_the_kernel_may_take_any_part_of_each_page(
    present: set[bytes], pages: list[tuple[int, int]]
) -> None:
    directory = Directory(present)
    seen: list[bytes] = []
    offset, turn = 0, 0
    while True:
        limit, taken = pages[turn % len(pages)]
        turn += 1
        page = directory.page(offset, limit)
        if not page:
            break
        for name, next_offset in page[: max(1, taken)]:
            seen.append(name)
            offset = next_offset
    assert seen == sorted(present)


class Reading(RuleBasedStateMachine):
    """One handle reads and seeks while others create and delete names.

    What POSIX asks of readdir(3): an entry that is there during the whole pass is returned exactly
    once, one that comes or goes meanwhile at most once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.monkeypatch = pytest.MonkeyPatch()
        set_small_limits(self.monkeypatch)
        self.directory = Directory(set())
        self.begin_pass()

    def teardown(self) -> None:
        self.monkeypatch.undo()

    def begin_pass(self) -> None:
        """Note what is there when a pass begins at offset 0."""
        self.offset = 0
        self.seen: list[tuple[bytes, int]] = []
        self.stayed = set(self.directory.names)
        self.ended = False

    @initialize(present=st.sets(st.binary(min_size=1, max_size=2), max_size=60))
    def fill(self, present: set[bytes]) -> None:
        self.directory.names |= present
        self.stayed = set(present)

    @rule(name=st.binary(min_size=1, max_size=2))
    def create(self, name: bytes) -> None:
        self.directory.names.add(name)

    @precondition(lambda self: self.directory.names)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.directory.names)))
        self.directory.names.discard(name)
        self.stayed.discard(name)

    @rule(limit=st.integers(1, 4), taken=st.integers(0, 4))
    def read(self, limit: int, taken: int) -> None:
        assert limit <= limits.READDIR_PAGE_ENTRIES
        page = self.directory.page(self.offset, limit)
        for name, offset in page[:taken]:
            assert offset > self.offset
            assert not self.seen or name > self.seen[-1][0]
            self.seen.append((name, offset))
            self.offset = offset
        if not page:
            assert self.stayed <= {name for name, _ in self.seen}
            self.begin_pass()

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def seek_to_a_kept_offset(self, data: st.DataObject) -> None:
        kept = limits.READDIR_KEPT_NAMES_MAX
        recent = [
            index
            for index, (_, offset) in enumerate(self.seen)
            if offset > self.directory.cursor._last - kept
        ]
        if recent:
            index = data.draw(st.sampled_from(recent))
            del self.seen[index + 1 :]
            self.offset = self.seen[-1][1]

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def seek_anywhere(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.seen) - 1))
        try:
            place = self.directory.cursor.resume(self.seen[index][1])
        except FilesystemError as error:
            assert error.errno == errno.EINVAL  # noqa: PT017
        else:
            assert place.after_name is None or place.after_name <= self.seen[index][0]
        self.directory.cursor.resume(self.offset)

    @rule()
    def rewind(self) -> None:
        self.begin_pass()

    @invariant()
    def memory_is_bounded(self) -> None:
        kept, checkpoints = memory_of(self.directory.cursor)
        assert kept <= limits.READDIR_KEPT_NAMES_MAX
        assert checkpoints <= limits.READDIR_CHECKPOINTS_MAX


TestReading = Reading.TestCase
