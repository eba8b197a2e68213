from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenfs import limits
from aspenfs.known_inodes import KnownInodes, Name, OutdatedNames
from aspenfs.types import ROOT_INO, Ino

A, B, C = (Name(ROOT_INO, name) for name in (b"a", b"b", b"c"))
DIRECTORY, FILE = Ino(7), Ino(8)


def test_an_inode_is_known_until_each_lookup_is_forgotten() -> None:
    known = KnownInodes()
    for _ in range(3):
        known.told(Ino(5), None)
    assert Ino(5) in known
    assert list(known) == [5]
    assert not known.forget(Ino(5), 2)
    assert len(known) == 1
    assert known.forget(Ino(5), 1)
    assert Ino(5) not in known
    assert len(known) == 0


def test_forgetting_too_much_leaves_no_debt() -> None:
    known = KnownInodes()
    assert known.forget(Ino(5), 3)
    known.told(Ino(5), None)
    assert Ino(5) in known


@given(st.lists(st.tuples(st.integers(1, 3).map(Ino), st.integers(0, 3))))
def test_counts_are_per_inode(steps: list[tuple[Ino, int]]) -> None:
    known = KnownInodes()
    expected: dict[Ino, int] = {}
    for ino, taken in steps:
        known.told(ino, None)
        expected[ino] = expected.get(ino, 0) + 1
        forgotten = min(taken, expected[ino])
        expected[ino] -= forgotten
        assert known.forget(ino, forgotten) == (expected[ino] == 0)
    assert len(known) == sum(count > 0 for count in expected.values())


# --- names ----------------------------------------------------------------------------------------


def test_the_names_are_those_that_the_kernel_was_told() -> None:
    known = KnownInodes()
    known.told(FILE, A)
    assert known.names(FILE) == (A,)
    known.told(FILE, A)
    assert known.names(FILE) == (A,)
    known.told(FILE, B)
    known.told(FILE, A)
    assert known.names(FILE) == (B, A)
    assert known.all_names() == [B, A]
    known.told(FILE, None)
    assert known.names(FILE) == (B, A)
    assert not known.forget(FILE, 4)
    assert known.names(FILE) == (B, A)
    assert known.forget(FILE, 1)
    assert known.names(FILE) == ()
    assert known.all_names() == []


def test_of_many_names_the_latest_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KNOWN_NAMES_MAX", 2)
    known = KnownInodes()
    for name in (A, B, C):
        known.told(FILE, name)
    assert known.names(FILE) == (B, C)


def test_a_name_that_the_kernel_moves_or_drops_is_followed() -> None:
    known = KnownInodes()
    known.told(FILE, A)
    known.moved(FILE, A, B)
    assert known.names(FILE) == (B,)
    known.told(FILE, A)
    known.told(FILE, C)
    known.removed(FILE, B)
    assert known.names(FILE) == (A, C)
    known.removed(FILE, A)
    assert known.names(FILE) == (C,)
    known.removed(FILE, C)
    known.removed(FILE, C)
    assert known.names(FILE) == ()


def test_what_the_kernel_does_not_know_gets_no_name_by_a_move() -> None:
    known = KnownInodes()
    known.moved(FILE, A, B)
    assert known.names(FILE) == ()
    assert len(known) == 0


def test_the_ways_up_are_all_names_on_the_paths_to_an_inode() -> None:
    known = KnownInodes()
    known.told(ROOT_INO, None)
    known.told(DIRECTORY, A)
    known.told(FILE, Name(DIRECTORY, b"x"))
    known.told(FILE, B)
    known.told(Ino(9), C)
    assert sorted(known.ways_up(FILE)) == [
        (DIRECTORY, A),
        (FILE, B),
        (FILE, Name(DIRECTORY, b"x")),
    ]
    assert known.ways_up(ROOT_INO) == []
    assert known.ways_up(Ino(99)) == []


def test_directories_that_are_told_below_each_other_end_the_way_up() -> None:
    known = KnownInodes()
    known.told(Ino(5), Name(Ino(6), b"x"))
    known.told(Ino(6), Name(Ino(5), b"y"))
    assert len(known.ways_up(Ino(5))) == 2


# --- outdated names -------------------------------------------------------------------------------


def test_the_kernel_surely_knows_of_an_outdated_name_after_a_while() -> None:
    outdated = OutdatedNames()
    assert not outdated.note(FILE, A, 10.0)
    assert not outdated.note(FILE, A, 10.0 + limits.OUTDATED_NAME_S - 0.01)
    assert not outdated.note(FILE, B, 10.0 + limits.OUTDATED_NAME_S)
    assert outdated.note(FILE, A, 10.0 + limits.OUTDATED_NAME_S)
    assert not outdated.note(FILE, A, 10.0 + limits.OUTDATED_NAME_S)


def test_a_name_that_the_kernel_may_use_no_more_is_forgotten() -> None:
    known = KnownInodes()
    known.told(FILE, A)
    known.told(FILE, B)
    assert known.is_used_still(FILE, A, 10.0)
    assert known.names(FILE) == (A, B)
    assert not known.is_used_still(FILE, A, 10.0 + limits.OUTDATED_NAME_S)
    assert known.names(FILE) == (B,)


def test_a_name_that_is_told_again_is_not_the_outdated_one() -> None:
    known = KnownInodes()
    known.told(FILE, A)
    assert known.is_used_still(FILE, A, 10.0)
    known.told(FILE, A)
    assert known.is_used_still(FILE, A, 10.0 + limits.OUTDATED_NAME_S)


def test_outdated_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OUTDATED_NAMES_MAX", 2)
    outdated = OutdatedNames()
    for number, name in enumerate((A, B, C)):
        assert not outdated.note(FILE, name, number)
    assert not outdated.note(FILE, A, 100.0)
    assert outdated.note(FILE, C, 100.0)
