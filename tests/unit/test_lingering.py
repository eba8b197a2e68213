from __future__ import annotations

from math import inf

import pytest

from aspenfs import limits
from aspenfs.limits import ORPHAN_LINGER_S
from aspenfs.lingering import Lingering
from aspenfs.types import Ino

ONE, TWO, THREE, FOUR = map(Ino, range(1, 5))


@pytest.fixture
def lingering() -> Lingering:
    return Lingering()


def test_an_inode_is_due_when_its_time_is_up(lingering: Lingering) -> None:
    assert lingering.next_due_s() == inf
    lingering.add(ONE, 10.0)
    lingering.add(TWO, 11.0)
    assert ONE in lingering
    assert THREE not in lingering
    assert len(lingering) == 2
    assert lingering.next_due_s() == 10.0 + ORPHAN_LINGER_S
    assert lingering.take_due(9.0 + ORPHAN_LINGER_S, 10) == []
    assert lingering.take_due(10.0 + ORPHAN_LINGER_S, 10) == [ONE]
    assert ONE not in lingering
    assert lingering.take_due(inf, 10) == [TWO]
    assert len(lingering) == 0


def test_what_lingers_already_lingers_no_longer_for_being_added_again(
    lingering: Lingering,
) -> None:
    lingering.add(ONE, 0.0)
    lingering.add(ONE, 5.0)
    assert lingering.take_due(ORPHAN_LINGER_S, 10) == [ONE]
    lingering.add_due(TWO)
    lingering.add(TWO, 5.0)
    assert lingering.take_due(0.0, 10) == [TWO]
    assert len(lingering) == 0


def test_what_is_due_now_comes_first(lingering: Lingering) -> None:
    lingering.add(ONE, 0.0)
    lingering.add(TWO, 0.0)
    lingering.add_due(TWO)
    assert lingering.next_due_s() == -inf
    assert TWO in lingering
    assert len(lingering) == 2
    assert lingering.take_due(0.0, 10) == [TWO]
    assert lingering.next_due_s() == ORPHAN_LINGER_S


def test_as_many_are_taken_as_asked_for(lingering: Lingering) -> None:
    for ino in (ONE, TWO, THREE):
        lingering.add(ino, 0.0)
    assert lingering.take_due(inf, 2) == [ONE, TWO]
    assert THREE in lingering
    assert lingering.take_due(0.0, 2) == [THREE]


def test_it_is_bounded(lingering: Lingering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ORPHANS_LINGERING_MAX", 2)
    for ino in (ONE, TWO, THREE):
        lingering.add(ino, 0.0)
    assert lingering.take_due(0.0, 10) == [ONE]  # the oldest goes at once
    for ino in (ONE, TWO, THREE, FOUR):
        lingering.add_due(ino)
    assert lingering.take_due(0.0, 10) == [THREE, FOUR]  # who scans the orphans finds the others
    assert ONE not in lingering
