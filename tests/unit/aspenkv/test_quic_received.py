"""Streams that arrive in pieces: however many a peer makes, they cost little, and end in time."""

from __future__ import annotations

import pytest
from aioquic.quic.connection import QuicConnectionError
from aioquic.quic.rangeset import RangeSet
from hypothesis import given
from hypothesis import strategies as st

from aspenkv.quic.received import ReceivedRanges

RANGES = st.tuples(st.integers(0, 40), st.integers(1, 10))


@given(st.lists(RANGES | st.none()))
def test_they_are_as_aioquic_has_them(steps: list[tuple[int, int] | None]) -> None:
    ours, theirs = ReceivedRanges(100), RangeSet()
    for step in steps:
        if step is not None:
            start, size = step
            ours.add(start, start + size)
            theirs.add(start, start + size)
        elif len(theirs):
            assert ours.shift() == theirs.shift()
        assert [ours[index] for index in range(len(ours))] == list(theirs)
    with pytest.raises(IndexError):
        ours[len(ours)]


def test_there_are_never_too_many() -> None:
    ranges = ReceivedRanges(2)
    ranges.add(0, 1)
    ranges.add(4, 5)
    with pytest.raises(QuicConnectionError):
        ranges.add(2, 3)
    ranges.add(1, 4)
    assert len(ranges) == 1
