"""A store behind a ticket: reading the ticket, and opening the store that it names."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from aspenfs.config import TICKET_VARIABLE, ExitCode, default_data_dir
from aspenfs.errors import StartupError
from aspenfs.kv import PooledKeyValue, open_kv
from aspenkv.dial import Channel, dial
from aspenkv.errors import AspenKvError, BusyError, TicketError, UnavailableError
from aspenkv.hosting import ADMIN_TICKET_NAME
from aspenkv.limits import TICKET_TEXT_BYTES_MAX
from aspenkv.sessions import SESSION_ID_BYTES
from aspenkv.tickets import Ticket, parse_ticket


def read_ticket(file: Path | None) -> Ticket:
    """Return the ticket in a file; None: the one in the environment.

    Raises:
        StartupError: there is none, or what is there is no ticket.
    """
    if file is None:
        place, text = f"${TICKET_VARIABLE}", os.environ.get(TICKET_VARIABLE, "")
    else:
        place = str(file)
        try:
            with file.open("rb") as opened:
                text = opened.read(TICKET_TEXT_BYTES_MAX + 1).decode("ascii", errors="replace")
        except OSError as error:
            raise StartupError(
                f"ticket {file} cannot be read ({error.strerror}): name the file with --ticket, "
                f"and run as who may read it",
                ExitCode.TICKET_UNREADABLE,
            ) from None
    try:
        return parse_ticket(text)
    except TicketError as error:
        raise StartupError(f"ticket {place}: {error}", ExitCode.TICKET_DAMAGED) from None


@asynccontextmanager
async def open_remote(ticket: Ticket, *, timeout_s: float) -> AsyncIterator[PooledKeyValue]:
    """Open the store that a ticket names, over a pool of connections.

    Args:
        ticket: where the server is, and what this client may do there.
        timeout_s: how long a call may take before it fails.

    Raises:
        AspenKvError: the server cannot be reached, or does not accept the ticket.
    """
    async with open_kv(
        ticket.endpoints,
        partial(dial, ticket=ticket, client=socket.gethostname()),
        timeout_s=timeout_s,
    ) as kv:
        yield kv


def read_admin_ticket(file: Path | None) -> Ticket:
    """Return an administrator's ticket: from a file, the environment, or this user's own data.

    Raises:
        StartupError: there is none, or what is there is no ticket.
    """
    if file is None and TICKET_VARIABLE not in os.environ:
        data_dir = default_data_dir(os.environ, privileged=os.geteuid() == 0)
        file = data_dir / ADMIN_TICKET_NAME
    return read_ticket(file)


@asynccontextmanager
async def open_channel(ticket: Ticket, *, timeout_s: float) -> AsyncIterator[Channel]:
    """Open one connection to the first server of a ticket that answers.

    Raises:
        AspenKvError: none answers, or it does not accept the ticket.
    """
    deadline_s = trio.current_time() + timeout_s
    failure: AspenKvError | None = None
    async with AsyncExitStack() as stack:
        for index, endpoint in enumerate(ticket.endpoints):
            # One that never answers leaves the others their share of the time.
            share_s = (deadline_s - trio.current_time()) / (len(ticket.endpoints) - index)
            opening = dial(
                endpoint,
                secrets.token_bytes(SESSION_ID_BYTES),
                trio.current_time() + share_s,
                ticket=ticket,
                client=socket.gethostname(),
            )
            try:
                channel = await stack.enter_async_context(opening)
            except (UnavailableError, BusyError) as error:
                failure = error
            else:
                yield channel
                return
    assert failure is not None, "a ticket names an endpoint"
    raise failure
