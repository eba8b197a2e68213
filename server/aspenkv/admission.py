"""Who may come in: the server's identity, its tickets, and the sessions of its clients.

Lock: ``_changing`` is held by the one task that changes what is stored of them, for those commits;
it is taken before the store's own lock. What is in memory follows what is stored.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

import trio

from aspenkv.access import Grant
from aspenkv.contract import CreatedTicket, TicketInfo
from aspenkv.errors import (
    AspenKvError,
    ClosedError,
    EngineError,
    InvalidRequestError,
    TicketError,
    TicketRevokedError,
    TicketUnknownError,
    TooManyError,
)
from aspenkv.identity import (
    IDENTITY_NAME,
    ServerIdentity,
    decode_identity,
    encode_identity,
    new_identity,
)
from aspenkv.limits import (
    CLIENT_NAME_BYTES_MAX,
    SERVER_BYTES_MAX,
    SERVER_REQUESTS_MAX,
    SESSION_CONNECTIONS_MAX,
    SESSION_REMOVAL_RETRY_S,
    TICKET_CHECK_S,
)
from aspenkv.sessions import (
    SESSION_ID_BYTES,
    SESSION_PREFIX,
    SLOT_PREFIX,
    Budget,
    ClientSession,
    SessionTable,
)
from aspenkv.store import Store
from aspenkv.ticket_table import TICKET_PREFIX, TicketTable, new_ticket, removal_record
from aspenkv.tickets import SECRET_BYTES, TICKET_ID_BYTES

_log = logging.getLogger(__name__)


class Admission:
    """Knows tickets and sessions, and stores them as server records."""

    def __init__(self, store: Store, now_s: Callable[[], float]) -> None:
        """Store in ``store``; ``now_s`` returns seconds since 1970. :meth:`load` comes first."""
        self._store = store
        self._now_s = now_s
        self._changing = trio.Lock()
        self._changed = trio.Event()
        self._identity: ServerIdentity | None = None
        self._tickets = TicketTable()
        self.sessions = SessionTable()
        self.budget = Budget(SERVER_REQUESTS_MAX, SERVER_BYTES_MAX)

    async def load(self) -> None:
        """Load tickets and sessions, and keep what the latter may have been promised last.

        Raises:
            EngineError: the engine cannot be read.
        """
        self._tickets.load(await self._store.server_records(TICKET_PREFIX))
        self.sessions.load(
            await self._store.server_records(SESSION_PREFIX),
            await self._store.server_records(SLOT_PREFIX),
            trio.current_time(),
        )
        for session in self.sessions:
            ticket = self._tickets.get(session.ticket_id)
            if ticket is not None:  # else its client is not served any more
                self._store.assume_delegation(session, ticket.grant.prefix)

    async def run(self) -> None:
        """End the sessions of expired tickets, and remove those that are over, until closed."""
        while True:
            self._changed = trio.Event()
            with trio.move_on_at(self._next_deadline_s()):
                await self._changed.wait()
            self._end_unticketed()
            try:
                async with self._changing:
                    for session in self.sessions.over(trio.current_time()):
                        await self._remove(session, "it was idle for too long")
            except ClosedError:
                return
            except EngineError:
                _log.exception("sessions that are over could not be removed; trying again")
                await trio.sleep(SESSION_REMOVAL_RETRY_S)

    async def identity(self) -> ServerIdentity:
        """Return the server's identity, made and synced on first use."""
        async with self._changing:
            if self._identity is None:
                stored = await self._store.server_records(IDENTITY_NAME)
                if stored:
                    identity = decode_identity(stored[0][1])
                else:
                    identity = new_identity()
                    record = {IDENTITY_NAME: encode_identity(identity)}
                    await self._store.write_server_records(record)
                await self._store.sync()
                self._identity = identity
            return self._identity

    async def create_ticket(
        self, grant: Grant, *, label: str, lifetime_s: float | None
    ) -> CreatedTicket:
        """Make a ticket, on stable storage when this returns."""
        now_s = self._now_s()
        created = CreatedTicket(
            secrets.token_bytes(TICKET_ID_BYTES), secrets.token_bytes(SECRET_BYTES)
        )
        ticket = new_ticket(*created, grant, label=label, lifetime_s=lifetime_s, now_s=now_s)
        async with self._changing:
            dropped = self._tickets.to_drop(now_s)
            records = ticket.record()
            if dropped is not None:
                records |= removal_record(dropped)
            await self._store.write_server_records(records)
            if dropped is not None:
                self._tickets.remove(dropped)
            self._tickets.insert(ticket)
        await self._store.sync()
        return created

    def list_tickets(self) -> list[TicketInfo]:
        """Return all tickets but those that were revoked."""
        return [ticket.info() for ticket in self._tickets if not ticket.is_revoked]

    async def revoke_ticket(self, ticket_id: bytes) -> None:
        """Make a ticket useless, on stable storage when this returns, and end its sessions."""
        async with self._changing:
            ticket = self._tickets.get(ticket_id)
            if ticket is None:
                raise InvalidRequestError(f"there is no ticket {ticket_id.hex()}: list them")
            if not ticket.is_revoked:
                revoked = ticket._replace(is_revoked=True)
                await self._store.write_server_records(revoked.record())
                self._tickets.insert(revoked)
            self._end_unticketed()
        await self._store.sync()

    def authenticate(self, ticket_id: bytes, secret: bytes) -> Grant:
        """Return the rights of who knows a ticket's secret."""
        return self._tickets.authenticated(ticket_id, secret, self._now_s()).grant

    async def attach(
        self, session_id: bytes, ticket_id: bytes, grant: Grant, client: str, address: str
    ) -> tuple[ClientSession, bool]:
        """Count a connection more of a session, and tell whether it is new.

        Raises:
            InvalidRequestError: the number of the session, or its name, is none.
            TicketError: the ticket is no longer good, or the session another ticket's.
            BusyError: there is no room for another session.
            TooManyError: the session has SESSION_CONNECTIONS_MAX connections.
        """
        if len(session_id) != SESSION_ID_BYTES:
            raise InvalidRequestError(f"a session's number has {SESSION_ID_BYTES} bytes")
        if not client.isprintable() or len(client.encode()) > CLIENT_NAME_BYTES_MAX:
            raise InvalidRequestError(
                f"a client's name is up to {CLIENT_NAME_BYTES_MAX} bytes of printable text"
            )
        async with self._changing:
            self._store.check_open()
            ticket = self._tickets.get(ticket_id)
            if ticket is None:
                raise TicketUnknownError("the server does not know the ticket: ask for a new one")
            ticket.check(self._now_s())
            session = self.sessions.get(session_id)
            if session is not None and session.failure is not None:
                await self._remove(session)
                session = None
            is_new = session is None
            if session is None:
                session = await self._new_session(session_id, ticket_id, grant)
            elif session.ticket_id != ticket_id:
                raise TicketError("the session belongs to another ticket: use one of your own")
            elif session.connections >= SESSION_CONNECTIONS_MAX:
                raise TooManyError(
                    f"{SESSION_CONNECTIONS_MAX} connections of yours are open: close some"
                )
            session.grant, session.client, session.address = grant, client, address
            session.connections += 1
        self._changed.set()
        return session, is_new

    def detach(self, session: ClientSession) -> None:
        """Count a connection less."""
        session.connections -= 1
        assert session.connections >= 0, "a connection is counted once"
        session.idle_since_s = trio.current_time()
        self._changed.set()

    async def end(self, session: ClientSession) -> None:
        """End a session at its client's wish. If that fails, it is tried again in the background.

        Raises:
            EngineError: its records cannot be removed now.
        """
        session.end(ClosedError("the client has ended its session"))
        self._changed.set()
        async with self._changing:
            if self.sessions.get(session.id) is session:
                await self._remove(session)

    async def _new_session(
        self, session_id: bytes, ticket_id: bytes, grant: Grant
    ) -> ClientSession:
        now_s = trio.current_time()
        evicted = self.sessions.to_evict(ticket_id, now_s)
        if evicted is not None:
            await self._remove(evicted, "it made room for others")
        session = ClientSession(session_id, ticket_id, now_s=now_s)
        if grant.can_write:
            await self._store.write_server_records(session.record())
        self.sessions.insert(session)
        return session

    async def _remove(self, session: ClientSession, why: str = "") -> None:
        """Remove a session and its records, in one commit; it has ended before."""
        session.end(ClosedError(f"the session has ended: {why}"))
        await self._store.write_server_records(session.removal_records())
        self.sessions.remove(session)

    def _end_unticketed(self) -> None:
        """End the sessions whose ticket is no longer good, and let :meth:`run` remove them."""
        now_s = self._now_s()
        for session in self.sessions:
            if session.failure is None:
                failure = self._ticket_failure(session.ticket_id, now_s)
                if failure is not None:
                    session.end(failure)
                    self._changed.set()

    def _ticket_failure(self, ticket_id: bytes, now_s: float) -> AspenKvError | None:
        ticket = self._tickets.get(ticket_id)
        if ticket is None:
            return TicketRevokedError("the ticket was revoked: ask for a new one")
        try:
            ticket.check(now_s)
        except TicketError as error:
            return error
        return None

    def _next_deadline_s(self) -> float:
        """Return when :meth:`run` has something to do, on trio's clock."""
        deadline_s = self.sessions.next_deadline_s()
        now_s = self._now_s()
        for session in self.sessions:
            ticket = self._tickets.get(session.ticket_id)
            if ticket is not None and ticket.expires_s is not None:
                wait_s = min(max(0.0, ticket.expires_s - now_s), TICKET_CHECK_S)
                deadline_s = min(deadline_s, trio.current_time() + wait_s)
        return deadline_s
