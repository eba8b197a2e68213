"""The rules of a slot, and what a client that repeats itself at will can never bring about."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule

from aspenkv import limits
from aspenkv.contract import CommitResult, SlotUse
from aspenkv.errors import InvalidRequestError, LeaseNotFoundError, StaleSequenceError
from aspenkv.slots import SlotTable, Step

DONE = CommitResult(7, None)


def use(sequence: int, slot: int = 0) -> SlotUse:
    return SlotUse(slot, sequence)


@pytest.fixture
def slots() -> SlotTable:
    """Sequence 5 of slot 0 was carried out."""
    slots = SlotTable()
    assert slots.begin(use(5)) is Step.EXECUTE
    slots.finish(use(5), DONE)
    return slots


def test_a_repetition_gets_the_first_answer(slots: SlotTable) -> None:
    assert slots.begin(use(5)) is DONE
    assert slots.begin(use(5)) is DONE


def test_an_error_is_an_answer_too(slots: SlotTable) -> None:
    error = LeaseNotFoundError("gone")
    assert slots.begin(use(6)) is Step.EXECUTE
    slots.finish(use(6), error)
    assert slots.begin(use(6)) is error


def test_what_the_client_gave_up_is_refused(slots: SlotTable) -> None:
    with pytest.raises(StaleSequenceError):
        slots.begin(use(4))


def test_sequences_may_be_left_out(slots: SlotTable) -> None:
    assert slots.begin(use(limits.SEQUENCE_MAX)) is Step.EXECUTE


def test_all_wait_for_what_runs(slots: SlotTable) -> None:
    slots.begin(use(6))
    assert slots.begin(use(6)) is Step.WAIT
    assert slots.begin(use(7)) is Step.WAIT
    with pytest.raises(StaleSequenceError):
        slots.begin(use(5))
    slots.finish(use(6), DONE)
    assert slots.begin(use(7)) is Step.EXECUTE
    with pytest.raises(StaleSequenceError):
        slots.begin(use(6))


def test_what_did_nothing_may_come_again_but_nothing_older(slots: SlotTable) -> None:
    slots.begin(use(7))
    slots.finish(use(7), None)
    for sequence in (5, 6):
        with pytest.raises(StaleSequenceError):
            slots.begin(use(sequence))
    assert slots.begin(use(7)) is Step.EXECUTE


def test_slots_have_nothing_to_do_with_each_other(slots: SlotTable) -> None:
    assert slots.begin(use(1, 1)) is Step.EXECUTE
    assert slots.begin(use(1, limits.SLOTS_MAX - 1)) is Step.EXECUTE
    assert set(slots) == {0, 1, limits.SLOTS_MAX - 1}


def test_what_was_stored_is_an_answer() -> None:
    slots = SlotTable()
    slots.load(use(5, 3), 7)
    assert slots.begin(use(5, 3)) == DONE
    with pytest.raises(StaleSequenceError):
        slots.begin(use(4, 3))
    assert slots.begin(use(6, 3)) is Step.EXECUTE


@pytest.mark.parametrize(
    ("slot", "sequence"),
    [(-1, 1), (limits.SLOTS_MAX, 1), (0, 0), (0, -1), (0, limits.SEQUENCE_MAX + 1)],
)
def test_there_are_bounds(slot: int, sequence: int) -> None:
    slots = SlotTable()
    with pytest.raises(InvalidRequestError):
        slots.begin(SlotUse(slot, sequence))
    assert list(slots) == []


class Repetitions(RuleBasedStateMachine):
    """Requests come once, twice, late or never; each runs for a while, and may come to nothing."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotTable()
        self.answers: dict[SlotUse, CommitResult] = {}
        self.newest: dict[int, int] = {}
        self.executing: set[int] = set()
        self.revision = 0

    @rule(
        target=running,
        request=st.builds(SlotUse, st.integers(0, 2), st.integers(1, 6)),
    )
    def arrive(self, request: SlotUse) -> SlotUse | None:
        try:
            step = self.slots.begin(request)
        except StaleSequenceError:
            assert request.sequence < self.newest[request.slot]
            return None
        assert request.sequence >= self.newest.get(request.slot, 0)
        if step is Step.WAIT:
            assert request.slot in self.executing
            return None
        assert request.slot not in self.executing
        if step is Step.EXECUTE:
            assert request not in self.answers, "carried out twice"
            self.newest[request.slot] = request.sequence
            self.executing.add(request.slot)
            return request
        assert step == self.answers[request]
        return None

    @rule(request=consumes(running), is_done=st.booleans())
    def end(self, request: SlotUse | None, is_done: bool) -> None:
        if request is None:
            return
        self.executing.remove(request.slot)
        answer = None
        if is_done:
            self.revision += 1
            answer = self.answers[request] = CommitResult(self.revision, None)
        self.slots.finish(request, answer)


TestRepetitions = Repetitions.TestCase
