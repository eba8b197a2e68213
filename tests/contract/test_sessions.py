"""Client sessions: commits that come again, connections that come and go, and their bounds."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenkv import limits
from aspenkv.contract import ABSENT, Add, CommitResult, Op, Put, RevisionIs, SlotUse
from aspenkv.errors import (
    BusyError,
    ClosedError,
    EngineError,
    InvalidRequestError,
    LeaseNotFoundError,
    StaleSequenceError,
    TooManyError,
)
from aspenkv.service import RemoteSession, Service
from tests.contract.clients import READER, A, enter, join, make_ticket

OpenServer = Callable[[], AbstractAsyncContextManager[Service]]

ID = b"N" * 16
COUNT = b"fs:a:count"
ONE_MORE: list[Op] = [Add(COUNT, 1)]
LARGE_MORE: list[Op] = [Add(COUNT, 1), Put(b"fs:a:large", bytes(200_000))]
"""As ``ONE_MORE``, but the engine works on it in a thread."""


async def count(service: Service) -> int:
    (found,) = await service.connect().get([COUNT])
    return 0 if found is None else int.from_bytes(found.value, "little")


async def records(service: Service, prefix: bytes) -> int:
    return len(await service.store.server_records(prefix))


# --- slots


@pytest.mark.parametrize("ops", [ONE_MORE, LARGE_MORE], ids=["inline", "thread"])
async def test_a_commit_that_comes_again_is_done_once(service: Service, ops: list[Op]) -> None:
    ticket = await make_ticket(service)
    first, second = [await enter(service, ticket, ID) for _ in range(2)]
    await service.connect().commit([], [Put(b"other", b"")])
    for connection in (first, first, second):
        assert await connection.commit([], ops, SlotUse(0, 1)) == (2, None)
    assert await count(service) == 1
    assert await second.commit([], ops, SlotUse(1, 1)) == (3, None)
    assert await second.commit([], ops, SlotUse(0, 2)) == (4, None)
    with pytest.raises(StaleSequenceError):
        await first.commit([], ops, SlotUse(0, 1))
    assert await count(service) == 3


@pytest.mark.parametrize("ops", [ONE_MORE, LARGE_MORE], ids=["inline", "thread"])
async def test_also_after_a_restart(open_server: OpenServer, ops: list[Op]) -> None:
    async with open_server() as service:
        ticket = await make_ticket(service)
        session = await enter(service, ticket, ID)
        assert session.is_new
        for sequence in (1, 2):
            await session.commit([], ops, SlotUse(0, sequence))
        await session.commit([], ops, SlotUse(63, 7))
    for _ in range(2):
        async with open_server() as service:
            session = await enter(service, ticket, ID)
            assert not session.is_new
            assert session.started_revision == 3
            assert await session.commit([], ops, SlotUse(0, 2)) == (2, None)
            assert await session.commit([], ops, SlotUse(63, 7)) == (3, None)
            with pytest.raises(StaleSequenceError):
                await session.commit([], ops, SlotUse(0, 1))
    assert await records_of(open_server) == (1, 2)


async def records_of(open_server: OpenServer) -> tuple[int, int]:
    """Return how many sessions and how many slots a server finds when it starts."""
    async with open_server() as service:
        return await records(service, b"C"), await records(service, b"S")


async def test_a_commit_of_nothing_takes_its_slot_but_is_not_stored(service: Service) -> None:
    session = await join(service)
    assert await session.commit([], [], SlotUse(0, 1)) == (0, None)
    await service.connect().commit([], [Put(b"other", b"")])
    assert await session.commit([], [], SlotUse(0, 1)) == (0, None)
    assert await records(service, b"S") == 0


async def test_a_failed_check_stays_failed(service: Service) -> None:
    """Else the client would be told that nothing was done, and then it would be."""
    session = await join(service)
    key = b"fs:a:key"
    await session.commit([], [Put(key, b"")], SlotUse(1, 1))
    checks = [RevisionIs(key, ABSENT)]
    assert await session.commit(checks, ONE_MORE, SlotUse(0, 1)) == (1, 0)
    await service.connect().commit([], [Put(b"x", b"")])
    assert await session.commit([], ONE_MORE, SlotUse(0, 1)) == (1, 0)
    assert await count(service) == 0
    assert await session.commit([], ONE_MORE, SlotUse(0, 2)) == (3, None)


async def test_a_refusal_stays_one(service: Service) -> None:
    session = await join(service)
    with pytest.raises(LeaseNotFoundError) as first:
        await session.commit([], [*ONE_MORE, Put(b"fs:a:key", b"", 4711)], SlotUse(0, 1))
    with pytest.raises(LeaseNotFoundError) as second:
        await session.commit([], ONE_MORE, SlotUse(0, 1))
    assert str(second.value) == str(first.value)
    with pytest.raises(InvalidRequestError):
        await session.commit([], ONE_MORE, SlotUse(limits.SLOTS_MAX, 1))
    assert await count(service) == 0


async def test_after_the_engine_failed_the_client_must_ask_anew(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await join(service)
    engine = service.store._engine

    def failing(*_: object) -> CommitResult:
        raise EngineError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "commit_nowait", failing)
        with pytest.raises(EngineError):
            await session.commit([], ONE_MORE, SlotUse(0, 1))
    with pytest.raises(EngineError):
        await session.commit([], ONE_MORE, SlotUse(0, 1))
    assert await session.commit([], ONE_MORE, SlotUse(0, 2)) == (1, None)
    assert await count(service) == 1


async def test_repetitions_wait_for_the_answer(service: Service) -> None:
    session = await join(service)
    results: list[CommitResult] = []

    async def commit() -> None:
        results.append(await session.commit([], LARGE_MORE, SlotUse(0, 1)))

    async with trio.open_nursery() as nursery:
        await service.store._committing.acquire()
        for _ in range(3):
            nursery.start_soon(commit)
        await wait_all_tasks_blocked()
        service.store._committing.release()
    assert results == [(1, None)] * 3
    assert await count(service) == 1
    assert not session._session.slot_freed


async def test_newer_commits_wait_and_then_the_newest_wins(service: Service) -> None:
    """The client has given the others up: they are done before it, or not at all."""
    session = await join(service)
    outcomes: dict[int, object] = {}

    async def commit(sequence: int) -> None:
        try:
            outcomes[sequence] = await session.commit([], LARGE_MORE, SlotUse(0, sequence))
        except StaleSequenceError as error:
            outcomes[sequence] = error

    async with trio.open_nursery() as nursery:
        await service.store._committing.acquire()
        for sequence in (1, 3, 2):
            nursery.start_soon(commit, sequence)
            await wait_all_tasks_blocked()
        service.store._committing.release()
    assert outcomes[1] == (1, None)
    assert isinstance(outcomes[3], CommitResult)
    if isinstance(outcomes[2], CommitResult):
        assert outcomes[2].revision < outcomes[3].revision
    done = sum(isinstance(outcome, CommitResult) for outcome in outcomes.values())
    assert await count(service) == done


async def test_a_cancelled_commit_was_done_or_can_come_again(service: Service) -> None:
    """Whatever became of the first, repetition leaves it done once."""
    session = await join(service)
    for sequence in range(1, 31):
        use = SlotUse(0, sequence)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.commit, [], LARGE_MORE, use)
                for _ in range(sequence % 4):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert (await session.commit([], LARGE_MORE, use)).failed_check is None
        assert await count(service) == sequence


async def test_cancelled_while_it_waits_its_turn_nothing_was_done(service: Service) -> None:
    session = await join(service)
    async with trio.open_nursery() as nursery:
        await service.store._committing.acquire()
        nursery.start_soon(session.commit, [], ONE_MORE, SlotUse(0, 1))
        nursery.start_soon(session.commit, [], ONE_MORE, SlotUse(0, 1))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    service.store._committing.release()
    assert await count(service) == 0
    assert await session.commit([], ONE_MORE, SlotUse(0, 1)) == (1, None)


async def test_a_repetition_takes_over_when_the_first_is_cancelled(service: Service) -> None:
    session = await join(service)
    results: list[CommitResult] = []

    async def repeat() -> None:
        results.append(await session.commit([], ONE_MORE, SlotUse(0, 1)))

    async with trio.open_nursery() as nursery:
        await service.store._committing.acquire()
        first = trio.CancelScope()

        async def begin() -> None:
            with first:
                await session.commit([], ONE_MORE, SlotUse(0, 1))

        nursery.start_soon(begin)
        await wait_all_tasks_blocked()
        nursery.start_soon(repeat)
        await wait_all_tasks_blocked()
        first.cancel()
        await wait_all_tasks_blocked()
        service.store._committing.release()
    assert results == [(1, None)]
    assert await count(service) == 1


async def test_a_commit_that_met_the_end_of_the_server_comes_again_to_the_next(
    open_server: OpenServer,
) -> None:
    async with open_server() as service:
        ticket = await make_ticket(service)
        session = await enter(service, ticket, ID)
        service.close()
        with pytest.raises(ClosedError):
            await session.commit([], ONE_MORE, SlotUse(0, 1))
    async with open_server() as service:
        session = await enter(service, ticket, ID)
        assert await session.commit([], ONE_MORE, SlotUse(0, 1)) == (1, None)


async def test_without_a_slot_each_is_a_commit_of_its_own(service: Service) -> None:
    session = await join(service)
    for revision in (1, 2):
        assert await session.commit([], ONE_MORE) == (revision, None)


# --- sessions and their connections


async def test_a_session_is_new_once(open_server: OpenServer) -> None:
    async with open_server() as service:
        ticket = await make_ticket(service)
        first = await enter(service, ticket, ID)
        second = await enter(service, ticket, ID)
        assert [first.is_new, second.is_new] == [True, False]
        assert (await enter(service, ticket)).is_new
        assert first.grant == A
    async with open_server() as service:
        assert not (await enter(service, ticket, ID)).is_new


async def test_who_only_reads_leaves_nothing(service: Service) -> None:
    session = await join(service, READER)
    assert session.is_new
    assert await records(service, b"C") == 0
    session.detach()
    await session.end()
    assert list(service._admission.sessions) == []


async def test_an_end_ends_all_connections_and_forgets_the_slots(open_server: OpenServer) -> None:
    async with open_server() as service:
        ticket = await make_ticket(service)
        first, second = [await enter(service, ticket, ID) for _ in range(2)]
        for slot in range(limits.SLOTS_MAX):
            await first.commit([], ONE_MORE, SlotUse(slot, 1))
        assert await records(service, b"S") == limits.SLOTS_MAX
        await first.end()
        await first.end()
        assert second.ended.is_set()
        with pytest.raises(ClosedError):
            await second.commit([], ONE_MORE, SlotUse(0, 2))
        for each in (first, second):
            each.detach()
        assert await records(service, b"C") == await records(service, b"S") == 0
        again = await enter(service, ticket, ID)
        assert again.is_new
        assert await again.commit([], ONE_MORE, SlotUse(0, 1)) == (65, None)
    assert await records_of(open_server) == (1, 1)


async def test_an_idle_session_ends_after_its_time(
    open_server: OpenServer, mock_clock: MockClock
) -> None:
    async with open_server() as service:
        ticket = await make_ticket(service)
        first, second = [await enter(service, ticket, ID) for _ in range(2)]
        await first.commit([], ONE_MORE, SlotUse(0, 1))
        await pass_time(mock_clock, limits.SESSION_TTL_S)
        first.detach()
        await pass_time(mock_clock, limits.SESSION_TTL_S)
        second.detach()
        await pass_time(mock_clock, limits.SESSION_TTL_S - 1)
        third = await enter(service, ticket, ID)
        assert not third.is_new
        third.detach()
        await pass_time(mock_clock, limits.SESSION_TTL_S - 1)
        assert await records(service, b"C") == 1
    async with open_server() as service:
        await pass_time(mock_clock, limits.SESSION_TTL_S - 1)
        assert await records(service, b"C") == 1
        await pass_time(mock_clock, 1)
        await wait_for(service, lambda: list(service._admission.sessions) == [])
        assert await records(service, b"C") == await records(service, b"S") == 0
        assert (await enter(service, ticket, ID)).is_new


async def pass_time(clock: MockClock, seconds: float) -> None:
    await wait_all_tasks_blocked()
    clock.jump(seconds)
    await wait_all_tasks_blocked()


async def wait_for(service: Service, condition: Callable[[], bool]) -> None:
    """Return when the server has done what it is about to do, in threads, too."""
    while not condition():
        async with service._admission._changing:
            pass
        await trio.lowlevel.checkpoint()


async def test_the_longest_idle_makes_room(
    service: Service, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenkv.sessions.SESSIONS_MAX", 2)
    ticket = await make_ticket(service)
    first, second = await enter(service, ticket, ID), await enter(service, ticket)
    with pytest.raises(BusyError):
        await enter(service, ticket)
    first.detach()
    with pytest.raises(BusyError):
        await enter(service, ticket)
    mock_clock.jump(limits.SESSION_IDLE_S_MIN)
    await enter(service, ticket)
    await second.revision()
    with pytest.raises(ClosedError, match="made room"):
        await first.revision()
    assert await records(service, b"C") == 2


@pytest.mark.logs("sessions that are over could not be removed")
async def test_what_could_not_be_removed_is_removed_by_who_comes_back(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    mock_clock: MockClock,  # noqa: ARG001 - so that nobody tries again in the background
) -> None:
    ticket = await make_ticket(service)
    session = await enter(service, ticket, ID)
    await session.commit([], ONE_MORE, SlotUse(0, 5))
    with monkeypatch.context() as patch:
        patch.setattr(service.store, "write_server_records", failing_write)
        with pytest.raises(EngineError):
            await session.end()
        with pytest.raises(EngineError):
            await enter(service, ticket, ID)
        await wait_all_tasks_blocked()
    again = await enter(service, ticket, ID)
    assert again.is_new
    assert await again.commit([], ONE_MORE, SlotUse(0, 1)) == (2, None)


async def failing_write(_: object) -> None:
    raise EngineError("the disk is gone")


@pytest.mark.logs("sessions that are over could not be removed")
async def test_removal_is_tried_again_after_the_engine_failed(
    service: Service, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    session = await join(service)
    session.detach()
    with monkeypatch.context() as patch:
        patch.setattr(service.store, "write_server_records", failing_write)
        await pass_time(mock_clock, limits.SESSION_TTL_S)
        assert await records(service, b"C") == 1
    await pass_time(mock_clock, limits.SESSION_REMOVAL_RETRY_S)
    await wait_for(service, lambda: list(service._admission.sessions) == [])
    assert await records(service, b"C") == 0


async def test_a_closed_server_takes_nobody_in(service: Service, mock_clock: MockClock) -> None:
    ticket, readers = await make_ticket(service), await make_ticket(service, READER)
    session = await enter(service, ticket)
    service.close()
    for each in (ticket, readers):
        with pytest.raises(ClosedError):
            await enter(service, each)
    calls: list[Callable[[], Awaitable[object]]] = [session.revision, session.sync, session.end]
    for call in calls:
        with pytest.raises(ClosedError):
            await call()
    session.detach()
    await pass_time(mock_clock, limits.SESSION_TTL_S)


async def test_own_commits_are_left_out_on_all_connections(service: Service) -> None:
    ticket = await make_ticket(service)
    first, second = [await enter(service, ticket, ID) for _ in range(2)]
    other = await enter(service, ticket)
    async with first.watch(b"fs:a:", skip_own=True) as others_only, second.watch(b"fs:a:") as all_:
        await second.commit([], ONE_MORE, SlotUse(0, 1))
        await first.commit([], ONE_MORE)
        await other.commit([], ONE_MORE)
        assert (await anext(aiter(others_only))).revision == 3
        assert (await anext(aiter(all_))).revision == 1


# --- bounds


async def test_there_is_a_limit_to_the_watches_of_one_client(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenkv.remote.SESSION_WATCHES_MAX", 2)
    ticket = await make_ticket(service)
    first, second = [await enter(service, ticket, ID) for _ in range(2)]
    async with first.watch(b"fs:a:"), second.watch(b"fs:a:"):
        with pytest.raises(TooManyError):
            async with first.watch(b"fs:a:"):
                pass
        async with (await enter(service, ticket)).watch(b"fs:a:"):
            pass
    async with first.watch(b"fs:a:"), first.watch(b"fs:a:"):
        assert len(first._session.watches) == 2
    assert len(first._session.watches) == 0


async def test_there_is_a_limit_to_the_connections_of_one_client(service: Service) -> None:
    ticket = await make_ticket(service)
    sessions = [await enter(service, ticket, ID) for _ in range(limits.SESSION_CONNECTIONS_MAX)]
    with pytest.raises(TooManyError):
        await enter(service, ticket, ID)
    await enter(service, ticket)
    sessions[0].detach()
    await enter(service, ticket, ID)


def busy(session: RemoteSession, size_bytes: int = 0) -> bool:
    try:
        with session.request(size_bytes):
            return False
    except BusyError:
        return True


async def test_there_is_a_limit_to_what_is_under_way(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenkv.sessions.SESSION_REQUESTS_MAX", 3)
    monkeypatch.setattr("aspenkv.sessions.SESSION_BYTES_MAX", 100)
    ticket = await make_ticket(service)
    first, second = [await enter(service, ticket, ID) for _ in range(2)]
    other = await enter(service, ticket)
    with first.request(10), second.request(30) as work:
        assert not busy(first, 60)
        assert busy(first, 61)
        work.add(60)
        assert busy(first, 1)
        with pytest.raises(BusyError):
            work.add(1)
        with second.request(0):
            assert busy(first)
            assert not busy(other)
    assert not busy(first, 100)


async def test_there_is_a_limit_to_what_is_under_way_for_all(service: Service) -> None:
    ticket = await make_ticket(service)
    sessions = [await enter(service, ticket) for _ in range(9)]
    budget = service._admission.budget
    works = [
        session.request(limits.SESSION_BYTES_MAX)
        for session in sessions[: limits.SERVER_BYTES_MAX // limits.SESSION_BYTES_MAX]
    ]
    for work in works:
        work.__enter__()
    assert busy(sessions[-1], 1)
    for work in works:
        work.__exit__()
    assert (budget.requests, budget.bytes) == (0, 0)
    assert all(not busy(session, limits.SESSION_BYTES_MAX) for session in sessions)


async def test_each_call_is_refused_once_the_session_has_ended(service: Service) -> None:
    session = await join(service)
    await session.end()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: session.get([COUNT]),
        lambda: session.scan(b"fs:a:", b"fs:a;", limit=1),
        lambda: session.commit([], ONE_MORE, SlotUse(0, 1)),
        lambda: session.lease(10),
        session.revision,
        session.sync,
        session.status,
    ]
    for call, _ in itertools.product(calls, range(2)):
        with pytest.raises(ClosedError, match="ended its session"):
            await call()
