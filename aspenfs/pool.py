"""A pool of up to POOL_CONNECTIONS_MAX connections to the servers of one store.

It knows neither QUIC nor what is in a request: ``dial`` opens a channel, a channel carries calls.
Each connection has one task, which dials it, watches over it and closes it. All decisions are made
by :class:`~aspenfs.connections.Connections`, synchronously; this module carries them out.

Connections are shared, never checked out: a call only counts as load. A call that is cancelled ends
alone. What a lost connection carried fails with ConnectionLostError; whether it is sent again is
for the caller to decide, who knows what it was.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import Any, Final, NamedTuple, Protocol

import trio

from aspenfs.connections import Connection, Connections, Kind, State, Step, Waiter
from aspenfs.limits import POOL_BYE_S, POOL_CALLS_MAX, POOL_DIAL_S, POOL_WAITING_MAX
from aspenkv.contract import Newest, Watch, WatchEvent
from aspenkv.errors import (
    AspenKvError,
    BusyError,
    ClosedError,
    ConnectionLostError,
    ProtocolVersionError,
    ServerKeyError,
    TicketError,
    UnavailableError,
)
from aspenkv.protocol import Bye, HelloReply, OpenWatch, Request
from aspenkv.tickets import Endpoint

log = logging.getLogger(__name__)

SESSION_BYTES: Final = 16

_REFUSALS: Final = (TicketError, ServerKeyError, ProtocolVersionError)
"""What a server answers to a client that it will never serve."""


class Channel(Protocol):
    """One connection on which the server has accepted the ticket."""

    @property
    def hello(self) -> HelloReply:
        """What the server said of itself and of this client's session."""

    @property
    def closed(self) -> trio.Event:
        """Set when the connection is gone, for whatever reason."""

    async def call(self, request: Request, deadline_s: float) -> Any:  # noqa: ANN401 - each request has its own
        """Send a request and return its reply.

        Raises:
            UnavailableError, BusyError: nothing was done.
            ConnectionLostError: no answer came; the request may have been carried out.
            AspenKvError: what the server answered.
        """

    def watch(self, request: OpenWatch, deadline_s: float) -> AbstractAsyncContextManager[Watch]:
        """Open a watch. Raises, also while events are awaited, what :meth:`call` does."""

    def close(self) -> None:
        """Hang up at once."""


class Dial(Protocol):
    """Opens a channel, and closes it when the block ends."""

    def __call__(
        self, endpoint: Endpoint, session: bytes, deadline_s: float, /
    ) -> AbstractAsyncContextManager[Channel]:
        """Connect to ``endpoint`` for the client session, until ``deadline_s`` on trio's clock.

        Raises:
            TicketError, ServerKeyError, ProtocolVersionError: no retry cures it.
            AspenKvError: a later try may succeed.
        """


class OpenConnection(NamedTuple):
    """What a call is made on.

    ``session_epoch`` counts how often servers have forgotten this client's session: commits in one
    epoch know nothing of those in another.
    """

    channel: Channel
    session_epoch: int


class ConnectionStatistics(NamedTuple):
    """One connection of the pool."""

    endpoint: str
    state: str
    is_bulk: bool
    calls: int
    watches: int


class PoolStatistics(NamedTuple):
    """The pool at one moment, and counts since it was opened.

    Attributes:
        connections: all that are open or being dialed.
        waiting: calls that wait for a connection.
        small_calls: calls that were given a connection for small ones.
        bulk_calls: calls with large values.
        watches: watches that were opened.
        dials: connections that were begun.
        failed_dials: those that did not come about.
        lost: those that broke.
        is_connected: whether any is open.
        since_s: since when, or since when not, on trio's clock.
    """

    connections: tuple[ConnectionStatistics, ...]
    waiting: int
    small_calls: int
    bulk_calls: int
    watches: int
    dials: int
    failed_dials: int
    lost: int
    is_connected: bool
    since_s: float


