from __future__ import annotations

from aspenfs import limits
from aspenfs.lookup_runs import LookupRuns
from aspenfs.types import Ino

ONE, OTHER = Ino(1), Ino(2)


def test_lookups_that_go_upward_read_more_each_time() -> None:
    runs = LookupRuns()
    counts = [runs.advance(ONE, b"%02d" % number) for number in range(5)]
    assert counts == [1, 8, 32, 128, 128]
    assert counts[-1] == limits.LOOKUP_AHEAD_MAX


def test_a_step_back_starts_anew() -> None:
    runs = LookupRuns()
    assert [runs.advance(ONE, name) for name in (b"m", b"n", b"n", b"a", b"b")] == [1, 8, 1, 1, 8]


def test_each_directory_has_its_own_run() -> None:
    runs = LookupRuns()
    runs.advance(ONE, b"a")
    assert runs.advance(OTHER, b"b") == 1
    assert runs.advance(ONE, b"b") == limits.LOOKUP_AHEAD_FIRST


def test_only_so_many_directories_are_remembered() -> None:
    runs = LookupRuns()
    runs.advance(ONE, b"a")
    for number in range(limits.LOOKUP_RUNS_MAX):
        runs.advance(Ino(100 + number), b"a")
    assert runs.advance(ONE, b"b") == 1
