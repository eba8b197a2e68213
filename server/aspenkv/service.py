"""The server: a store, and who may use it. In-process clients call it directly."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from aspenkv.access import Grant
from aspenkv.admission import Admission
from aspenkv.contract import (
    Check,
    CommitResult,
    CreatedTicket,
    KeyValue,
    Op,
    ScanPage,
    Status,
    TicketInfo,
    Versioned,
    Watch,
)
from aspenkv.engine import Engine
from aspenkv.identity import ServerIdentity
from aspenkv.leases import LeaseTerms
from aspenkv.remote import RemoteSession
from aspenkv.store import EVERYTHING, Store
from aspenkv.watches import Watcher

__all__ = ["RemoteSession", "Service", "ServiceClient"]

_NS_PER_S: Final = 1_000_000_000


class Service:
    """Serves one engine: to clients of this process, and to those that show a ticket."""

    def __init__(
        self, engine: Engine, members: Sequence[str], *, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """Serve ``engine``; :meth:`load` comes first, and before any commit :meth:`start`.

        Args:
            engine: where everything is stored.
            members: what ``status`` calls the processes of the server.
            now_ns: the wall clock, in nanoseconds since 1970; tickets expire by it.
        """
        self.store: Final = Store(engine, members)
        self._admission = Admission(self.store, lambda: now_ns() / _NS_PER_S)

    async def load(self) -> None:
        """Load what an earlier process left.

        Raises:
            EngineError: the engine cannot be read.
        """
        await self.store.load()
        await self._admission.load()

    async def start(self) -> None:
        """Remove what died with the last server's process.

        Raises:
            EngineError: the engine cannot be written.
        """
        await self.store.start()

    async def run(self) -> None:
        """Remove leases and sessions as their time ends, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.store.run)
            nursery.start_soon(self._admission.run)

    def close(self) -> None:
        """Refuse all further calls and connections, and end all watches."""
        self.store.close()

    def connect(self, *, process_bound: bool = True) -> KeyValue:
        """Return a new client that calls this service directly, and may do everything.

        ``process_bound`` says that its user dies with this process, and its leases with them.
        """
        return ServiceClient(self, process_bound=process_bound)

    def status(self) -> Status:
        """See :meth:`aspenkv.contract.KeyValue.status`."""
        return self.store.status(self._admission.sessions.statuses(EVERYTHING))

    async def identity(self) -> ServerIdentity:
        """Return the server's number, key and certificate.

        They are made on first use, and on stable storage before anybody sees them, so that no
        ticket ever names a server that a power cut made forget who it was.

        Raises:
            EngineError: the engine cannot be read or written.
        """
        return await self._admission.identity()

    async def create_ticket(
        self, grant: Grant, *, label: str, expires_s: float | None
    ) -> CreatedTicket:
        """Make a ticket, on stable storage when this returns.

        Args:
            grant: what it allows.
            label: what it is for, for who lists the tickets.
            expires_s: for how many seconds from now it is good; None for ever.

        Raises:
            InvalidRequestError: the grant contradicts itself, or something is too long.
            TooManyError: there are TICKETS_MAX tickets.
            EngineError: the engine cannot be written.
        """
        return await self._admission.create_ticket(grant, label=label, lifetime_s=expires_s)

    def list_tickets(self) -> list[TicketInfo]:
        """Return all tickets but those that were revoked."""
        return self._admission.list_tickets()

    async def revoke_ticket(self, ticket_id: bytes) -> None:
        """End a ticket and its sessions at once; it stays so when this has returned.

        Raises:
            InvalidRequestError: there is no such ticket.
            EngineError: the engine cannot be written.
        """
        await self._admission.revoke_ticket(ticket_id)

    def authenticate(self, ticket_id: bytes, secret: bytes) -> Grant:
        """Return the rights of who knows a ticket's secret, in a time that tells nothing.

        Raises:
            TicketUnknownError: there is no such ticket, or its secret is another.
            TicketRevokedError: it was revoked.
            TicketExpiredError: its time is over.
        """
        return self._admission.authenticate(ticket_id, secret)

    async def attach(
        self, session_id: bytes, ticket_id: bytes, grant: Grant, client: str, address: str
    ) -> RemoteSession:
        """Let a connection in that was authenticated; its ``detach`` must follow when it is gone.

        Args:
            session_id: 16 bytes that the client drew, the same on all of its connections.
            ticket_id: the ticket it has shown.
            grant: what :meth:`authenticate` returned for it.
            client: what the client calls itself.
            address: where the connection comes from.

        Raises:
            InvalidRequestError: ``session_id`` or ``client`` is none.
            TicketError: the ticket is no longer good, or the session belongs to another one.
            BusyError: too many clients are connected, with this ticket or in all.
            TooManyError: this one has SESSION_CONNECTIONS_MAX connections.
            EngineError: the engine cannot be written.
        """
        session, is_new = await self._admission.attach(
            session_id, ticket_id, grant, client, address
        )
        return RemoteSession(self.store, self._admission, session, is_new=is_new)


class ServiceClient:
    """The direct carrier: the key-value interface as plain calls of the service."""

    def __init__(self, service: Service, *, process_bound: bool) -> None:
        """Make one client; see :meth:`Service.connect`."""
        self._service = service
        self._store = service.store
        self._process_bound = process_bound

    async def get(self, keys: Sequence[bytes], *, bulk: bool = False) -> list[Versioned | None]:
        """See :meth:`aspenkv.contract.KeyValue.get`."""
        return await self._store.get(keys, bulk=bulk)

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
        return await self._store.scan(
            start,
            end,
            limit=limit,
            keys_only=keys_only,
            reverse=reverse,
            continuation=continuation,
        )

    async def commit(self, checks: Sequence[Check], ops: Sequence[Op]) -> CommitResult:
        """See :meth:`aspenkv.contract.KeyValue.commit`."""
        return await self._store.commit(self, checks, ops)

    def watch(
        self,
        prefix: bytes,
        from_revision: int | None = None,
        *,
        values: bool = False,
        skip_own: bool = False,
    ) -> AbstractAsyncContextManager[Watch]:
        """See :meth:`aspenkv.contract.KeyValue.watch`."""
        return self._store.watch(prefix, from_revision, Watcher(self, values, skip_own))

    async def lease(self, ttl_s: float) -> int:
        """See :meth:`aspenkv.contract.KeyValue.lease`."""
        return await self._store.grant(LeaseTerms(ttl_s, self._process_bound, EVERYTHING))

    async def keepalive(self, lease: int) -> None:
        """See :meth:`aspenkv.contract.KeyValue.keepalive`."""
        self._store.keepalive(lease)

    async def revoke(self, lease: int) -> None:
        """See :meth:`aspenkv.contract.KeyValue.revoke`."""
        await self._store.revoke(lease)

    async def revision(self) -> int:
        """See :meth:`aspenkv.contract.KeyValue.revision`."""
        return self._store.revision()

    async def sync(self) -> None:
        """See :meth:`aspenkv.contract.KeyValue.sync`."""
        await self._store.sync()

    async def status(self) -> Status:
        """See :meth:`aspenkv.contract.KeyValue.status`."""
        return self._service.status()
