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


def test_the_try_after_estale_is_known_to_be_one(retries: PathRetries) -> None:
    assert not retries.takes_anew(TID, "open")
    assert retries.error_for(TID, "open", 5) == errno.ESTALE
    assert not retries.takes_anew(OTHER, "open")
    assert not retries.takes_anew(TID, "opendir")
    assert retries.takes_anew(TID, "open")
    retries.succeeded(TID)
    assert not retries.takes_anew(TID, "open")


def test_a_try_that_comes_late_is_none(retries: PathRetries, clock: Clock) -> None:
    retries.error_for(TID, "open", 5)
    clock.now_s = limits.PATH_RETRY_S
    assert not retries.takes_anew(TID, "open")
    assert retries.error_for(TID, "open", 5) == errno.ESTALE


def test_what_no_name_leads_to_is_missing_the_second_time(retries: PathRetries) -> None:
    assert retries.error_for(TID, "getattr", 5) == errno.ESTALE
    assert retries.error_for(TID, "getattr", 5) == errno.ENOENT
    assert retries.error_for(TID, "getattr", 5) == errno.ESTALE
    assert retries.error_for(TID, "getattr", 6) == errno.ESTALE
    assert retries.error_for(TID, "lookup", 6) == errno.ESTALE
    assert retries.error_for(OTHER, "lookup", 6) == errno.ESTALE
    assert retries.error_for(TID, "lookup", 6) == errno.ENOENT


def test_the_threads_are_bounded(retries: PathRetries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATH_RETRIES_MAX", 1)
    retries.error_for(TID, "open", 5)
    retries.error_for(OTHER, "open", 5)
    assert not retries.takes_anew(TID, "open")
    assert retries.takes_anew(OTHER, "open")
