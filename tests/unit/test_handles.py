from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenfs import limits
from aspenfs.errors import FilesystemError
from aspenfs.handles import HandleTable, LookupCounts
from aspenfs.types import FileHandle, Ino


def test_a_handle_stands_for_what_was_opened_until_it_is_removed() -> None:
    table = HandleTable[str]()
    first, second = table.add("a"), table.add("b")
    assert (table.get(first), table.get(second)) == ("a", "b")
    assert len(table) == 2
    assert table.remove(first) == "a"
    assert list(table) == ["b"]
    for use in (table.get, table.remove):
        with pytest.raises(FilesystemError) as caught:
            use(first)
        assert caught.value.errno == errno.EBADF


def test_a_handle_is_never_given_twice() -> None:
    table = HandleTable[str]()
    first = table.add("a")
    table.remove(first)
    assert table.add("b") > first


def test_an_unknown_handle_is_bad() -> None:
    with pytest.raises(FilesystemError, match="EBADF"):
        HandleTable[str]().get(FileHandle(7))


def test_what_is_open_may_change_during_an_iteration() -> None:
    table = HandleTable[str]()
    handle = table.add("a")
    table.add("b")
    seen = []
    for opened in table:
        seen.append(opened)
        if opened == "a":
            table.remove(handle)
    assert seen == ["a", "b"]


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OPEN_HANDLES_MAX", 2)
    table = HandleTable[str]()
    table.add("a")
    handle = table.add("b")
    with pytest.raises(FilesystemError, match="ENFILE"):
        table.add("c")
    table.remove(handle)
    table.add("c")


def test_an_inode_is_known_until_each_lookup_is_forgotten() -> None:
    counts = LookupCounts()
    for _ in range(3):
        counts.increment(Ino(5))
    assert Ino(5) in counts
    assert list(counts) == [5]
    assert not counts.forget(Ino(5), 2)
    assert len(counts) == 1
    assert counts.forget(Ino(5), 1)
    assert Ino(5) not in counts
    assert len(counts) == 0


def test_forgetting_too_much_leaves_no_debt() -> None:
    counts = LookupCounts()
    assert counts.forget(Ino(5), 3)
    counts.increment(Ino(5))
    assert Ino(5) in counts


@given(st.lists(st.tuples(st.integers(1, 3).map(Ino), st.integers(0, 3))))
def test_counts_are_per_inode(steps: list[tuple[Ino, int]]) -> None:
    counts = LookupCounts()
    expected: dict[Ino, int] = {}
    for ino, taken in steps:
        counts.increment(ino)
        expected[ino] = expected.get(ino, 0) + 1
        forgotten = min(taken, expected[ino])
        expected[ino] -= forgotten
        assert counts.forget(ino, forgotten) == (expected[ino] == 0)
    assert len(counts) == sum(count > 0 for count in expected.values())
