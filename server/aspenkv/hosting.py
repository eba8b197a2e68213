"""A server with an address: its listener over an open service, and the first ticket for it.

The ticket of who owns the data directory lies in it, as :data:`ADMIN_TICKET_NAME`. The port that
was used last is tried first, so that tickets outlive a restart.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio

from aspenkv.access import Grant
from aspenkv.errors import TicketError
from aspenkv.listen import Listener
from aspenkv.quic import QuicServer, bind_sockets, serve_quic
from aspenkv.service import Service
from aspenkv.tickets import Endpoint, Ticket, format_ticket, parse_ticket

ADMIN_TICKET_NAME: Final = "admin.ticket"

_ADMIN_LABEL: Final = "admin.ticket of the data directory"
_TICKET_MODE: Final = 0o600
_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised, not bound to


class Hosted(NamedTuple):
    """Where a server listens, and the file with the ticket that allows everything on it."""

    endpoints: tuple[Endpoint, ...]
    ticket_file: Path


@asynccontextmanager
async def open_listener(
    service: Service, data_dir: Path, listen: Endpoint, advertise: Sequence[Endpoint] = ()
) -> AsyncIterator[Hosted]:
    """Listen for clients until the block ends, then let requests under way end first.

    Args:
        service: what answers them.
        data_dir: where the ticket of its owner is kept.
        listen: where; port 0 takes the port used last, or else one that the kernel picks.
        advertise: how clients reach it, if not by the address it listens on.

    Raises:
        OSError: the address cannot be used, or the ticket's file not written.
        EngineError: the store failed.
    """
    identity = await service.identity()
    ticket_file = data_dir / ADMIN_TICKET_NAME
    known = _stored_ticket(ticket_file)
    with bind_sockets(listen.host, _port(listen, known)) as sockets:
        endpoints = tuple(advertise) or tuple(
            Endpoint(_reachable(listen.host), each.getsockname()[1]) for each in sockets
        )
        await _offer_ticket(service, ticket_file, known, endpoints, identity.fingerprint)
        listener = Listener(service)
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.run)
            server: QuicServer = await nursery.start(
                partial(serve_quic, sockets, identity, listener)
            )
            try:
                yield Hosted(endpoints, ticket_file)
            finally:
                server.stop_accepting()
                with trio.CancelScope(shield=True):
                    await listener.drain()
                nursery.cancel_scope.cancel()


def _stored_ticket(path: Path) -> Ticket | None:
    """Return the ticket that an earlier server left; None if there is none that can be read."""
    try:
        return parse_ticket(path.read_text(encoding="ascii"))
    except (FileNotFoundError, UnicodeDecodeError, TicketError):
        return None


def _port(listen: Endpoint, known: Ticket | None) -> int:
    """Return the port to ask for: with none given the one used last, if nobody else has it."""
    if listen.port or known is None:
        return listen.port
    port = known.endpoints[0].port
    try:
        with bind_sockets(listen.host, port):
            return port
    except OSError:
        return 0


def _reachable(host: str) -> str:
    """Return the name by which others may reach a server that listens on ``host``."""
    return socket.getfqdn() if host in _WILDCARDS else host


async def _offer_ticket(
    service: Service,
    path: Path,
    known: Ticket | None,
    endpoints: tuple[Endpoint, ...],
    fingerprint: bytes,
) -> None:
    """Have a ticket in the file that is valid and names these endpoints; make one if need be.

    Who may write the file owns the data, so a lost or damaged ticket is replaced.
    """
    if known is not None and known.fingerprint == fingerprint:
        try:
            service.authenticate(known.ticket_id, known.secret)
        except TicketError:
            known = None
    else:
        known = None
    if known is None:
        for info in service.list_tickets():
            if info.label == _ADMIN_LABEL:
                await service.revoke_ticket(info.ticket_id)
        made = await service.create_ticket(
            Grant(b"", can_write=True, is_admin=True), label=_ADMIN_LABEL, expires_s=None
        )
        known = Ticket(endpoints, fingerprint, made.ticket_id, made.secret)
    elif known.endpoints == endpoints:
        return
    _write_private(path, format_ticket(known._replace(endpoints=endpoints)) + "\n")


def _write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only at every moment."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _TICKET_MODE)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
