"""The client's slots: one commit each, sequences that only rise, and no slot that leaks."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs.limits import KV_SLOTS_MAX, POOL_WAITING_MAX
from aspenfs.slots import Slots
from aspenkv.contract import SlotUse
from aspenkv.errors import BusyError, UnavailableError

SOON_S = 30.0


def slots_of(count: int) -> Slots:
    slots = Slots()
    slots.resize(count)
    return slots


async def hold(slots: Slots, uses: list[SlotUse], until: trio.Event) -> None:
    async with slots.take(trio.current_time() + SOON_S) as use:
        uses.append(use)
        await until.wait()


async def used(slots: Slots) -> SlotUse:
    async with slots.take(trio.current_time() + SOON_S) as use:
        return use


async def test_there_is_one_slot_before_any_server_has_said_how_many() -> None:
    slots = Slots()
    async with slots.take(trio.current_time()) as use:
        assert use == SlotUse(0, 1)
        assert slots.in_use == 1
        with pytest.raises(UnavailableError):
            await used_at_once(slots)
    assert slots.in_use == 0


async def used_at_once(slots: Slots) -> SlotUse:
    async with slots.take(trio.current_time()) as use:
        return use


async def test_each_use_of_a_slot_has_the_next_sequence_and_low_slots_come_first() -> None:
    slots = slots_of(3)
    assert [await used(slots) for _ in range(3)] == [SlotUse(0, each) for each in (1, 2, 3)]
    async with slots.take(trio.current_time()):
        assert await used(slots) == SlotUse(1, 1)
    assert await used(slots) == SlotUse(0, 5)


async def test_a_commit_that_fails_or_is_cancelled_leaves_the_next_sequence() -> None:
    slots = slots_of(1)
    with pytest.raises(LookupError):
        async with slots.take(trio.current_time()):
            raise LookupError
    with trio.CancelScope() as scope:
        async with slots.take(trio.current_time()):
            scope.cancel()
            await trio.sleep_forever()
    assert await used(slots) == SlotUse(0, 3)


async def test_who_waits_gets_a_slot_in_the_order_of_asking() -> None:
    slots = slots_of(1)
    uses: list[SlotUse] = []
    gates = [trio.Event() for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for gate in gates:
            nursery.start_soon(hold, slots, uses, gate)
            await wait_all_tasks_blocked()
        for number, gate in enumerate(gates, 1):
            assert uses[-1] == SlotUse(0, number)
            gate.set()
            await wait_all_tasks_blocked()


async def test_who_asks_late_does_not_overtake() -> None:
    slots = slots_of(1)
    uses: list[SlotUse] = []
    gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, slots, uses, gate)
        await wait_all_tasks_blocked()
        nursery.start_soon(hold, slots, uses, gate)
        await wait_all_tasks_blocked()
        gate.set()  # the first gives its slot to the second before this task asks
        await trio.lowlevel.checkpoint()
        assert (await used(slots)).sequence == 3


async def test_waiting_ends_with_its_time(autojump_clock: MockClock) -> None:
    slots = slots_of(1)
    async with slots.take(trio.current_time()):
        with pytest.raises(UnavailableError):
            await used(slots)
        assert autojump_clock.current_time() == SOON_S
    assert await used(slots) == SlotUse(0, 2), "who gave up used no sequence"


async def test_a_cancelled_wait_is_forgotten() -> None:
    slots = slots_of(1)
    async with slots.take(trio.current_time()):
        with trio.move_on_after(0):
            await used(slots)
    assert await used(slots) == SlotUse(0, 2)


async def test_a_slot_given_in_the_moment_of_cancellation_is_given_on() -> None:
    slots = slots_of(1)
    uses: list[SlotUse] = []
    gate = trio.Event()
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as cancelled, slots.take(trio.current_time()):
                cancelled.start_soon(hold, slots, uses, gate)
                await wait_all_tasks_blocked()
                nursery.start_soon(hold, slots, uses, gate)
                await wait_all_tasks_blocked()
                scope.cancel()  # and the slot goes to the cancelled task before that has run
        await wait_all_tasks_blocked()
        assert uses == [SlotUse(0, 2)]
        gate.set()
    assert slots.in_use == 0


async def test_too_many_waiting_commits_are_busy() -> None:
    slots = slots_of(1)
    async with slots.take(trio.current_time()), trio.open_nursery() as nursery:
        for _ in range(POOL_WAITING_MAX):
            nursery.start_soon(hold, slots, [], trio.Event())
        await wait_all_tasks_blocked()
        with pytest.raises(BusyError):
            await used(slots)
        nursery.cancel_scope.cancel()


async def test_more_slots_let_those_that_wait_go_on() -> None:
    slots = slots_of(1)
    uses: list[SlotUse] = []
    gate = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold, slots, uses, gate)
        await wait_all_tasks_blocked()
        assert len(uses) == 1
        slots.resize(3)
        await wait_all_tasks_blocked()
        assert {use.slot for use in uses} == {0, 1, 2}
        gate.set()


async def test_fewer_slots_are_no_longer_used_and_their_sequences_go_on_later() -> None:
    slots = slots_of(2)
    async with slots.take(trio.current_time()), slots.take(trio.current_time()) as high:
        assert high == SlotUse(1, 1)
        slots.resize(1)
    assert await used(slots) == SlotUse(0, 2)
    async with slots.take(trio.current_time()):
        with pytest.raises(UnavailableError):
            await used_at_once(slots)
        slots.resize(2)
        assert await used(slots) == SlotUse(1, 2)


async def test_the_number_of_slots_is_bounded_both_ways() -> None:
    slots = slots_of(0)
    assert (await used(slots)).slot == 0
    slots = slots_of(10**6)
    async with trio.open_nursery() as nursery:
        for _ in range(KV_SLOTS_MAX + 1):
            nursery.start_soon(hold, slots, [], trio.Event())
        await wait_all_tasks_blocked()
        assert slots.in_use == KV_SLOTS_MAX
        nursery.cancel_scope.cancel()
