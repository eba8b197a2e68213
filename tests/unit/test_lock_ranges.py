"""The arithmetic of locks against a map that says of each byte what each owner has there."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenfs.lock_ranges import (
    clipped,
    conflict,
    in_the_way,
    is_deadlock,
    locked,
    strengthens,
    taken_back,
    unlocked,
    weakens,
)
from aspenfs.lock_records import OFFSET_MAX, FileLock, LockOwner
from aspenfs.types import SessionId

BYTES = 12
OWNERS = tuple(
    LockOwner(SessionId(session), is_flock, number)
    for session in (1, 2)
    for is_flock in (False, True)
    for number in (1, 2)
)

ByteMap = dict[tuple[LockOwner, int], bool]
"""Whether what an owner has on a byte is exclusive; not there: nothing."""


@st.composite
def requests(draw: st.DrawFn) -> FileLock:
    start, end = sorted(draw(st.tuples(st.integers(0, BYTES - 1), st.integers(0, BYTES - 1))))
    return FileLock(draw(st.sampled_from(OWNERS)), draw(st.booleans()), start, end, 1)


@st.composite
def histories(draw: st.DrawFn) -> tuple[tuple[FileLock, ...], ByteMap]:
    """Return locks that could be held together, and the map of them."""
    locks: tuple[FileLock, ...] = ()
    model: ByteMap = {}
    for request in draw(st.lists(requests(), max_size=12)):
        if draw(st.integers(0, 3)) == 0:
            locks = unlocked(locks, request.owner, request.start, request.end)
            apply(model, request, None)
        elif not in_the_way(locks, request):
            locks = locked(locks, request)
            apply(model, request, request.is_write)
    return locks, model


def apply(model: ByteMap, request: FileLock, is_write: bool | None) -> None:
    for at in range(request.start, request.end + 1):
        model.pop((request.owner, at), None)
        if is_write is not None:
            model[request.owner, at] = is_write


def mapped(locks: Iterable[FileLock]) -> ByteMap:
    model: ByteMap = {}
    for lock in locks:
        for at in range(lock.start, lock.end + 1):
            assert (lock.owner, at) not in model, "two locks of one owner on one byte"
            model[lock.owner, at] = lock.is_write
    return model


def assert_merged(locks: Iterable[FileLock]) -> None:
    ends = {(lock.owner, lock.is_write, lock.end + 1) for lock in locks}
    starts = {(lock.owner, lock.is_write, lock.start) for lock in locks}
    assert not ends & starts, "what touches is one lock"


def had(model: ByteMap, request: FileLock) -> list[bool | None]:
    return [model.get((request.owner, at)) for at in range(request.start, request.end + 1)]


@given(histories())
def test_locks_are_what_each_byte_says(history: tuple[tuple[FileLock, ...], ByteMap]) -> None:
    locks, model = history
    assert mapped(locks) == model
    assert_merged(locks)


@given(histories(), requests())
def test_what_is_in_the_way_is_what_another_has_on_one_of_the_bytes(
    history: tuple[tuple[FileLock, ...], ByteMap], request: FileLock
) -> None:
    locks, model = history
    blocked = {
        (owner, at)
        for (owner, at), is_write in model.items()
        if request.start <= at <= request.end
        and owner != request.owner
        and owner.is_flock == request.owner.is_flock
        and (is_write or request.is_write)
    }
    found = in_the_way(locks, request)
    assert blocked <= mapped(found).keys()
    assert all(conflict(lock, request) and conflict(request, lock) for lock in found)
    assert bool(found) == bool(blocked)


@given(histories(), requests())
def test_what_a_request_changes(
    history: tuple[tuple[FileLock, ...], ByteMap], request: FileLock
) -> None:
    locks, model = history
    before = had(model, request)
    assert weakens(locks, request) == (not request.is_write and True in before)
    assert strengthens(locks, request) == any(
        each is None or (request.is_write and not each) for each in before
    )
    within = mapped(clipped(locks, request.owner, request.start, request.end))
    assert within == {
        (owner, at): is_write
        for (owner, at), is_write in model.items()
        if owner == request.owner and request.start <= at <= request.end
    }


@given(histories(), requests())
def test_a_grant_that_is_taken_back_leaves_no_more_than_before_or_than_granted(
    history: tuple[tuple[FileLock, ...], ByteMap], request: FileLock
) -> None:
    locks, model = history
    own = clipped(locks, request.owner, request.start, request.end)
    after = taken_back(locked(locks, request), request, own)
    assert_merged(after)
    expected = dict(model)
    for at in range(request.start, request.end + 1):
        if (request.owner, at) in expected:
            expected[request.owner, at] &= request.is_write
    assert mapped(after) == expected


def test_a_lock_to_the_end_of_the_file_is_cut_and_merged() -> None:
    whole = FileLock(OWNERS[0], True, 0, OFFSET_MAX, 1)
    parts = unlocked((whole,), OWNERS[0], 5, 5)
    assert parts == (whole._replace(end=4), whole._replace(start=6))
    assert locked(parts, whole._replace(start=5, end=5)) == (whole,)


@pytest.mark.parametrize(
    ("waits_for", "expected"),
    [
        ({}, False),
        ({1: [1]}, True),
        ({1: [2], 2: [3]}, False),
        ({1: [2], 2: [3], 3: [1]}, True),
        ({1: [2], 2: [3], 3: [2]}, False),
        ({1: [2, 3], 2: [4], 3: [4], 4: [1]}, True),
    ],
)
def test_a_circle_is_a_deadlock_for_those_in_it(
    waits_for: dict[int, list[int]], expected: bool
) -> None:
    assert is_deadlock(lambda owner: waits_for.get(owner, ()), 1) == expected
