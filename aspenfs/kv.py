"""The key-value client over a network: calls that are tried again until their time is over.

Every call has one deadline for all its tries and waits. Reading again is harmless; so are syncing
and keeping a lease. A commit holds a slot over all its tries (:mod:`aspenfs.slots`), so that it is
carried out at most once, whatever was lost on the way, and by whichever server of the store.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, NamedTuple

import trio

from aspenfs.acknowledged import Acknowledged, Loss, ServerProcess
from aspenfs.connections import Kind
from aspenfs.limits import (
    KV_RETRY_FIRST_S,
    KV_RETRY_MAX_S,
    KV_TIMEOUT_S,
    POOL_BULK_COMMIT_BYTES,
)
from aspenfs.pool import Dial, OpenConnection, Pool, PooledWatch, PoolStatistics, open_pool
from aspenfs.slots import Slots
from aspenkv.contract import Check, CommitResult, Op, Patch, Put, ScanPage, Status, Versioned, Watch
from aspenkv.errors import (
    AspenKvError,
    BusyError,
    ConnectionLostError,
    EngineError,
    InvalidRequestError,
    LeaseNotFoundError,
    OutcomeUnknownError,
    RemoteProtocolError,
    TooManyError,
    UnavailableError,
    WatchGapError,
)
from aspenkv.limits import BULK_GET_KEYS_MAX
from aspenkv.protocol import (
    Commit,
    Get,
    GrantLease,
    HelloReply,
    Keepalive,
    OpenWatch,
    ReadRevision,
    ReadStatus,
    Request,
    Revoke,
    Scan,
    Sync,
)
from aspenkv.tickets import Endpoint

log = logging.getLogger(__name__)

_ANSWERS: Final = (InvalidRequestError, LeaseNotFoundError, TooManyError, EngineError)
"""Errors that a server can only answer to a commit after it has looked into its slot."""


class KvStatistics(NamedTuple):
    """The client at one moment, and counts since it was opened."""

    pool: PoolStatistics
    slots_in_use: int
    retries: int
    commits_in_doubt: int
    losses: int


class _Call:
    """One call: its deadline, and what its tries so far may have done."""

    __slots__ = ("deadline_s", "doubt", "pause_s")

    def __init__(self, timeout_s: float) -> None:
        self.deadline_s = trio.current_time() + timeout_s
        self.pause_s = KV_RETRY_FIRST_S
        self.doubt: int | None = None
        """The session epoch in which a try may have been carried out, without an answer."""

    async def pause(self) -> bool:
        """Wait before the next try, longer each time; return False if there is no time for one."""
        pause_s = self.pause_s * (1 + random.random()) / 2  # noqa: S311 - no secret
        if trio.current_time() + pause_s >= self.deadline_s:
            return False
        self.pause_s = min(2 * self.pause_s, KV_RETRY_MAX_S)
        await trio.sleep(pause_s)
        return True


class PooledKeyValue:
    """The key-value contract over a pool of connections. Made by :func:`open_kv`.

    Beside what the contract names, every call raises:

    - UnavailableError: no answer came within ``timeout_s``, and nothing was changed.
    - OutcomeUnknownError (``commit`` only): no answer came, and it may have been carried out.
    - TicketError, ServerKeyError, ProtocolVersionError: no server will ever serve this client.
    - AccessDeniedError: the ticket does not give the right to do this.
    - ClosedError: the client was closed.
    """

    def __init__(
        self,
        pool: Pool,
        slots: Slots,
        acknowledged: Acknowledged,
        *,
        timeout_s: float,
    ) -> None:
        """Take the parts that :func:`open_kv` has put together."""
        self._pool = pool
        self._slots = slots
        self._acknowledged = acknowledged
        self._timeout_s = timeout_s
        self._retries = 0
        self._commits_in_doubt = 0

    @property
    def is_connected(self) -> bool:
        """Whether a server can be asked right now; if not, calls wait for one."""
        return self._pool.is_connected

    async def hello(self) -> HelloReply:
        """Return what a server says of itself and of the ticket's rights, once one answers."""
        call = self._call()
        while True:
            try:
                async with self._pool.connection(Kind.SMALL, call.deadline_s) as connection:
                    return connection.channel.hello
            except (ConnectionLostError, UnavailableError, BusyError) as error:
                await self._pause(call, error)

    def statistics(self) -> KvStatistics:
        """Return what this client does and has done."""
        return KvStatistics(
            self._pool.statistics(),
            slots_in_use=self._slots.in_use,
            retries=self._retries,
            commits_in_doubt=self._commits_in_doubt,
            losses=self._acknowledged.losses,
        )

    async def get(self, keys: Sequence[bytes], *, bulk: bool = False) -> list[Versioned | None]:
        """See :meth:`aspenkv.contract.KeyValue.get`.

        Of more than BULK_GET_KEYS_MAX keys, a bulk get reads each so many at a moment of their own.
        """
        call = self._call()
        if not bulk:
            found: list[Versioned | None] = await self._ask(Get(keys, bulk), call)
            return found
        found = []
        for first in range(0, max(1, len(keys)), BULK_GET_KEYS_MAX):
            part = keys[first : first + BULK_GET_KEYS_MAX]
            found += await self._ask(Get(part, bulk), call, Kind.BULK)
        return found

    async def scan(
        self,
        start: bytes,
        end: bytes,
        *,
        limit: int,
        keys_only: bool = False,
        reverse: bool = False,
        continuation: bytes | None = None,
    ) -> ScanPage:
        """See :meth:`aspenkv.contract.KeyValue.scan`."""
        page: ScanPage = await self._ask(
            Scan(start, end, limit, keys_only, reverse, continuation), self._call()
        )
        return page

    async def commit(self, checks: Sequence[Check], ops: Sequence[Op]) -> CommitResult:
        """See :meth:`aspenkv.contract.KeyValue.commit`.

        When it is cancelled, it may still be carried out, but not after a later commit of this
        client has taken its slot.
        """
        call = self._call()
        kind = Kind.BULK if _data_bytes(ops) > POOL_BULK_COMMIT_BYTES else Kind.SMALL
        async with self._slots.take(call.deadline_s) as slot:
            try:
                return await self._commit(Commit(checks, ops, slot), call, kind)
            except _ANSWERS:
                raise
            except AspenKvError as error:
                if call.doubt is None:
                    raise
                self._commits_in_doubt += 1
                raise OutcomeUnknownError(
                    f"a commit was sent, but whether it was carried out is not known: {error}"
                ) from error

    @asynccontextmanager
    async def watch(
        self,
        prefix: bytes,
        from_revision: int | None = None,
        *,
        values: bool = False,
        skip_own: bool = False,
    ) -> AsyncIterator[Watch]:
        """See :meth:`aspenkv.contract.KeyValue.watch`.

        It lives on one connection. When that is lost, its iterator raises UnavailableError; a new
        watch from its ``revision`` goes on without a gap, if the server's history reaches there,
        and if a power cut did not replace that history by another.
        ``skip_own`` does not know the commits from before a server has forgotten this client.
        """
        request = OpenWatch(prefix, from_revision, values, skip_own)
        call = self._call()
        async with AsyncExitStack() as stack:
            watch = await self._open_watch(stack, request, call)
            if from_revision is not None and self._acknowledged.is_given_twice(from_revision):
                raise WatchGapError(
                    f"the server lost commits up to revision {from_revision}, as after a power "
                    "cut: read anew"
                )
            try:
                yield watch
            finally:
                self._acknowledged.seen(_process(watch.hello), watch.revision)

    async def lease(self, ttl_s: float) -> int:
        """See :meth:`aspenkv.contract.KeyValue.lease`.

        If an answer is lost, there is one more lease that nobody knows; it lapses by itself.
        """
        lease: int = await self._ask(GrantLease(ttl_s), self._call())
        return lease

    async def keepalive(self, lease: int) -> None:
        """See :meth:`aspenkv.contract.KeyValue.keepalive`."""
        await self._ask(Keepalive(lease), self._call())

    async def revoke(self, lease: int) -> None:
        """See :meth:`aspenkv.contract.KeyValue.revoke`."""
        call = self._call()
        try:
            await self._ask(Revoke(lease), call)
        except LeaseNotFoundError:
            if call.doubt is None:  # else an earlier try has ended it, and its answer was lost
                raise

    async def revision(self) -> int:
        """See :meth:`aspenkv.contract.KeyValue.revision`."""
        revision: int = await self._ask(ReadRevision(), self._call())
        return revision

    async def sync(self) -> None:
        """See :meth:`aspenkv.contract.KeyValue.sync`.

        Raises:
            EngineError: a power cut of the server took commits that it had acknowledged to this
                client. Said once per loss; what is left is on stable storage.
        """
        await self._ask(Sync(), self._call())
        loss = self._acknowledged.take_loss()
        if loss is not None:
            raise EngineError(_describe(loss))

    async def status(self) -> Status:
        """See :meth:`aspenkv.contract.KeyValue.status`."""
        status: Status = await self._ask(ReadStatus(), self._call())
        return status

    # --- tries ------------------------------------------------------------------------------------

    def _call(self) -> _Call:
        return _Call(self._timeout_s)

    async def _ask(self, request: Request, call: _Call, kind: Kind = Kind.SMALL) -> Any:  # noqa: ANN401 - each request has its own
        """Return the reply to a request that may be carried out more than once."""
        while True:
            try:
                async with self._pool.connection(kind, call.deadline_s) as connection:
                    try:
                        return await connection.channel.call(request, call.deadline_s)
                    except ConnectionLostError:
                        call.doubt = connection.session_epoch
                        raise
            except (ConnectionLostError, UnavailableError, BusyError) as error:
                await self._pause(call, error)

    async def _commit(self, request: Commit, call: _Call, kind: Kind) -> CommitResult:
        while True:
            try:
                async with self._pool.connection(kind, call.deadline_s) as connection:
                    return await self._commit_on(connection, request, call)
            except (ConnectionLostError, UnavailableError, BusyError) as error:
                await self._pause(call, error)

    async def _commit_on(
        self, connection: OpenConnection, request: Commit, call: _Call
    ) -> CommitResult:
        """Try a commit on one connection.

        Raises:
            ConnectionLostError: it may have been carried out; try again in the same slot.
            AspenKvError: what the server answered.
        """
        if call.doubt not in {None, connection.session_epoch}:
            raise OutcomeUnknownError("the server no longer knows this client nor its slots")
        server = _process(connection.channel.hello)
        try:
            result: CommitResult = await connection.channel.call(request, call.deadline_s)
        except (ConnectionLostError, RemoteProtocolError):
            call.doubt = connection.session_epoch
            raise
        except OutcomeUnknownError as error:
            call.doubt = connection.session_epoch
            raise BusyError(f"the server cannot say what became of the commit: {error}") from error
        if request.ops and result.failed_check is None:
            _log_loss(self._acknowledged.committed(server, result.revision))
        return result

    async def _open_watch(
        self, stack: AsyncExitStack, request: OpenWatch, call: _Call
    ) -> PooledWatch:
        while True:
            try:
                watch = self._pool.watch(request, call.deadline_s)
                return await stack.enter_async_context(watch)
            except (ConnectionLostError, UnavailableError, BusyError) as error:
                await self._pause(call, error)

    async def _pause(self, call: _Call, error: AspenKvError) -> None:
        """Wait before the next try.

        Raises:
            UnavailableError: no time is left for one.
        """
        if not await call.pause():
            raise UnavailableError(f"given up after {self._timeout_s:g} s: {error}") from error
        self._retries += 1