class Pool:
    """The connections of one client. Made by :func:`open_pool`."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        dial: Dial,
        nursery: trio.Nursery,
        on_hello: Callable[[HelloReply], None],
    ) -> None:
        """Take where to dial, and the nursery in which connections live."""
        self._endpoints = tuple(endpoints)
        self._dial = dial
        self._nursery = nursery
        self._on_hello = on_hello
        self._session = secrets.token_bytes(SESSION_BYTES)
        self._session_epoch = 0
        self._is_session_known = False
        self._table = Connections[OpenConnection](len(self._endpoints))
        self._dials_under_way: dict[Connection[OpenConnection], trio.CancelScope] = {}
        self._timer = trio.CancelScope()
        self._wake_at_s = float("inf")
        self._is_closed = False
        self._is_connected = False
        self._since_s = trio.current_time()
        self._is_outage_logged = False
        self._carried = dict.fromkeys(Kind, 0)
        self._dials = 0
        self._failed_dials = 0
        self._lost_count = 0

    @property
    def is_connected(self) -> bool:
        """Whether any server can be asked right now."""
        return self._is_connected

    @asynccontextmanager
    async def connection(self, kind: Kind, deadline_s: float) -> AsyncIterator[OpenConnection]:
        """Have one call made on the connection that suits it best; open more as load needs them.

        The block makes the call, and nothing else: what it raises is taken for the server's doing.

        Args:
            kind: small, or with large values.
            deadline_s: until when to wait for a connection, on trio's clock.

        Raises:
            UnavailableError: no server could be reached in time, or it is about to end. Nothing was
                done.
            BusyError: too many calls wait already. Nothing was done.
            TicketError, ServerKeyError, ProtocolVersionError: no server will ever serve this
                client. Nothing was done; later calls ask again, after a pause.
            ClosedError: the pool was closed.
        """
        connection = await self._acquire(kind, deadline_s)
        try:
            with self._judging(connection, deadline_s):
                yield _open(connection)
        finally:
            self._release(connection, kind)

    @asynccontextmanager
    async def watch(self, request: OpenWatch, deadline_s: float) -> AsyncIterator[PooledWatch]:
        """Open a watch on a connection for small calls.

        Raises:
            UnavailableError: as :meth:`connection`; also while events are awaited, when the
                connection is lost. Then a new watch can go on from the revision of this one.
            ConnectionLostError: the connection broke before the watch was open.
            AspenKvError: what the server answered.
        """
        connection = await self._acquire(Kind.WATCH, deadline_s)
        try:
            async with AsyncExitStack() as stack:
                channel = _open(connection).channel
                with self._judging(connection, deadline_s):
                    watch = await stack.enter_async_context(channel.watch(request, deadline_s))
                pooled = PooledWatch(watch, channel.hello)
                try:
                    yield pooled
                finally:
                    pooled.close()
        finally:
            self._release(connection, Kind.WATCH)

    def statistics(self) -> PoolStatistics:
        """Return what the pool does and has done."""
        return PoolStatistics(
            connections=tuple(
                ConnectionStatistics(
                    str(self._endpoints[each.endpoint]),
                    each.state.value,
                    each.is_bulk,
                    each.calls,
                    each.watches,
                )
                for each in self._table.connections
            ),
            waiting=self._table.waiting,
            small_calls=self._carried[Kind.SMALL],
            bulk_calls=self._carried[Kind.BULK],
            watches=self._carried[Kind.WATCH],
            dials=self._dials,
            failed_dials=self._failed_dials,
            lost=self._lost_count,
            is_connected=self._is_connected,
            since_s=self._since_s,
        )

    async def keep_time(self) -> None:
        """Decide again whenever time alone makes it necessary, for ever."""
        while True:
            with trio.CancelScope(deadline=self._wake_at_s) as self._timer:
                await trio.sleep_forever()
            self._advance()

    async def end_session(self) -> None:
        """Tell a server that this client is done, so that it need not keep its slots.

        It matters little: without it, the server forgets them in time.
        """
        channels = [
            _open(each).channel for each in self._table.connections if each.state is State.OPEN
        ]
        if channels:
            deadline_s = trio.current_time() + POOL_BYE_S
            with trio.move_on_at(deadline_s):
                try:
                    await channels[0].call(Bye(), deadline_s)
                except AspenKvError as error:
                    log.debug("the session could not be ended: %s", error)

    def refuse_calls(self) -> None:
        """Fail all calls that wait, and all that come, with ClosedError; give up all dials.

        A hello that the server reads after the goodbye would make the session anew.
        """
        self._is_closed = True
        for dial in self._dials_under_way.values():
            dial.cancel()
        self._table.close(_closed())
        self._advance()

    # --- one call ---------------------------------------------------------------------------------

    async def _acquire(self, kind: Kind, deadline_s: float) -> Connection[OpenConnection]:
        """Return a connection that counts the call as its load until :meth:`_release`."""
        if self._is_closed:
            raise _closed()
        connection = self._table.take(kind) or await self._queue(kind, deadline_s)
        self._carried[kind] += 1
        return connection

    async def _queue(self, kind: Kind, deadline_s: float) -> Connection[OpenConnection]:
        waiter = Waiter[OpenConnection](kind)
        if not self._table.enqueue(waiter):
            raise BusyError(f"{POOL_WAITING_MAX} calls wait for the server already")
        self._advance()
        if not waiter.is_settled:
            await self._wait(waiter, deadline_s)
        if waiter.error is not None:
            raise waiter.error.with_traceback(None)  # else it grows with each call that gets it
        if waiter.connection is None:
            raise UnavailableError(self._why_nothing_was_free())
        return waiter.connection

    async def _wait(self, waiter: Waiter[OpenConnection], deadline_s: float) -> None:
        """Wait until a waiter is settled, or the time is over."""
        settled = trio.Event()
        waiter.wake = settled.set
        try:
            with trio.move_on_at(deadline_s):
                await settled.wait()
        except BaseException:
            self._table.withdraw(waiter, trio.current_time())
            self._advance()
            raise
        if not waiter.is_settled:
            self._table.withdraw(waiter, trio.current_time())
            self._advance()

    def _why_nothing_was_free(self) -> str:
        if self._is_connected:
            return "all connections to the server were taken until the time was over"
        reasons = [
            f"{endpoint}: {health.reason}"
            for endpoint, health in zip(self._endpoints, self._table.endpoints, strict=True)
        ]
        return f"no server could be reached in time ({'; '.join(reasons)})"

    def _release(self, connection: Connection[OpenConnection], kind: Kind) -> None:
        if self._table.release(connection, kind, trio.current_time()):
            self._advance()

    @contextmanager
    def _judging(self, connection: Connection[OpenConnection], deadline_s: float) -> Iterator[None]:
        """Learn from how a call ends whether its connection is still good."""
        try:
            yield
        except ConnectionLostError as error:
            # A call that ran out of time says little: others may be doing well here.
            if trio.current_time() < deadline_s:
                self._lose(connection, str(error))
            raise
        except UnavailableError:
            if trio.current_time() < deadline_s:  # else it is the call that is over
                self._leave(connection)
            raise
        except ClosedError as error:
            self._leave(connection)
            raise UnavailableError(f"the server has ended: {error}") from error
        except AspenKvError:
            self._prove(connection)
            raise
        self._prove(connection)

    def _leave(self, connection: Connection[OpenConnection]) -> None:
        """Give no more calls to a connection whose server is about to end."""
        self._table.leave(connection)
        self._advance()

    def _prove(self, connection: Connection[OpenConnection]) -> None:
        """Note that a server has answered."""
        if self._table.proved(connection):
            self._advance()

    # --- one connection ---------------------------------------------------------------------------

    async def _run(self, connection: Connection[OpenConnection]) -> None:
        """Dial one connection, and stay with it until it is gone."""
        endpoint = self._endpoints[connection.endpoint]
        failure: Exception = ConnectionLostError("it hung up")
        try:
            with trio.CancelScope() as self._dials_under_way[connection]:
                deadline_s = trio.current_time() + POOL_DIAL_S
                async with self._dial(endpoint, self._session, deadline_s) as channel:
                    self._opened(connection, channel)
                    await channel.closed.wait()
                    self._lose(connection, str(failure))
        except AspenKvError as error:
            failure = error
        except Exception as error:
            # A bug in one connection must not end the pool and the mount with it.
            log.exception("the connection to %s failed", endpoint)
            failure = error
        finally:
            self._dials_under_way.pop(connection, None)
        if connection.state is State.DIALING:
            self._dial_failed(connection, failure)
        else:
            self._lose(connection, str(failure))

    def _opened(self, connection: Connection[OpenConnection], channel: Channel) -> None:
        if self._is_closed:
            return
        del self._dials_under_way[connection]
        hello = channel.hello
        if hello.session_is_new and self._is_session_known:
            self._session_epoch += 1
            log.warning("the server no longer knows this client: commits in doubt stay in doubt")
        self._is_session_known = True
        self._on_hello(hello)
        self._table.calls_max = max(1, min(hello.requests_max, POOL_CALLS_MAX))
        self._table.opened(
            connection, OpenConnection(channel, self._session_epoch), trio.current_time()
        )
        self._advance()

    def _dial_failed(self, connection: Connection[OpenConnection], error: Exception) -> None:
        if self._is_closed:
            return
        self._failed_dials += 1
        self._table.dial_failed(
            connection,
            str(error),
            trio.current_time(),
            random.random(),  # noqa: S311 - no secret
            error.with_traceback(None) if isinstance(error, _REFUSALS) else None,
        )
        self._advance()
        is_outage = all(health.failures for health in self._table.endpoints)
        if is_outage and not self._is_connected and not self._is_outage_logged:
            self._is_outage_logged = True
            endpoint = self._endpoints[connection.endpoint]
            log.warning("no server can be reached (%s: %s); trying again", endpoint, error)

    def _lose(self, connection: Connection[OpenConnection], reason: str) -> None:
        """Give a connection up; nothing happens if it was before."""
        jitter = random.random()  # noqa: S311 - no secret
        if self._table.lost(connection, reason, trio.current_time(), jitter):
            self._lost_count += 1
            log.info("lost a connection to %s: %s", self._endpoints[connection.endpoint], reason)
            _open(connection).channel.close()
            self._advance()

    # --- all of them ------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Let the table decide, and do what it says."""
        self._carry_out(self._table.advance(trio.current_time()))
        if self._table.is_connected is not self._is_connected:
            self._is_connected = not self._is_connected
            self._since_s = trio.current_time()
            if self._is_connected and self._is_outage_logged:
                self._is_outage_logged = False
                log.info("a server can be reached again")

    def _carry_out(self, step: Step[OpenConnection]) -> None:
        for waiter in step.settled:
            waiter.wake()
        for connection in step.dials:
            self._dials += 1
            self._nursery.start_soon(self._run, connection)
        for connection in step.closing:
            _open(connection).channel.close()
        if step.wake_at_s != self._wake_at_s:
            self._wake_at_s = self._timer.deadline = step.wake_at_s


