"""Clients with a ticket, as the listener lets them in."""

from __future__ import annotations

import secrets

from aspenkv.access import Grant
from aspenkv.contract import CreatedTicket
from aspenkv.service import RemoteSession, Service

A = Grant(b"fs:a:", can_write=True, is_admin=False)
B = Grant(b"fs:b:", can_write=True, is_admin=False)
READER = Grant(b"fs:a:", can_write=False, is_admin=False)
ADMIN = Grant(b"", can_write=True, is_admin=True)


async def make_ticket(
    service: Service, grant: Grant = A, expires_s: float | None = None
) -> CreatedTicket:
    return await service.create_ticket(grant, label="a test's", expires_s=expires_s)


async def enter(
    service: Service,
    ticket: CreatedTicket,
    session: bytes | None = None,
    *,
    client: str = "host",
    address: str = "[::1]:1",
) -> RemoteSession:
    """Come in by a new connection, of a session of its own if none is named."""
    grant = service.authenticate(*ticket)
    session = session or secrets.token_bytes(16)
    return await service.attach(session, ticket.ticket_id, grant, client, address)


async def join(service: Service, grant: Grant = A) -> RemoteSession:
    """Come in with a ticket of one's own."""
    return await enter(service, await make_ticket(service, grant))
