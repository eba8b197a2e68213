"""The table of connections: single decisions, and invariants over any history of facts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from aspenfs.connections import Connection, Connections, EndpointHealth, Kind, State, Waiter
from aspenfs.limits import (
    POOL_BACKOFF_FIRST_S,
    POOL_BACKOFF_MAX_S,
    POOL_BULK_CALLS,
    POOL_CALLS_MAX,
    POOL_CONNECTIONS_MAX,
    POOL_IDLE_S,
    POOL_REFUSED_RETRY_S,
    POOL_SMALL_CALLS,
    POOL_SMALL_CALLS_MAX,
    POOL_WAITING_MAX,
)

LOST = ConnectionError("lost")
Table = Connections[str]


def wait(table: Table, kind: Kind = Kind.SMALL) -> Waiter[str]:
    waiter = Waiter[str](kind)
    assert table.enqueue(waiter)
    return waiter


def opened(table: Table, now_s: float = 0.0) -> Connection[str]:
    """Have the table dial its next connection, and open it."""
    (connection,) = table.advance(now_s).dials
    table.opened(connection, "channel", now_s)
    return connection


def fail(table: Table, now_s: float, *, is_refusing: bool = False) -> None:
    (connection,) = table.advance(now_s).dials
    table.dial_failed(connection, "no", now_s, 0.0, LOST if is_refusing else None)


def test_nothing_is_done_before_a_call() -> None:
    assert Table(3).advance(0.0) == ([], [], [], math.inf)


def test_a_call_waits_for_the_first_connection_and_gets_it() -> None:
    table = Table(1)
    waiter = wait(table)
    connection = opened(table)
    assert not waiter.is_settled
    assert table.advance(0.0).settled == [waiter]
    assert waiter.connection is connection
    assert connection.calls == 1


def test_the_short_way_is_open_only_while_nothing_is_to_be_decided() -> None:
    table = Table(1)
    assert table.take(Kind.SMALL) is None
    wait(table)
    connection = opened(table)
    table.advance(0.0)
    for _ in range(POOL_SMALL_CALLS - 1):
        assert table.take(Kind.SMALL) is connection
    assert table.take(Kind.SMALL) is None, "one more may call for another connection"
    table.release(connection, Kind.SMALL, 0.0)
    assert table.take(Kind.BULK) is None
    assert table.take(Kind.WATCH) is None
    table.calls_max = 15
    assert table.take(Kind.SMALL) is None


def test_a_place_in_the_queue_is_refused_when_it_is_full() -> None:
    table = Table(1)
    for _ in range(POOL_WAITING_MAX):
        wait(table)
    assert not table.enqueue(Waiter(Kind.SMALL))


def test_back_off_grows_to_its_bound_and_jitter_at_most_halves_it() -> None:
    health = EndpointHealth()
    pauses: list[float] = []
    for _ in range(40):
        now_s = health.retry_at_s
        health.failed("refused", now_s, 0.0)
        pauses.append(health.retry_at_s - now_s)
    assert pauses[0] == pytest.approx(POOL_BACKOFF_FIRST_S / 2)
    assert pauses[3] == pytest.approx(POOL_BACKOFF_FIRST_S * 4)
    assert pauses[-1] == pytest.approx(POOL_BACKOFF_MAX_S / 2)
    health.failed("refused", now_s := health.retry_at_s, 1.0)
    assert health.retry_at_s - now_s == pytest.approx(POOL_BACKOFF_MAX_S)


def test_connections_that_fail_together_are_one_failure() -> None:
    table = Table(1)
    first, *_ = [wait(table) for _ in range(POOL_SMALL_CALLS + 1)]
    one = opened(table)
    other = opened(table)
    assert table.advance(0.0).dials == []
    assert first.connection is one
    for connection in (one, other):
        assert table.lost(connection, "lost", 1.0, 0.0)
        assert not table.lost(connection, "lost", 1.0, 0.0), "it is known already"
    assert table.endpoints[0].failures == 1


def test_a_refusal_counts_also_while_backed_off() -> None:
    health = EndpointHealth()
    health.failed("refused", 0.0, 0.0)
    health.failed("refused", 0.0, 1.0, LOST)
    assert health.refusal is LOST
    assert health.retry_at_s == POOL_REFUSED_RETRY_S


def test_refused_calls_end_and_the_next_one_asks_again_after_the_pause() -> None:
    table = Table(1)
    waiter = wait(table)
    fail(table, 0.0, is_refusing=True)
    step = table.advance(0.0)
    assert step.settled == [waiter]
    assert waiter.error is LOST
    assert step.wake_at_s == math.inf, "it is left alone"
    late = wait(table)
    (connection,) = table.advance(POOL_REFUSED_RETRY_S).dials
    table.opened(connection, "channel", POOL_REFUSED_RETRY_S)
    assert table.advance(POOL_REFUSED_RETRY_S).settled == [late]


def test_a_lost_connection_that_worked_is_dialed_again_at_once() -> None:
    table = Table(1)
    wait(table)
    connection = opened(table)
    table.advance(0.0)
    table.proved(connection)
    table.lost(connection, "lost", 5.0, 0.0)
    assert len(table.advance(5.0).dials) == 1


def test_the_loss_of_another_connection_does_not_reset_the_back_off() -> None:
    table = Table(1)
    for _ in range(POOL_SMALL_CALLS + 1):
        wait(table)
    one, other = opened(table), opened(table)
    for connection in (one, other):
        table.proved(connection)
    table.lost(one, "lost", 5.0, 0.0)
    table.endpoints[0].retry_at_s = 6.0
    table.lost(other, "lost", 5.0, 0.0)
    step = table.advance(5.0)
    assert step.dials == []
    assert step.wake_at_s == 6.0


def test_bulk_uses_a_connection_for_small_calls_only_until_it_has_its_own() -> None:
    table = Table(1)
    calls = [wait(table, Kind.BULK) for _ in range(POOL_BULK_CALLS + 1)]
    small = opened(table)
    step = table.advance(0.0)
    assert [call.connection for call in calls] == [small] * POOL_BULK_CALLS + [None]
    (bulk,) = step.dials
    assert bulk.is_bulk
    table.opened(bulk, "channel", 0.0)
    table.advance(0.0)
    assert calls[-1].connection is bulk


def test_small_calls_use_a_connection_for_bulk_rather_than_wait() -> None:
    table = Table(1)
    wait(table, Kind.BULK)
    small = opened(table)
    bulk = opened(table)
    table.lost(small, "lost", 0.0, 0.0)
    waiter = wait(table)
    (again,) = table.advance(POOL_BACKOFF_MAX_S).dials
    assert waiter.connection is bulk
    assert not again.is_bulk


def test_a_leaving_connection_is_closed_after_its_last_call_and_replaced_before() -> None:
    table = Table(1)
    waiter = wait(table)
    connection = opened(table)
    table.advance(0.0)
    table.leave(connection)
    step = table.advance(0.0)
    assert len(step.dials) == 1
    assert step.closing == []
    table.leave(step.dials[0])
    assert step.dials[0].state is State.DIALING, "only an open connection can leave"
    assert table.release(connection, waiter.kind, 1.0)
    assert table.advance(1.0).closing == [connection]


def test_a_call_that_withdraws_frees_what_it_was_given() -> None:
    table = Table(1)
    waiter = wait(table)
    connection = opened(table)
    table.advance(0.0)
    table.withdraw(waiter, 0.0)
    assert connection.is_idle


def test_a_closed_table_settles_all_and_dials_nothing() -> None:
    table = Table(1)
    table.close(LOST)
    waiter = wait(table)
    step = table.advance(0.0)
    assert step == ([waiter], [], [], math.inf)
    assert waiter.error is LOST


def test_a_waiter_may_be_settled_before_it_sleeps() -> None:
    Waiter[str](Kind.SMALL).wake()


class PoolMachine(RuleBasedStateMachine):
    """Any facts in any order; after each, the table decides, and its decisions are carried out."""

    @initialize(endpoints=st.integers(1, 3), calls_max=st.sampled_from((3, 40, POOL_CALLS_MAX)))
    def begin(self, endpoints: int, calls_max: int) -> None:
        self.table = Table(endpoints)
        self.table.calls_max = calls_max
        self.now_s = 0.0
        self.waiting: list[Waiter[str]] = []
        self.carried: list[tuple[Connection[str], Kind]] = []
        self.gone: list[Connection[str]] = []
        self.decide()

    def decide(self) -> None:
        kept = [each for each in self.table.connections if each.state is State.OPEN]
        step = self.table.advance(self.now_s)
        for connection in step.closing:
            assert connection.is_idle, "what carries something is never closed"
            self.gone.append(connection)
        still = [each for each in kept if each not in step.closing]
        assert not kept or still, "the last open connection is kept"
        for waiter in step.settled:
            expected = next(each for each in self.waiting if each.kind is waiter.kind)
            assert waiter is expected, "first come, first served, within a kind"
            self.waiting.remove(waiter)
            if waiter.connection is not None:
                assert waiter.connection.state is State.OPEN
                assert waiter.connection in self.table.connections
                self.carried.append((waiter.connection, waiter.kind))
            else:
                assert waiter.error is LOST
        for connection in step.dials:
            health = self.table.endpoints[connection.endpoint]
            assert not health.failures or health.retry_at_s <= self.now_s
        dialing = [each for each in self.table.connections if each.state is State.DIALING]
        if step.dials and not self.table.is_connected:
            assert len(dialing) == 1
        assert step.wake_at_s > self.now_s
        if self.waiting and not self.table.connections:
            assert step.wake_at_s < math.inf, "who waits is not forgotten"
        self.wake_at_s = step.wake_at_s

    def pick(self, data: Any, state: State) -> Connection[str]:
        found = [each for each in self.table.connections if each.state is state]
        return data.draw(st.sampled_from(found))  # type: ignore[no-any-return]

    def has(self, state: State) -> bool:
        return any(each.state is state for each in self.table.connections)

    @rule(kind=st.sampled_from(Kind), count=st.integers(1, 40))
    def call(self, kind: Kind, count: int) -> None:
        for _ in range(count):
            connection = self.table.take(kind)
            if connection is not None:
                assert connection in self.table.connections
                assert connection.state is State.OPEN
                self.carried.append((connection, kind))
                before = len(self.waiting), len(self.table.connections)
                self.decide()
                assert before == (len(self.waiting), len(self.table.connections)), (
                    "the short way hides no decision"
                )
                continue
            waiter = Waiter[str](kind)
            if self.table.enqueue(waiter):
                self.waiting.append(waiter)
            self.decide()

    @precondition(lambda self: self.carried)
    @rule(data=st.data(), count=st.integers(1, 40), is_answer=st.booleans())
    def end_calls(self, data: Any, count: int, *, is_answer: bool) -> None:
        for _ in range(min(count, len(self.carried))):
            connection, kind = self.carried.pop(data.draw(st.integers(0, len(self.carried) - 1)))
            if is_answer and self.table.proved(connection):
                self.decide()
            must_decide = self.table.release(connection, kind, self.now_s)
            before = len(self.waiting), len(self.table.connections)
            wake_at_s = self.wake_at_s
            self.decide()
            if not must_decide:
                assert before == (len(self.waiting), len(self.table.connections))
                assert wake_at_s <= self.wake_at_s, "to wake in vain does no harm"

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: Any) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(waiter)
        self.table.withdraw(waiter, self.now_s)
        self.decide()

    @precondition(lambda self: self.has(State.DIALING))
    @rule(data=st.data())
    def dial_succeeds(self, data: Any) -> None:
        self.table.opened(self.pick(data, State.DIALING), "channel", self.now_s)
        self.decide()

    @precondition(lambda self: self.has(State.DIALING))
    @rule(data=st.data(), is_refusing=st.booleans(), jitter=st.floats(0, 0.99))
    def dial_fails(self, data: Any, jitter: float, *, is_refusing: bool) -> None:
        connection = self.pick(data, State.DIALING)
        refusal = LOST if is_refusing else None
        self.table.dial_failed(connection, "no", self.now_s, jitter, refusal)
        self.gone.append(connection)
        self.decide()

    @precondition(lambda self: self.has(State.OPEN))
    @rule(data=st.data(), jitter=st.floats(0, 0.99))
    def lose(self, data: Any, jitter: float) -> None:
        connection = self.pick(data, State.OPEN)
        assert self.table.lost(connection, "lost", self.now_s, jitter)
        assert not self.table.lost(connection, "lost", self.now_s, jitter)
        self.gone.append(connection)
        self.decide()

    @precondition(lambda self: self.has(State.OPEN))
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        self.table.leave(self.pick(data, State.OPEN))
        self.decide()

    @rule(seconds=st.sampled_from((0.01, 1.0, POOL_IDLE_S / 2, POOL_IDLE_S, 3600.0)))
    def time_passes(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.wake_at_s <= until_s:
            self.now_s = self.wake_at_s
            self.decide()
        self.now_s = until_s
        self.decide()

    @invariant()
    def bounds_hold(self) -> None:
        connections = self.table.connections
        assert len(connections) <= POOL_CONNECTIONS_MAX
        for is_bulk in (False, True):
            same = [each for each in connections if each.is_bulk is is_bulk]
            assert sum(each.state is State.DIALING for each in same) <= 1
            if is_bulk:
                assert len(same) < POOL_CONNECTIONS_MAX
        for connection in connections:
            assert 0 <= connection.bulk_calls <= POOL_BULK_CALLS
            assert 0 <= connection.small_calls <= POOL_SMALL_CALLS_MAX
        assert not set(connections) & set(self.gone)

    @invariant()
    def every_call_is_counted_once(self) -> None:
        for connection in (*self.table.connections, *self.gone):
            kinds = [kind for carrier, kind in self.carried if carrier is connection]
            assert kinds.count(Kind.SMALL) == connection.small_calls
            assert kinds.count(Kind.BULK) == connection.bulk_calls
            assert kinds.count(Kind.WATCH) == connection.watches
        calls = sum(kind is not Kind.WATCH for _, kind in self.carried)
        assert calls <= self.table.calls_max
        assert self.table.waiting == len(self.waiting)

    @invariant()
    def nobody_waits_for_what_is_free(self) -> None:
        calls = sum(kind is not Kind.WATCH for _, kind in self.carried)
        if calls == self.table.calls_max or not self.table.is_connected:
            return
        usable = [each for each in self.table.connections if each.state is State.OPEN]
        for waiter in self.waiting:
            if waiter.kind is Kind.SMALL:
                assert all(
                    each.small_calls == POOL_SMALL_CALLS_MAX for each in usable if not each.is_bulk
                )
            else:
                assert waiter.kind is Kind.BULK, "a watch waits for a first connection only"
                assert all(each.bulk_calls == POOL_BULK_CALLS for each in usable if each.is_bulk)


TestPoolMachine = PoolMachine.TestCase
