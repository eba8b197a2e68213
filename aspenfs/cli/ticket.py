"""``aspenfs ticket create|list|revoke``."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import click
import trio
from rich.table import Table

from aspenfs.cli.help import Command, Group
from aspenfs.cli.output import displayed, print_json, print_table, readable_time
from aspenfs.config import DEFAULT_TIMEOUT_S, DEFAULT_VOLUME, ExitCode
from aspenfs.errors import StartupError, VolumeError
from aspenfs.keys import Keys, volume_of_prefix
from aspenfs.metadata import NS_PER_S
from aspenfs.remote import open_channel, read_admin_ticket
from aspenkv.contract import CreatedTicket, TicketInfo
from aspenkv.dial import Channel
from aspenkv.protocol import CreateTicket, ListTickets, RevokeTicket
from aspenkv.tickets import Endpoint, Ticket, format_ticket, parse_endpoint

_SECONDS_BY_UNIT: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN: Final = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_ID_CHARACTERS_MIN: Final = 6

_admin_option = click.option(
    "--ticket",
    "admin_file",
    type=Path,
    metavar="ADMIN",
    help="The administrator's ticket [default: $ASPENFS_TICKET, or the admin.ticket of this "
    "user's data directory].",
)


@click.group(
    "ticket",
    short_help="Make, list and revoke tickets.",
    cls=Group,
    sections={
        "Examples": (
            "aspenfs ticket create --volume photos > photos.ticket",
            "aspenfs mount /mnt/photos --ticket photos.ticket",
            "aspenfs ticket list",
        )
    },
)
def command() -> None:
    """Make, list and revoke tickets: who holds one may mount a volume from anywhere."""


@command.command(
    "create",
    cls=Command,
    sections={
        "Examples": (
            "aspenfs ticket create --volume photos > photos.ticket",
            "aspenfs ticket create --read-only --expires 7d --label 'web server'",
        )
    },
)
@_admin_option
@click.option("--read-only", is_flag=True, help="It allows no change.")
@click.option("--volume", metavar="NAME", default=DEFAULT_VOLUME, show_default=True)
@click.option("--expires", metavar="SPAN", help="Such as 12h, 7d or 4w [default: never].")
@click.option("--label", default="", metavar="TEXT", help="What to call it in the list.")
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="HOST:PORT",
    help="How its holder reaches the server; may be repeated [default: as the ADMIN ticket does].",
)
def create(
    admin_file: Path | None,
    read_only: bool,
    volume: str,
    expires: str | None,
    label: str,
    endpoints: tuple[str, ...],
) -> int:
    """Print a new ticket for one volume. Treat it like a password."""
    admin = read_admin_ticket(admin_file)
    request = CreateTicket(
        prefix=_keys(volume).prefix,
        can_write=not read_only,
        is_admin=False,
        expires_s=None if expires is None else _seconds(expires),
        label=label,
    )
    places = tuple(map(_endpoint, endpoints)) or admin.endpoints
    made = trio.run(_create, admin, request)
    click.echo(format_ticket(Ticket(places, admin.fingerprint, made.ticket_id, made.secret)))
    return ExitCode.OK


@command.command(
    "list", cls=Command, sections={"Example": ("aspenfs ticket list --ticket admin.ticket",)}
)
@_admin_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(admin_file: Path | None, as_json: bool) -> int:
    """List all tickets of a server, without their secrets."""
    found = trio.run(_list, read_admin_ticket(admin_file))
    if as_json:
        print_json(
            [
                {
                    "id": info.ticket_id.hex(),
                    "volume": volume_of_prefix(info.prefix),
                    "rights": _rights(info),
                    "created_s": info.created_s,
                    "expires_s": info.expires_s,
                    "label": info.label,
                }
                for info in found
            ]
        )
        return ExitCode.OK
    table = Table("ID", "VOLUME", "RIGHTS", "CREATED", "EXPIRES", "LABEL", box=None)
    for info in found:
        table.add_row(
            info.ticket_id.hex(),
            volume_of_prefix(info.prefix) or "all",
            _rights(info),
            _date(info.created_s),
            "never" if info.expires_s is None else _date(info.expires_s),
            displayed(info.label),
        )
    print_table(table)
    return ExitCode.OK


@command.command(
    "revoke",
    cls=Command,
    sections={"Example": ("aspenfs ticket revoke 3f9a2c --ticket admin.ticket",)},
)
@click.argument("ticket_id", metavar="ID")
@_admin_option
def revoke(ticket_id: str, admin_file: Path | None) -> int:
    """Take the ticket ID back, of which the first six characters are enough.

    Mounts that use it are cut off.
    """
    revoked = trio.run(_revoke, read_admin_ticket(admin_file), ticket_id.lower())
    click.echo(f"revoked {revoked.ticket_id.hex()} {displayed(revoked.label)}".rstrip())
    return ExitCode.OK


@asynccontextmanager
async def _administrating(ticket: Ticket) -> AsyncIterator[Channel]:
    async with open_channel(ticket, timeout_s=DEFAULT_TIMEOUT_S) as channel:
        if not channel.hello.is_admin:
            raise StartupError(
                "this ticket does not allow to manage tickets: use the admin.ticket in the "
                "server's data directory",
                ExitCode.TICKET_TOO_WEAK,
            )
        yield channel


async def _create(admin: Ticket, request: CreateTicket) -> CreatedTicket:
    async with _administrating(admin) as channel:
        made = await channel.call(request, trio.current_time() + DEFAULT_TIMEOUT_S)
        assert isinstance(made, CreatedTicket), "the codec checks the types of replies"
        return made


async def _list(admin: Ticket) -> list[TicketInfo]:
    async with _administrating(admin) as channel:
        return await _tickets(channel)


async def _revoke(admin: Ticket, ticket_id: str) -> TicketInfo:
    async with _administrating(admin) as channel:
        found = [
            info for info in await _tickets(channel) if info.ticket_id.hex().startswith(ticket_id)
        ]
        if len(found) != 1 or len(ticket_id) < _ID_CHARACTERS_MIN:
            what = "is too short" if found else "is none of the server's tickets"
            raise StartupError(
                f"'{ticket_id}' {what}: 'aspenfs ticket list' shows their IDs", ExitCode.USAGE
            )
        await channel.call(
            RevokeTicket(found[0].ticket_id), trio.current_time() + DEFAULT_TIMEOUT_S
        )
        return found[0]


async def _tickets(channel: Channel) -> list[TicketInfo]:
    found = await channel.call(ListTickets(), trio.current_time() + DEFAULT_TIMEOUT_S)
    assert isinstance(found, list), "the codec checks the types of replies"
    return found


def _rights(info: TicketInfo) -> str:
    if info.is_admin:
        return "admin"
    return "read-write" if info.can_write else "read-only"


def _date(seconds: int) -> str:
    return readable_time(seconds * NS_PER_S)[: len("2026-01-31 12:00")]


def _keys(volume: str) -> Keys:
    try:
        return Keys(volume)
    except VolumeError as error:
        raise StartupError(str(error), ExitCode.USAGE) from None


def _seconds(span: str) -> float:
    found = _SPAN.fullmatch(span)
    if found is None:
        raise StartupError(
            f"'{span}' is no span of time: write a number and s, m, h, d or w, such as 7d",
            ExitCode.USAGE,
        )
    return float(int(found[1]) * _SECONDS_BY_UNIT[found[2]])


def _endpoint(text: str) -> Endpoint:
    try:
        return parse_endpoint(text)
    except ValueError as error:
        raise StartupError(f"--endpoint {error}", ExitCode.USAGE) from None
