"""A thread that was answered ESTALE tries once more: that try is known, and for a while only."""

from __future__ import annotations

import errno

import pytest

from aspenfs import limits
from aspenfs.path_retries import PathRetries

TID, OTHER = 100, 200


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def retries(clock: Clock) -> PathRetries:
    return PathRetries(clock)


def test_the_try_after_estale_is_known_by_where_its_walk_ends(retries: PathRetries) -> None:
    assert not retries.takes_anew(TID, "open", 5)
    assert retries.error_for(TID, "open", 5) == errno.ESTALE
    retries.looked_up(TID, 2)
    retries.looked_up(TID, 6)
    retries.looked_up(OTHER, 7)
    assert not retries.takes_anew(OTHER, "open", 6)
    assert not retries.takes_anew(TID, "open", 5)
    assert retries.takes_anew(TID, "open", 6)
    retries.succeeded(TID)
    assert not retries.takes_anew(TID, "open", 6)


def test_an_open_that_was_refused_by_its_getattr_comes_soon_after_the_walk(
    retries: PathRetries, clock: Clock
) -> None:
    retries.error_for(TID, "getattr", 5)
    assert not retries.takes_anew(TID, "open", 5)
    retries.looked_up(TID, 6)
    assert retries.takes_anew(TID, "open", 6)
    clock.now_s = limits.PATH_WALKED_S
    assert not retries.takes_anew(TID, "open", 6)


def test_a_walk_that_ends_at_a_missing_name_gives_the_next_open_nothing(
    retries: PathRetries,
) -> None:
    retries.error_for(TID, "open", 5)
    retries.looked_up(TID, 0)
    assert not retries.takes_anew(TID, "open", 5)


def test_what_no_name_leads_to_is_come_back_to_at_once(retries: PathRetries) -> None:
    retries.error_for(TID, "open", 5)
    assert retries.takes_anew(TID, "open", 5)
    assert not retries.takes_anew(TID, "open", 6)


def test_a_try_that_comes_late_is_none(retries: PathRetries, clock: Clock) -> None:
    retries.error_for(TID, "open", 5)
    clock.now_s = limits.PATH_RETRY_S
    assert not retries.takes_anew(TID, "open", 5)
    assert retries.error_for(TID, "open", 5) == errno.ESTALE


def test_what_no_name_leads_to_is_missing_the_second_time(retries: PathRetries) -> None:
    assert retries.error_for(TID, "getattr", 5) == errno.ESTALE
    assert retries.error_for(TID, "getattr", 5) == errno.ENOENT
    assert retries.error_for(TID, "getattr", 5) == errno.ESTALE
    assert retries.error_for(TID, "getattr", 6) == errno.ESTALE
    assert retries.error_for(TID, "lookup", 6) == errno.ESTALE
    assert retries.error_for(OTHER, "lookup", 6) == errno.ESTALE
    assert retries.error_for(TID, "lookup", 6) == errno.ENOENT


def test_what_is_gone_again_at_the_end_of_its_walk_is_missing(
    retries: PathRetries, clock: Clock
) -> None:
    retries.error_for(TID, "getattr", 5)
    retries.looked_up(TID, 6)
    assert retries.error_for(TID, "getattr", 6) == errno.ENOENT
    retries.error_for(TID, "getattr", 5)
    retries.looked_up(TID, 6)
    clock.now_s = limits.PATH_WALKED_S
    assert retries.error_for(TID, "getattr", 6) == errno.ESTALE


def test_the_threads_are_bounded(retries: PathRetries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATH_RETRIES_MAX", 1)
    retries.error_for(TID, "open", 5)
    retries.error_for(OTHER, "open", 5)
    assert not retries.takes_anew(TID, "open", 5)
    assert retries.takes_anew(OTHER, "open", 5)
