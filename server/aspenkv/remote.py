"""What a client from the network may call: the key-value calls, within its ticket's rights.

Its calls trust nothing that the client says. A server serves each request in this frame::

    with session.request(len(frame)) as work:
        ...call, encode the reply...
        work.add(len(reply))
        ...send it...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

import trio

from aspenkv.access import Access, Grant
from aspenkv.admission import Admission
from aspenkv.contract import (
    Check,
    CommitResult,
    CreatedTicket,
    Op,
    ScanPage,
    SlotUse,
    Status,
    TicketInfo,
    Versioned,
    Watch,
)
from aspenkv.engine import ServerRecords
from aspenkv.errors import AspenKvError, ClosedError, TooManyError
from aspenkv.leases import LeaseTerms
from aspenkv.limits import GET_BYTES_MAX, SESSION_WATCHES_MAX
from aspenkv.sessions import Budget, ClientSession
from aspenkv.slots import Answer, Step
from aspenkv.store import Store
from aspenkv.watches import Watcher


class Work:
    """A request under way, from its arrival until its reply was sent."""

    __slots__ = ("_budgets", "_bytes")

    def __init__(self, budgets: tuple[Budget, ...], size_bytes: int) -> None:
        """Make a request of ``size_bytes``, not counted yet."""
        self._budgets = budgets
        self._bytes = size_bytes

    def __enter__(self) -> Self:
        """Count the request.

        Raises:
            BusyError: too many are under way, of this client or of all.
        """
        for budget in self._budgets:
            budget.check(1, self._bytes)
        for budget in self._budgets:
            budget.take(1, self._bytes)
        return self

    def add(self, size_bytes: int) -> None:
        """Count a reply that waits to be sent.

        Raises:
            BusyError: too much is under way. Answer that in place of what was read; the answer to
                a commit is small enough not to be counted.
        """
        for budget in self._budgets:
            budget.check(0, size_bytes)
        for budget in self._budgets:
            budget.take(0, size_bytes)
        self._bytes += size_bytes

    def __exit__(self, *_: object) -> None:
        """Count the request no more."""
        for budget in self._budgets:
            budget.take(-1, -self._bytes)


class RemoteSession:
    """One connection of a client session. Its calls are those of the key-value contract.

    They also raise AccessDeniedError for what the ticket does not allow, and once the session has
    ended, whatever ended it: ClosedError, TicketRevokedError, TicketExpiredError. Then the
    connection should be closed, too.
    """

    def __init__(
        self, store: Store, admission: Admission, session: ClientSession, *, is_new: bool
    ) -> None:
        """Stand for a connection that ``admission`` has counted."""
        assert session.grant is not None, "a connection has shown its ticket"
        self.is_new: Final = is_new
        self._store = store
        self._admission = admission
        self._session = session
        self._access = Access(session.grant)
        self._prefix = session.grant.prefix
        self._budgets = (session.budget, admission.budget)
        self._is_attached = True

    @property
    def grant(self) -> Grant:
        """The rights of the client's ticket."""
        return self._access.grant

    @property
    def started_revision(self) -> int:
        """The newest revision that the server found when it started."""
        return self._store.started_revision

    @property
    def ended(self) -> trio.Event:
        """Set when the session is over, whatever connections it still has."""
        return self._session.ended

    @property
    def failure(self) -> AspenKvError | None:
        """Why the session is over; None while it is not."""
        return self._session.failure

    def request(self, size_bytes: int) -> Work:
        """Return a context that counts a request of ``size_bytes`` as under way."""
        return Work(self._budgets, size_bytes)

    def detach(self) -> None:
        """Say that the connection is gone. The session stays for SESSION_TTL_S."""
        if self._is_attached:
            self._is_attached = False
            self._admission.detach(self._session)

    async def end(self) -> None:
        """End the session, at its client's wish, on all of its connections."""
        self._store.give_back_delegations(self._session)
        await self._admission.end(self._session)

    async def get(self, keys: Sequence[bytes], *, bulk: bool = False) -> list[Versioned | None]:
        """See :meth:`aspenkv.contract.KeyValue.get`.

        Raises:
            InvalidRequestError: the values together have more than GET_BYTES_MAX bytes.
        """
        self._session.check()
        self._access.check_keys(keys)
        return await self._store.get(keys, bulk=bulk, bytes_max=GET_BYTES_MAX)

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
        self._session.check()
        self._access.check_range(start, end)
        return await self._store.scan(
            start,
            end,
            limit=limit,
            keys_only=keys_only,
            reverse=reverse,
            continuation=continuation,
        )

    async def commit(
        self, checks: Sequence[Check], ops: Sequence[Op], slot: SlotUse | None = None
    ) -> CommitResult:
        """See :meth:`aspenkv.contract.KeyValue.commit`.

        With a slot it is carried out once, however often and on whatever connection it comes, also
        after the server was started again; each time it gets the answer of the first.

        Raises:
            StaleSequenceError: the slot has moved on.
        """
        self._session.check()
        self._access.check_commit(checks, ops)
        if slot is None:
            return await self._store.commit(self._session, checks, ops, prefix=self._prefix)
        return await self._commit_once(checks, ops, slot)

    @asynccontextmanager
    async def watch(
        self,
        prefix: bytes,
        from_revision: int | None = None,
        *,
        values: bool = False,
        skip_own: bool = False,
    ) -> AsyncIterator[Watch]:
        """See :meth:`aspenkv.contract.KeyValue.watch`."""
        session = self._session
        session.check()
        self._access.check_watch(prefix)
        if len(session.watches) >= SESSION_WATCHES_MAX:
            raise TooManyError(f"{SESSION_WATCHES_MAX} watches of yours are open: close some")
        watcher = Watcher(session, values, skip_own, may_be_alone=self.grant.can_write)
        async with self._store.watch(prefix, from_revision, watcher) as watch:
            session.watches.add(watch.fail)
            try:
                yield watch
            finally:
                session.watches.discard(watch.fail)

    async def lease(self, ttl_s: float) -> int:
        """See :meth:`aspenkv.contract.KeyValue.lease`."""
        self._session.check()
        self._access.check_write()
        return await self._store.grant(LeaseTerms(ttl_s, process_bound=False, prefix=self._prefix))

    async def keepalive(self, lease: int) -> None:
        """See :meth:`aspenkv.contract.KeyValue.keepalive`."""
        self._session.check()
        self._access.check_write()
        self._store.keepalive(lease, prefix=self._prefix)

    async def revoke(self, lease: int) -> None:
        """See :meth:`aspenkv.contract.KeyValue.revoke`."""
        self._session.check()
        self._access.check_write()
        await self._store.revoke(lease, prefix=self._prefix)

    async def revision(self) -> int:
        """See :meth:`aspenkv.contract.KeyValue.revision`."""
        self._session.check()
        return self._store.revision()

    async def sync(self) -> None:
        """See :meth:`aspenkv.contract.KeyValue.sync`."""
        self._session.check()
        await self._store.sync()

    async def status(self) -> Status:
        """See :meth:`aspenkv.contract.KeyValue.status`; what others have is not in it."""
        self._session.check()
        sessions = self._admission.sessions.statuses(self._prefix)
        return self._store.status(sessions, prefix=self._prefix)

    async def create_ticket(
        self, grant: Grant, *, label: str, expires_s: float | None
    ) -> CreatedTicket:
        """See :meth:`aspenkv.service.Service.create_ticket`."""
        self._session.check()
        self._access.check_admin()
        return await self._admission.create_ticket(grant, label=label, lifetime_s=expires_s)

    async def list_tickets(self) -> list[TicketInfo]:
        """See :meth:`aspenkv.service.Service.list_tickets`."""
        self._session.check()
        self._access.check_admin()
        return self._admission.list_tickets()

    async def revoke_ticket(self, ticket_id: bytes) -> None:
        """See :meth:`aspenkv.service.Service.revoke_ticket`."""
        self._session.check()
        self._access.check_admin()
        await self._admission.revoke_ticket(ticket_id)

    async def _commit_once(
        self, checks: Sequence[Check], ops: Sequence[Op], use: SlotUse
    ) -> CommitResult:
        session = self._session
        while (step := session.slots.begin(use)) is Step.WAIT:
            await session.slot_freed.setdefault(use.slot, trio.Event()).wait()
            session.check()
        if step is not Step.EXECUTE:
            return _answered(step)

        def receipt(revision: int) -> ServerRecords:
            session.check()  # it may have ended while others committed
            return session.slot_record(use, revision)

        answer: Answer | None = None
        try:
            answer = await self._store.commit(
                session, checks, ops, prefix=self._prefix, receipt=receipt
            )
        except ClosedError:
            raise
        except AspenKvError as error:
            answer = error
            raise
        finally:
            session.slots.finish(use, answer)
            freed = session.slot_freed.pop(use.slot, None)
            if freed is not None:
                freed.set()
        return answer


def _answered(answer: Answer) -> CommitResult:
    """Return or raise again what a commit was answered."""
    if isinstance(answer, AspenKvError):
        raise type(answer)(*answer.args)
    return answer
