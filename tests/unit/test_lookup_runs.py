from __future__ import annotations

from aspenfs import limits
from aspenfs.lookup_runs import ALL_NAMES, ALONE, BEGINNING, LookupRuns, Stretch
from aspenfs.types import Ino

ONE, OTHER = Ino(1), Ino(2)
LONGEST = Stretch(limits.LOOKUP_AHEAD_MAX, is_from_first=False, has_inodes=True)


def test_lookups_that_go_upward_read_more_each_time() -> None:
    runs = LookupRuns()
    stretches = [runs.advance(ONE, b"%02d" % number) for number in range(4)]
    assert stretches == [ALONE, BEGINNING, LONGEST, LONGEST]


def test_lookups_in_any_order_read_all_names_once() -> None:
    runs = LookupRuns()
    names = [b"%02d" % number for number in range(20, 0, -1)]
    stretches = [runs.advance(ONE, name) for name in names]
    at = limits.LOOKUP_MISSES_MAX - 1
    assert stretches[:2] == [ALONE, BEGINNING]
    assert stretches[at] == ALL_NAMES
    assert set(stretches[2:at] + stretches[at + 1 :]) == {ALONE}


def test_a_step_back_reads_one_name() -> None:
    runs = LookupRuns()
    stretches = [runs.advance(ONE, name) for name in (b"m", b"n", b"n", b"a")]
    assert stretches == [ALONE, BEGINNING, ALONE, ALONE]


def test_each_directory_has_its_own_run() -> None:
    runs = LookupRuns()
    runs.advance(ONE, b"a")
    assert runs.advance(OTHER, b"b") is ALONE
    assert runs.advance(ONE, b"b") == BEGINNING


def test_only_so_many_directories_are_remembered() -> None:
    runs = LookupRuns()
    runs.advance(ONE, b"a")
    for number in range(limits.LOOKUP_RUNS_MAX):
        runs.advance(Ino(100 + number), b"a")
    assert runs.advance(ONE, b"b") is ALONE
