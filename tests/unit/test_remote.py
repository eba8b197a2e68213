"""Reading tickets, and the one connection of the commands that manage a server."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from aspenfs.config import TICKET_VARIABLE, ExitCode
from aspenfs.errors import StartupError
from aspenfs.remote import open_channel, read_admin_ticket, read_ticket
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import TicketUnknownError, UnavailableError
from aspenkv.hosting import open_listener
from aspenkv.protocol import ListTickets
from aspenkv.tickets import Endpoint, Ticket, format_ticket

TIMEOUT_S = 20.0
TICKET = Ticket((Endpoint("host", 7400),), bytes(32), bytes(16), bytes(32))


@pytest.fixture
async def ticket(tmp_path: Path) -> AsyncIterator[Ticket]:
    """The ticket of a server that runs."""
    async with (
        open_embedded(MemoryEngine()) as service,
        open_listener(service, tmp_path, Endpoint("127.0.0.1", 0)) as hosted,
    ):
        yield read_ticket(hosted.ticket_file)


@pytest.fixture
def silent() -> Iterator[Endpoint]:
    """Where somebody listens who never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        yield Endpoint("127.0.0.1", bound.getsockname()[1])


@pytest.fixture
def absent() -> Endpoint:
    """Where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        return Endpoint("127.0.0.1", bound.getsockname()[1])


async def list_tickets(ticket: Ticket, timeout_s: float = TIMEOUT_S) -> None:
    async with open_channel(ticket, timeout_s=timeout_s) as channel:
        await channel.call(ListTickets(), trio.current_time() + TIMEOUT_S)


async def test_the_first_server_that_answers_is_asked(ticket: Ticket, absent: Endpoint) -> None:
    (here,) = ticket.endpoints
    for endpoints in ((here,), (absent, here), (absent, absent, here), (here, absent)):
        await list_tickets(ticket._replace(endpoints=endpoints))


async def test_one_that_never_answers_leaves_the_others_time(
    ticket: Ticket, silent: Endpoint
) -> None:
    (here,) = ticket.endpoints
    with trio.fail_after(TIMEOUT_S):
        await list_tickets(ticket._replace(endpoints=(silent, here)), timeout_s=2.0)


async def test_none_that_answers_is_an_error_in_time(
    ticket: Ticket, silent: Endpoint, absent: Endpoint
) -> None:
    began_at = trio.current_time()
    with pytest.raises(UnavailableError):
        await list_tickets(ticket._replace(endpoints=(silent, absent)), timeout_s=1.0)
    assert trio.current_time() - began_at < TIMEOUT_S


async def test_a_ticket_that_is_refused_is_not_shown_elsewhere(
    ticket: Ticket, silent: Endpoint
) -> None:
    (here,) = ticket.endpoints
    wrong = ticket._replace(secret=bytes(32), endpoints=(here, silent))
    with pytest.raises(TicketUnknownError):
        await list_tickets(wrong)


async def test_an_error_in_the_block_comes_out_as_it_is(ticket: Ticket) -> None:
    with pytest.raises(UnavailableError, match="of the user"):
        async with open_channel(ticket, timeout_s=TIMEOUT_S):
            raise UnavailableError("of the user")


def test_a_ticket_is_read_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ticket"
    file.write_text(f"\n  {format_ticket(TICKET)}\n")
    assert read_ticket(file) == TICKET
    assert read_admin_ticket(file) == TICKET
    monkeypatch.setenv(TICKET_VARIABLE, format_ticket(TICKET))
    assert read_ticket(None) == TICKET
    assert read_admin_ticket(None) == TICKET


def test_an_administrators_ticket_is_looked_for_in_the_users_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TICKET_VARIABLE, raising=False)
    monkeypatch.setattr("aspenfs.remote.default_data_dir", lambda *_args, **_options: tmp_path)
    (tmp_path / "admin.ticket").write_text(format_ticket(TICKET))
    assert read_admin_ticket(None) == TICKET


@pytest.mark.parametrize(
    ("content", "exit_code"),
    [
        (None, ExitCode.TICKET_UNREADABLE),
        (b"", ExitCode.TICKET_DAMAGED),
        (b"\xff\xfe", ExitCode.TICKET_DAMAGED),
        (format_ticket(TICKET).encode()[:-1], ExitCode.TICKET_DAMAGED),
        (b"x" * 1_000_000, ExitCode.TICKET_DAMAGED),
    ],
    ids=["absent", "empty", "binary", "truncated", "long"],
)
def test_what_is_no_ticket_is_one_line_and_an_exit_code(
    tmp_path: Path, content: bytes | None, exit_code: ExitCode
) -> None:
    file = tmp_path / "ticket"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StartupError) as caught:
        read_ticket(file)
    assert caught.value.exit_code == exit_code
    assert os.fspath(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_ticket_in_the_environment_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TICKET_VARIABLE, raising=False)
    with pytest.raises(StartupError, match=TICKET_VARIABLE):
        read_ticket(None)
