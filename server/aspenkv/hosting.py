"""A server with an address: its listener over an open service, and the first ticket for it.

The ticket of who owns the data directory lies in it, as :data:`ADMIN_TICKET_NAME`. The port that
was used last is tried first, so that tickets outlive a restart.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import trio

from aspenkv.access import Grant
from aspenkv.errors import InvalidRequestError, TicketError
from aspenkv.identity import ServerIdentity
from aspenkv.limits import TICKET_TEXT_BYTES_MAX
from aspenkv.listen import Listener
from aspenkv.quic import QuicServer, UdpSocket, bind_sockets, serve_quic
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
        InvalidRequestError: no ticket can name the addresses by which clients reach it.
        EngineError: the store failed.
    """
    identity = await service.identity()
    ticket_file = data_dir / ADMIN_TICKET_NAME
    known = _stored_ticket(ticket_file)
    with _bound(listen, known) as sockets:
        # All sockets of a name have one port.
        here = Endpoint(_reachable(listen.host), sockets[0].getsockname()[1])
        endpoints = tuple(advertise) or (here,)
        await _offer_ticket(service, ticket_file, known, endpoints, identity.fingerprint)
        async with _answering(Listener(service), sockets, identity):
            yield Hosted(endpoints, ticket_file)


@asynccontextmanager
async def _answering(
    listener: Listener, sockets: Sequence[UdpSocket], identity: ServerIdentity
) -> AsyncIterator[None]:
    """Answer clients until the block ends, and then until what is under way is answered."""
    failure: Exception | None = None
    async with trio.open_nursery() as attention:
        await attention.start(listener.run)
        async with trio.open_nursery() as connections:
            server: QuicServer = await connections.start(serve_quic, sockets, identity, listener)
            try:
                yield
            except Exception as error:  # noqa: BLE001 - the nurseries would make a group of it
                failure = error
            finally:
                server.stop_accepting()
                with trio.CancelScope(shield=True):
                    await listener.drain()
                connections.cancel_scope.cancel()
        attention.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _stored_ticket(path: Path) -> Ticket | None:
    """Return the ticket that an earlier server left; None if there is none that can be read."""
    try:
        with path.open("rb") as file:
            text = file.read(TICKET_TEXT_BYTES_MAX + 1)
        return parse_ticket(text.decode("ascii", "replace"))
    except (FileNotFoundError, TicketError):
        return None


@contextmanager
def _bound(listen: Endpoint, known: Ticket | None) -> Iterator[list[UdpSocket]]:
    """Bind the address; with no port given, the one used last, if nobody else has it now."""
    with ExitStack() as stack:
        sockets: list[UdpSocket] = []
        if not listen.port and known is not None:
            with suppress(OSError):
                port = known.endpoints[0].port
                sockets = stack.enter_context(bind_sockets(listen.host, port))
        yield sockets or stack.enter_context(bind_sockets(*listen))


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
    if known is None or known.fingerprint != fingerprint or not _opens_all(service, known):
        for info in service.list_tickets():
            if info.label == _ADMIN_LABEL:
                await service.revoke_ticket(info.ticket_id)
        made = await service.create_ticket(
            Grant(b"", can_write=True, is_admin=True), label=_ADMIN_LABEL, expires_s=None
        )
        known = Ticket(endpoints, fingerprint, made.ticket_id, made.secret)
    elif known.endpoints == endpoints:
        return
    try:
        text = format_ticket(known._replace(endpoints=endpoints))
    except ValueError as error:
        raise InvalidRequestError(f"{error}: advertise other addresses") from error
    _write_private(path, text + "\n")


def _opens_all(service: Service, ticket: Ticket) -> bool:
    try:
        return service.authenticate(ticket.ticket_id, ticket.secret).is_admin
    except TicketError:
        return False


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