class PooledWatch:
    """A watch whose connection may be lost; see :class:`aspenkv.contract.Watch`."""

    def __init__(self, watch: Watch, hello: HelloReply) -> None:
        """Take a watch, and what the server said of itself on its connection."""
        self.hello = hello
        self._watch = watch
        self._events = aiter(watch)
        self._is_closed = False

    def close(self) -> None:
        """Hand out no more events: the block of the watch has ended."""
        self._is_closed = True

    @property
    def revision(self) -> int:
        """Every commit up to this revision was handed out, or did not touch the prefix."""
        return self._watch.revision

    async def newest(self) -> Newest:
        """See :meth:`aspenkv.contract.Watch.newest`.

        Raises:
            WatchGapError: events were lost because the watcher fell behind.
            UnavailableError: the connection was lost, or the server ended or is too busy.
            ClosedError: the block of the watch has ended.
        """
        if self._is_closed:
            raise ClosedError("the watch was closed")
        try:
            return await self._watch.newest()
        except (ConnectionLostError, BusyError) as error:
            raise UnavailableError(f"the watch cannot be asked: {error}") from error
        except ClosedError as error:
            if self._is_closed:  # meanwhile
                raise
            raise UnavailableError(f"the watch broke off: {error}") from error

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        """Iterate over the events."""
        return self

    async def __anext__(self) -> WatchEvent:
        """Return the next event, waiting for it.

        Raises:
            WatchGapError: events were lost because the watcher fell behind.
            UnavailableError: the connection was lost, or the server ended.
            ClosedError: the block of the watch has ended.
        """
        if self._is_closed:
            raise ClosedError("the watch was closed")
        try:
            return await anext(self._events)
        except (ConnectionLostError, ClosedError) as error:
            raise UnavailableError(f"the watch broke off: {error}") from error


@asynccontextmanager
async def open_pool(
    endpoints: Sequence[Endpoint], dial: Dial, *, on_hello: Callable[[HelloReply], None]
) -> AsyncIterator[Pool]:
    """Keep connections to a store until the block ends; the first call opens the first one.

    Args:
        endpoints: where its servers are; earlier ones are tried first.
        dial: opens one connection.
        on_hello: told what the server said at the beginning of each connection, before any call is
            made on it. Synchronous.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        pool = Pool(endpoints, dial, nursery, on_hello)
        nursery.start_soon(pool.keep_time)
        try:
            yield pool
        except Exception as error:  # noqa: BLE001 - the nursery would make a group of it
            failure = error
        finally:
            pool.refuse_calls()
            with trio.CancelScope(shield=True):
                await pool.end_session()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _open(connection: Connection[OpenConnection]) -> OpenConnection:
    assert connection.channel is not None, "only an open connection is handed out"
    return connection.channel


def _closed() -> ClosedError:
    return ClosedError("the pool was closed: connect again")