@asynccontextmanager
async def open_kv(
    endpoints: Sequence[Endpoint], dial: Dial, *, timeout_s: float = KV_TIMEOUT_S
) -> AsyncIterator[PooledKeyValue]:
    """Open a client of the store whose servers are at ``endpoints``, until the block ends.

    Args:
        endpoints: where its servers are; earlier ones are tried first.
        dial: opens one connection.
        timeout_s: how long a call may take, with all its tries; and the first connection.

    Raises:
        UnavailableError: no server could be reached in time.
        TicketError, ServerKeyError, ProtocolVersionError: none will ever serve this client.
    """
    slots = Slots()
    acknowledged = Acknowledged()

    def on_hello(hello: HelloReply) -> None:
        slots.resize(hello.slots_max)
        _log_loss(acknowledged.met(_process(hello)))

    async with open_pool(endpoints, dial, on_hello=on_hello) as pool:
        kv = PooledKeyValue(pool, slots, acknowledged, timeout_s=timeout_s)
        await kv.hello()
        yield kv


def _process(hello: HelloReply) -> ServerProcess:
    return ServerProcess(hello.server_id, hello.started_revision)


def _log_loss(loss: Loss | None) -> None:
    if loss is not None:
        log.critical("%s", _describe(loss))


def _describe(loss: Loss) -> str:
    return (
        f"the server lost commits that were not synced (revisions {loss.kept_revision + 1} to "
        f"{loss.lost_revision}), as after a power cut: look at what was written last"
    )


def _data_bytes(ops: Sequence[Op]) -> int:
    """Return how many bytes of values a commit carries."""
    size_bytes = 0
    for op in ops:
        if isinstance(op, Put):
            size_bytes += len(op.value)
        elif isinstance(op, Patch):
            size_bytes += len(op.data)
    return size_bytes
