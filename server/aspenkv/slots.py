"""Slots: what makes a commit that is sent again happen once (RFC 8881 §2.10.6). Pure.

Each commit of a client session uses a slot, and the answer to the last one is kept, so that its
repetition is answered alike. An answer that says "nothing was done" is kept in memory only: after
the server's process has ended, none of its requests is still under way that could be carried out
late, and so contradict it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from aspenkv.contract import CommitResult, SlotUse
from aspenkv.errors import AspenKvError, InvalidRequestError, StaleSequenceError
from aspenkv.limits import SEQUENCE_MAX, SLOTS_MAX

Answer = CommitResult | AspenKvError


class Step(Enum):
    """What to do with a commit whose answer is not known."""

    EXECUTE = "execute"
    WAIT = "wait"


class _Slot:
    """The newest commit of a slot: running, answered, or given up by the server."""

    __slots__ = ("answer", "is_running", "sequence")

    def __init__(self) -> None:
        self.sequence = 0
        self.answer: Answer | None = None
        self.is_running = False


class SlotTable:
    """The slots of one session, made as they are used."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        """Start with no slot used."""
        self._slots: dict[int, _Slot] = {}

    def __iter__(self) -> Iterator[int]:
        """Iterate over the slots that were used."""
        return iter(self._slots)

    def load(self, use: SlotUse, revision: int) -> None:
        """Take over what a commit of an earlier process stored."""
        slot = self._slots.setdefault(use.slot, _Slot())
        slot.sequence = use.sequence
        slot.answer = CommitResult(revision, None)

    def begin(self, use: SlotUse) -> Answer | Step:
        """Return the answer that this commit got; or EXECUTE, and then end it; or WAIT.

        WAIT is until the commit that runs in the slot has ended: this very one, or one that the
        client has given up, which must not be carried out after this.

        Raises:
            InvalidRequestError: there is no such slot or sequence.
            StaleSequenceError: the slot has moved on.
        """
        if not (0 <= use.slot < SLOTS_MAX and 0 < use.sequence <= SEQUENCE_MAX):
            raise InvalidRequestError(
                f"slot {use.slot}, sequence {use.sequence}: slots count from 0 to {SLOTS_MAX - 1}, "
                f"sequences from 1"
            )
        slot = self._slots.get(use.slot)
        if slot is None:
            slot = self._slots[use.slot] = _Slot()
        elif use.sequence < slot.sequence:
            raise StaleSequenceError(
                f"sequence {use.sequence} of slot {use.slot} came after {slot.sequence}"
            )
        elif slot.is_running:
            return Step.WAIT
        elif use.sequence == slot.sequence and slot.answer is not None:
            return slot.answer
        slot.sequence = use.sequence
        slot.answer = None
        slot.is_running = True
        return Step.EXECUTE

    def finish(self, use: SlotUse, answer: Answer | None) -> None:
        """End a commit that :meth:`begin` let run. None: it did nothing, and may come again."""
        slot = self._slots[use.slot]
        assert slot.is_running, "a commit ends once"
        assert slot.sequence == use.sequence, "one commit at a time runs in a slot"
        slot.answer = answer
        slot.is_running = False
