"""Dirty bytes against the plainest model there is: a dictionary of single bytes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aspenfs import limits
from aspenfs.extents import Buffer, Extents, overlay

CHUNK = 16
FILE_BYTES = 6 * CHUNK

offsets = st.integers(0, FILE_BYTES)
payloads = st.binary(min_size=0, max_size=2 * CHUNK)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", CHUNK)


def written(*writes: tuple[int, Buffer]) -> Extents:
    held = Extents()
    for offset, data in writes:
        held.write(offset, data)
    return held


def parts(held: Extents) -> list[tuple[int, bytes]]:
    return [(offset, bytes(data)) for offset, data in held]


def bytes_by_offset(found: Iterable[tuple[int, Buffer]]) -> dict[int, int]:
    return {offset + i: byte for offset, data in found for i, byte in enumerate(bytes(data))}


def test_nothing_is_held_at_first() -> None:
    held = Extents()
    assert not held
    assert (held.end, held.byte_count, parts(held)) == (0, 0, [])
    assert parts(held.take(100, 10, whole_chunks=False)) == []


def test_writing_nothing_holds_nothing() -> None:
    assert not written((5, b""))


def test_neighbours_are_joined_up_to_a_chunk() -> None:
    held = written(*((offset, b"x") for offset in range(CHUNK + 1)))
    assert parts(held) == [(0, b"x" * CHUNK), (CHUNK, b"x")]


def test_a_large_neighbour_is_not_copied() -> None:
    large = b"l" * CHUNK
    held = written((0, b"s"), (1, large))
    assert [data for _, data in held][1] is large


@pytest.mark.parametrize(
    ("offset", "data", "expected"),
    [
        (0, b"NEW", [(0, b"NEW"), (4, b"old"), (10, b"end")]),
        (2, b"NEW", [(2, b"NEW"), (5, b"ld"), (10, b"end")]),
        (5, b"N", [(4, b"o"), (5, b"N"), (6, b"d"), (10, b"end")]),
        (5, b"NEW", [(4, b"o"), (5, b"NEW"), (10, b"end")]),
        (7, b"N", [(4, b"old"), (7, b"N"), (10, b"end")]),
        (4, b"NEW", [(4, b"NEW"), (10, b"end")]),
        (0, b"N" * 20, [(0, b"N" * 20)]),
        (6, b"NEW-N", [(4, b"ol"), (6, b"NEW-N"), (11, b"nd")]),
    ],
)
def test_the_newest_write_wins(offset: int, data: bytes, expected: list[tuple[int, bytes]]) -> None:
    held = written((4, b"old"), (10, b"end"), (offset, data))
    assert parts(held) == expected
    assert held.byte_count == sum(len(part) for _, part in expected)


def test_what_is_held_of_a_range_is_copied_out() -> None:
    held = written((4, b"abcd"), (10, b"xyz"))
    assert held.within(0, 20) == [(4, b"abcd"), (10, b"xyz")]
    assert held.within(5, 11) == [(5, b"bcd"), (10, b"x")]
    assert held.within(8, 10) == []
    assert Extents().within(0, 10) == []


def test_a_batch_has_no_more_parts_than_asked_for() -> None:
    held = written(*((10 * index, b"x") for index in range(5)))
    assert parts(held.take(100, 3, whole_chunks=False)) == [(0, b"x"), (10, b"x"), (20, b"x")]
    assert parts(held) == [(30, b"x"), (40, b"x")]


def test_a_batch_that_stops_in_a_run_stops_at_a_chunk_border() -> None:
    data = bytes(range(3 * CHUNK))
    held = written((0, data))
    assert parts(held.take(2 * CHUNK + 5, 10, whole_chunks=False)) == [(0, data[: 2 * CHUNK])]
    assert parts(held) == [
        (2 * CHUNK, data[2 * CHUNK : 2 * CHUNK + 5]),
        (2 * CHUNK + 5, data[2 * CHUNK + 5 :]),
    ]


def test_a_batch_within_one_chunk_stops_where_it_must() -> None:
    held = written((3, b"abcdef"))
    assert parts(held.take(4, 10, whole_chunks=False)) == [(3, b"abcd")]
    assert parts(held) == [(7, b"ef")]


def test_whole_chunks_leaves_the_unfinished_one() -> None:
    data = bytes(range(CHUNK + 4))
    held = written((0, data))
    assert parts(held.take(1000, 10, whole_chunks=True)) == [(0, data[:CHUNK])]
    assert parts(held) == [(CHUNK, data[CHUNK:])]
    assert parts(held.take(1000, 10, whole_chunks=True)) == []
    assert parts(held) == [(CHUNK, data[CHUNK:])]


def test_whole_chunks_takes_what_ends_at_a_border() -> None:
    held = written((CHUNK - 2, b"ab"))
    assert parts(held.take(1000, 10, whole_chunks=True)) == [(CHUNK - 2, b"ab")]


def test_a_batch_is_not_changed_by_later_writes() -> None:
    held = written((0, b"a"), (1, b"b"))  # joined, so in a buffer of its own
    batch = held.take(100, 10, whole_chunks=False)
    held.write(0, b"ZZZ")
    assert parts(batch) == [(0, b"ab")]


def test_the_rest_of_a_cut_part_is_not_written_into() -> None:
    data = b"0123456789"
    held = written((0, data))
    batch = held.take(4, 10, whole_chunks=False)
    held.write(10, b"+")
    assert parts(batch) == [(0, b"0123")]
    assert parts(held) == [(4, b"456789+")]
    assert data == b"0123456789"


def test_an_older_batch_goes_under_newer_bytes() -> None:
    batch = written((0, b"older"), (8, b"older"))
    assert parts(batch.under(written((3, b"NEW"), (20, b"N")))) == [
        (0, b"old"),
        (3, b"NEW"),
        (8, b"older"),
        (20, b"N"),
    ]


def test_what_comes_back_is_not_written_into() -> None:
    held = written((0, b"a"), (1, b"b"))  # joined, so in a buffer of its own
    batch = held.take(100, 10, whole_chunks=False)
    handed_out = [data for _, data in batch]
    held.write(2, b"c")
    assert parts(batch.under(held)) == [(0, b"abc")]
    assert [bytes(data) for data in handed_out] == [b"ab"]


def test_overlay_copies_into_place() -> None:
    buffer = bytearray(b"..........")
    overlay(buffer, 100, [(101, b"ab"), (108, b"yz"), (102, b"B")])
    assert buffer == b".aB.....yz"


class DirtyBytes(RuleBasedStateMachine):
    """Writes, batches and batches that come back, in any order.

    ``handed_out`` keeps each batch with a copy of it, so that a change of it shows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = Extents()
        self.model: dict[int, int] = {}
        self.batch: Extents | None = None
        self.handed_out: list[tuple[list[tuple[int, Buffer]], list[tuple[int, bytes]]]] = []
        self.sources: list[tuple[bytes, bytes]] = []

    def _hold(self, offset: int, data: bytes) -> None:
        self.model.update(bytes_by_offset([(offset, data)]))

    @rule(offset=offsets, data=payloads)
    def write(self, offset: int, data: bytes) -> None:
        self.held.write(offset, data)
        self.sources.append((data, bytes(bytearray(data))))
        self._hold(offset, data)

    @rule(offset=offsets, data=payloads)
    def write_a_view(self, offset: int, data: bytes) -> None:
        self.held.write(offset, memoryview(data))
        self._hold(offset, data)

    @rule(data=payloads)
    def write_at_the_end(self, data: bytes) -> None:
        end = self.held.end
        self.held.write(end, data)
        self._hold(end, data)

    @precondition(lambda self: self.batch)
    @rule(data=payloads)
    def write_behind_the_batch(self, data: bytes) -> None:
        """What comes back is joined to this."""
        assert self.batch is not None
        self.write(self.batch.end, data)

    @rule(
        bytes_max=st.integers(1, 3 * CHUNK), parts_max=st.integers(1, 5), whole_chunks=st.booleans()
    )
    def take(self, bytes_max: int, parts_max: int, whole_chunks: bool) -> None:
        before = dict(self.model)
        batch = self.held.take(bytes_max, parts_max, whole_chunks=whole_chunks)
        taken = bytes_by_offset(batch)
        assert batch.byte_count == len(taken) <= bytes_max
        assert len(list(batch)) <= parts_max
        assert all(before[offset] == byte for offset, byte in taken.items())
        rest = before.keys() - taken.keys()
        if taken and rest:
            assert max(taken) < min(rest), "a batch is taken from the front"
        if not whole_chunks:
            assert bool(taken) == bool(before), "a batch always gets on"
        if taken and batch.end in rest:
            within_one_chunk = min(taken) // CHUNK == (batch.end - 1) // CHUNK
            assert batch.end % CHUNK == 0 or (within_one_chunk and not whole_chunks)
        elif taken and whole_chunks:
            assert batch.end % CHUNK == 0 or batch.end // CHUNK < max(before) // CHUNK
        self.model = {offset: before[offset] for offset in rest}
        self.handed_out.append((list(batch), parts(batch)))
        self.batch = batch

    @precondition(lambda self: self.batch is not None)
    @rule()
    def put_back(self) -> None:
        assert self.batch is not None
        older = bytes_by_offset(self.batch)
        self.held = self.batch.under(self.held)
        self.batch = None
        self.model = older | self.model

    @rule(start=offsets, length=st.integers(0, FILE_BYTES))
    def look(self, start: int, length: int) -> None:
        found = self.held.within(start, start + length)
        expected = {o: b for o, b in self.model.items() if start <= o < start + length}
        assert bytes_by_offset(found) == expected

    @invariant()
    def holds_every_byte_once_and_in_order(self) -> None:
        assert bytes_by_offset(self.held) == self.model
        assert self.held.byte_count == len(self.model)
        assert bool(self.held) == bool(self.model)
        assert self.held.end == max(self.model, default=-1) + 1
        ends = 0
        for offset, data in self.held:
            assert offset >= ends
            assert data
            ends = offset + len(data)

    @invariant()
    def nothing_handed_out_or_in_is_changed(self) -> None:
        for handed_out, copy in self.handed_out:
            assert [(offset, bytes(data)) for offset, data in handed_out] == copy
        for given, copy_of_it in self.sources:
            assert given == copy_of_it


TestDirtyBytes = DirtyBytes.TestCase
