"""Which connection of the pool carries which call. Pure: the time and the dice are handed in.

Facts are recorded by small methods (a call waits, a dial failed, a connection was lost); every
decision is made by :meth:`Connections.advance`, which changes the whole state in one go and returns
what is left to do: whom to wake, whom to dial, what to close.

A connection is for small calls or for bulk from the moment it is dialed, so that a small call never
stands behind a megabyte. Only while there is no connection for bulk yet does bulk use one for small
calls, and small calls take any rather than wait. The first connection is for small calls, and one
is always left for them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

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

ChannelT = TypeVar("ChannelT")

_NEVER: Final = math.inf


class Kind(enum.Enum):
    """What a call needs from the connection that carries it."""

    SMALL = "small"
    BULK = "bulk"
    WATCH = "watch"
    """Carried as long as it lasts: it keeps its connection open, but is no load."""


class State(enum.Enum):
    """The life of a connection. One that is gone is no longer in the table."""

    DIALING = "dialing"
    OPEN = "open"
    LEAVING = "leaving"
    """Its server wants no new calls; it is closed after those that it carries."""


class Connection(Generic[ChannelT]):
    """One connection, from the decision to dial it. Changed by :class:`Connections` only."""

    __slots__ = (
        "bulk_calls",
        "channel",
        "endpoint",
        "idle_since_s",
        "is_bulk",
        "is_proved",
        "small_calls",
        "state",
        "watches",
    )

    def __init__(self, endpoint: int, *, is_bulk: bool) -> None:
        """Begin to dial an endpoint, for bulk or for small calls."""
        self.endpoint = endpoint
        self.is_bulk = is_bulk
        self.state = State.DIALING
        self.channel: ChannelT | None = None
        self.is_proved = False  # a call on it was answered
        self.idle_since_s = 0.0
        self.small_calls = 0
        self.bulk_calls = 0
        self.watches = 0

    @property
    def calls(self) -> int:
        """How many calls it carries."""
        return self.small_calls + self.bulk_calls

    @property
    def is_idle(self) -> bool:
        """Whether it carries nothing."""
        return not (self.small_calls or self.bulk_calls or self.watches)

    def carry(self, kind: Kind, change: int) -> None:
        """Count a call that it takes (1) or has ended (-1)."""
        if kind is Kind.SMALL:
            self.small_calls += change
        elif kind is Kind.BULK:
            self.bulk_calls += change
        else:
            self.watches += change


class Waiter(Generic[ChannelT]):
    """A call that wants a connection. Afterwards it has one, or an error."""

    __slots__ = ("connection", "error", "kind", "wake")

    def __init__(self, kind: Kind) -> None:
        """Ask for a connection for a call of this kind."""
        self.kind = kind
        self.connection: Connection[ChannelT] | None = None
        self.error: Exception | None = None
        self.wake: Callable[[], None] = _nobody_sleeps

    @property
    def is_settled(self) -> bool:
        """Whether the waiting is over."""
        return self.connection is not None or self.error is not None


class Step(NamedTuple, Generic[ChannelT]):
    """What :meth:`Connections.advance` decided, to be carried out by the pool.

    ``wake_at_s`` says when to decide again even if nothing happens; infinity: never.
    """

    settled: list[Waiter[ChannelT]]
    dials: list[Connection[ChannelT]]
    closing: list[Connection[ChannelT]]
    wake_at_s: float


class EndpointHealth:
    """What is known of one endpoint."""

    __slots__ = ("failures", "reason", "refusal", "retry_at_s")

    def __init__(self) -> None:
        """Begin with hope."""
        self.failures = 0  # in a row
        self.retry_at_s = 0.0
        self.reason = "no answer yet"  # of the last failure
        self.refusal: Exception | None = None  # the last failure, if no retry cures it

    def failed(
        self, reason: str, now_s: float, jitter: float, refusal: Exception | None = None
    ) -> None:
        """Record a failure; ``jitter``, in [0, 1), keeps clients from returning all at once.

        Several connections that fail together are one failure.
        """
        if self.failures and now_s < self.retry_at_s and refusal is None:
            return
        pause_s = POOL_BACKOFF_FIRST_S * 2 ** min(self.failures, 16)
        pause_s = min(pause_s, POOL_BACKOFF_MAX_S) if refusal is None else POOL_REFUSED_RETRY_S
        self.failures += 1
        self.reason = reason
        self.refusal = refusal
        self.retry_at_s = now_s + pause_s * (1 + jitter) / 2

    def answered(self) -> None:
        """Record that the server there does its work."""
        self.failures = 0
        self.refusal = None


class Connections(Generic[ChannelT]):
    """The connections to all endpoints, the calls that wait for one, and what they will do next."""

    def __init__(self, endpoint_count: int) -> None:
        """Begin with no connection; the first call opens one."""
        self.endpoints = [EndpointHealth() for _ in range(endpoint_count)]
        self.connections: list[Connection[ChannelT]] = []
        self.calls_max = POOL_CALLS_MAX
        self._waiting: dict[Kind, dict[Waiter[ChannelT], None]] = {kind: {} for kind in Kind}
        self._is_wanted = False
        self._closed_by: Exception | None = None
        self._calls = 0
        self._open_for_small: list[Connection[ChannelT]] = []

    # --- the short way ----------------------------------------------------------------------------

    def take(self, kind: Kind) -> Connection[ChannelT] | None:
        """Return a connection for a call at once, if it changes nothing that must be decided.

        That is the way of nearly all calls, and far shorter than :meth:`advance`.
        """
        if kind is not Kind.SMALL or self._calls >= self.calls_max or self.waiting:
            return None
        connection = min(self._open_for_small, key=_load, default=None)
        if connection is None or connection.small_calls >= POOL_SMALL_CALLS:
            return None
        self._carry(connection, kind)
        return connection

    # --- facts ------------------------------------------------------------------------------------

    def enqueue(self, waiter: Waiter[ChannelT]) -> bool:
        """Let a call wait for its connection; return whether there was room for it."""
        if self.waiting >= POOL_WAITING_MAX:
            return False
        self._is_wanted = True
        self._waiting[waiter.kind][waiter] = None
        return True

    def withdraw(self, waiter: Waiter[ChannelT], now_s: float) -> None:
        """Forget a call that gave up; a connection that it was given meanwhile is free again."""
        self._waiting[waiter.kind].pop(waiter, None)
        if waiter.connection is not None:
            self.release(waiter.connection, waiter.kind, now_s)

    def opened(self, connection: Connection[ChannelT], channel: ChannelT, now_s: float) -> None:
        """Record that a dial succeeded."""
        connection.state = State.OPEN
        connection.channel = channel
        connection.idle_since_s = now_s

    def dial_failed(
        self,
        connection: Connection[ChannelT],
        reason: str,
        now_s: float,
        jitter: float,
        refusal: Exception | None = None,
    ) -> None:
        """Record that a dial failed, with ``refusal`` if that is an error that no retry cures."""
        self._remove(connection)
        self.endpoints[connection.endpoint].failed(reason, now_s, jitter, refusal)

    def lost(
        self, connection: Connection[ChannelT], reason: str, now_s: float, jitter: float
    ) -> bool:
        """Record that a connection broke; return False if it was closed or lost before.

        A server that had answered is dialed again at once, by preference another; one that accepts
        connections and drops them is backed off from as if it did not accept them.
        """
        if not self._remove(connection):
            return False
        health = self.endpoints[connection.endpoint]
        if not connection.is_proved:
            health.failed(reason, now_s, jitter)
        elif not health.failures:
            health.failures = 1
            health.reason = reason
            health.retry_at_s = now_s
        return True

    def leave(self, connection: Connection[ChannelT]) -> None:
        """Give no more calls to a connection whose server is about to end."""
        if connection.state is State.OPEN:
            connection.state = State.LEAVING

    def proved(self, connection: Connection[ChannelT]) -> bool:
        """Record that a call was answered; return whether there is anything to decide."""
        if connection.is_proved:
            return False
        connection.is_proved = True
        self.endpoints[connection.endpoint].answered()
        return True

    def release(self, connection: Connection[ChannelT], kind: Kind, now_s: float) -> bool:
        """Record that a call ended, however it did; return whether there is anything to decide."""
        connection.carry(kind, -1)
        self._calls -= kind is not Kind.WATCH
        connection.idle_since_s = now_s
        return bool(self.waiting) or (
            connection.is_idle and self._open_for_small[:1] != [connection]
        )

    def close(self, error: Exception) -> None:
        """End it: every call that waits gets ``error``, and nothing is dialed any more."""
        self._closed_by = error

    # --- what is known ----------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many calls wait for a connection."""
        small, bulk, watch = self._waiting.values()
        return len(small) + len(bulk) + len(watch)

    @property
    def is_connected(self) -> bool:
        """Whether any connection is open."""
        return self._has_any(State.OPEN)

    # --- the decision -----------------------------------------------------------------------------

    def advance(self, now_s: float) -> Step[ChannelT]:
        """Bring everything up to date: hand out connections, decide what to dial and to close."""
        if self._closed_by is not None:
            return Step(self._settle_all(self._closed_by), [], [], _NEVER)
        closing = self._take_out_unneeded(now_s)
        settled = self._hand_out() if self.waiting else []
        self._open_for_small = [
            each for each in self._for(is_bulk=False) if each.state is State.OPEN
        ]
        dials = self._dial_what_is_missing(now_s)
        if self.waiting and not (self.is_connected or self._has_any(State.DIALING)):
            refusal = self._refusal()
            if refusal is not None:
                settled += self._settle_all(refusal)
        return Step(settled, dials, closing, self._next_decision_s(now_s))

    def _take_out_unneeded(self, now_s: float) -> list[Connection[ChannelT]]:
        """Remove connections that nobody needs any more, and return them to be closed."""
        closing = [each for each in self.connections if now_s >= self._needless_from_s(each)]
        for connection in closing:
            self._remove(connection)
        return closing

    def _needless_from_s(self, connection: Connection[ChannelT]) -> float:
        """Return when a connection is to be closed if nothing happens; infinity: never."""
        if connection.state is State.DIALING or not connection.is_idle:
            return _NEVER
        if connection.state is State.LEAVING:
            return connection.idle_since_s
        kept = next((each for each in self._for(is_bulk=False) if each.state is State.OPEN), None)
        if kept is None or connection is kept:
            return _NEVER
        return connection.idle_since_s + POOL_IDLE_S

    def _hand_out(self) -> list[Waiter[ChannelT]]:
        settled: list[Waiter[ChannelT]] = []
        for kind in (Kind.WATCH, Kind.SMALL, Kind.BULK):
            queue = self._waiting[kind]
            while queue and (self._calls < self.calls_max or kind is Kind.WATCH):
                connection = self._choose(kind)
                if connection is None:
                    break
                waiter = next(iter(queue))
                del queue[waiter]
                self._carry(connection, kind)
                waiter.connection = connection
                settled.append(waiter)
        return settled

    def _choose(self, kind: Kind) -> Connection[ChannelT] | None:
        """Return the connection that carries the next call of a kind; None: it must wait."""
        usable = [each for each in self.connections if each.state is State.OPEN]
        is_bulk = kind is Kind.BULK
        preferred = [each for each in usable if each.is_bulk is is_bulk] or usable
        if is_bulk:
            preferred = [each for each in preferred if each.bulk_calls < POOL_BULK_CALLS]
        elif kind is Kind.SMALL:
            preferred = [each for each in preferred if each.small_calls < POOL_SMALL_CALLS_MAX]
        return min(preferred, key=_load, default=None)

    def _dial_what_is_missing(self, now_s: float) -> list[Connection[ChannelT]]:
        dials: list[Connection[ChannelT]] = []
        for is_bulk in (False, True):
            if self._is_missing(is_bulk=is_bulk):
                endpoint = self._endpoint_to_dial(now_s)
                if endpoint is not None:
                    connection = Connection[ChannelT](endpoint, is_bulk=is_bulk)
                    self.connections.append(connection)
                    dials.append(connection)
        return dials

    def _is_missing(self, *, is_bulk: bool) -> bool:
        """Whether load asks for one more connection of a sort, and none is being dialed."""
        if len(self.connections) >= POOL_CONNECTIONS_MAX:
            return False
        if not self.is_connected:
            # One dial at a time: its answer says whether the server still knows the session, and
            # the answer to a second one could come first and hide that.
            return not self._has_any(State.DIALING) and self._is_connection_wanted()
        same = [each for each in self._for(is_bulk=is_bulk) if each.state is not State.LEAVING]
        if any(each.state is State.DIALING for each in same):
            return False
        if is_bulk:
            waits_for_one = bool(self._waiting[Kind.BULK]) or (
                not same and any(each.bulk_calls for each in self.connections)
            )
            return waits_for_one and len(same) < POOL_CONNECTIONS_MAX - 1
        return len(same) < POOL_CONNECTIONS_MAX - 1 and all(
            each.small_calls > POOL_SMALL_CALLS for each in same
        )

    def _is_connection_wanted(self) -> bool:
        """Whether to dial though there is no connection at all.

        A connection that was lost is replaced before a call asks for it, so that the next one need
        not wait; servers that refuse this client are left alone until then.
        """
        return bool(self.waiting) or (self._is_wanted and self._refusal() is None)

    def _endpoint_to_dial(self, now_s: float) -> int | None:
        """Return the endpoint for the next dial, healthy ones first; None: all are backed off."""
        dialing = {each.endpoint for each in self.connections if each.state is State.DIALING}
        candidates = [
            index
            for index, health in enumerate(self.endpoints)
            if not health.failures or (index not in dialing and health.retry_at_s <= now_s)
        ]
        return min(candidates, key=self._reluctance, default=None)

    def _reluctance(self, endpoint: int) -> tuple[bool, float, int]:
        """Order endpoints: those that work by their connections, the others by their turn."""
        health = self.endpoints[endpoint]
        connections = sum(each.endpoint == endpoint for each in self.connections)
        return bool(health.failures), health.retry_at_s if health.failures else 0.0, connections

    def _refusal(self) -> Exception | None:
        """Return why no endpoint will ever serve this client, if each refused when last asked."""
        refusals = [health.refusal for health in self.endpoints]
        return None if None in refusals else refusals[0]

    def _next_decision_s(self, now_s: float) -> float:
        times = [self._needless_from_s(each) for each in self.connections]
        if self._is_missing(is_bulk=False) or self._is_missing(is_bulk=True):
            times += [each.retry_at_s for each in self.endpoints if each.retry_at_s > now_s]
        return min(times, default=_NEVER)

    # --- helpers ----------------------------------------------------------------------------------

    def _carry(self, connection: Connection[ChannelT], kind: Kind) -> None:
        connection.carry(kind, 1)
        self._calls += kind is not Kind.WATCH

    def _has_any(self, state: State) -> bool:
        return any(each.state is state for each in self.connections)

    def _for(self, *, is_bulk: bool) -> list[Connection[ChannelT]]:
        return [each for each in self.connections if each.is_bulk is is_bulk]

    def _settle_all(self, error: Exception) -> list[Waiter[ChannelT]]:
        settled = [waiter for queue in self._waiting.values() for waiter in queue]
        for queue in self._waiting.values():
            queue.clear()
        for waiter in settled:
            waiter.error = error
        return settled

    def _remove(self, connection: Connection[ChannelT]) -> bool:
        if connection not in self.connections:
            return False
        self.connections.remove(connection)
        return True


def _load(connection: Connection[ChannelT]) -> tuple[int, int, int]:
    """Order connections: bulk weighs most, since small calls would stand behind it."""
    return connection.bulk_calls, connection.small_calls, connection.watches


def _nobody_sleeps() -> None:
    """Wake a waiter that was settled before it went to sleep."""
