"""What a client may ask for, and what a server answers beside the types of the contract. Pure.

Each message is a named tuple, and its fields stand in a frame in their order. Two messages without
fields compare equal, as tuples do: tell messages apart by their type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aspenkv.contract import (
    Check,
    CommitResult,
    CreatedTicket,
    Newest,
    Op,
    ScanPage,
    SlotUse,
    Status,
    TicketInfo,
    Versioned,
    WatchEvent,
)


class Hello(NamedTuple):
    """The first request of a connection: shows a ticket, and says which client this is.

    ``session`` is a number of 16 random bytes that all connections of the client share, ``client``
    what the server's status calls it, ``version_max`` the newest version that it speaks.
    """

    ticket_id: bytes
    secret: bytes
    session: bytes
    client: str
    version_max: int

    def __repr__(self) -> str:
        """Return the message without its secret: what is printed may end up in a log."""
        return (
            f"Hello(ticket_id={self.ticket_id!r}, secret=<hidden>, session={self.session!r}, "
            f"client={self.client!r}, version_max={self.version_max})"
        )


class Get(NamedTuple):
    """See :meth:`aspenkv.contract.KeyValue.get`. ``bulk`` says that the values may be large."""

    keys: Sequence[bytes]
    bulk: bool


class Scan(NamedTuple):
    """See :meth:`aspenkv.contract.KeyValue.scan`."""

    start: bytes
    end: bytes
    limit: int
    keys_only: bool
    reverse: bool
    continuation: bytes | None


class Commit(NamedTuple):
    """See :meth:`aspenkv.contract.KeyValue.commit`. Without a slot it must not be sent again."""

    checks: Sequence[Check]
    ops: Sequence[Op]
    slot: SlotUse | None


class OpenWatch(NamedTuple):
    """See :meth:`aspenkv.contract.KeyValue.watch`. Answered by a stream of watch messages.

    ``skip_own`` leaves out the commits of the whole client session, by whichever connection.
    """

    prefix: bytes
    from_revision: int | None
    values: bool
    skip_own: bool


class ReadNewest(NamedTuple):
    """See :meth:`aspenkv.contract.Watch.newest`.

    ``watch`` is the request id by which the watch was opened, on the same connection.
    """

    watch: int


class GrantLease(NamedTuple):
    """See :meth:`aspenkv.contract.KeyValue.lease`."""

    ttl_s: float


class Keepalive(NamedTuple):
    """See :meth:`aspenkv.contract.KeyValue.keepalive`."""

    lease: int


class Revoke(NamedTuple):
    """See :meth:`aspenkv.contract.KeyValue.revoke`."""

    lease: int


class ReadRevision(NamedTuple):
    """See :meth:`aspenkv.contract.KeyValue.revision`."""


class Sync(NamedTuple):
    """See :meth:`aspenkv.contract.KeyValue.sync`."""


class ReadStatus(NamedTuple):
    """See :meth:`aspenkv.contract.KeyValue.status`."""


class Bye(NamedTuple):
    """End the client session: its slots are forgotten, and its connections are closed."""


class CreateTicket(NamedTuple):
    """Make a ticket for all keys below ``prefix``. Only an administrator may.

    ``expires_s`` is how many seconds it is good for; None: for ever.
    """

    prefix: bytes
    can_write: bool
    is_admin: bool
    expires_s: float | None
    label: str


class ListTickets(NamedTuple):
    """Ask for every ticket. Only an administrator may."""


class RevokeTicket(NamedTuple):
    """Take a ticket back, and end the sessions that use it. Only an administrator may."""

    ticket_id: bytes


Request = (
    Hello
    | Get
    | Scan
    | Commit
    | OpenWatch
    | GrantLease
    | Keepalive
    | Revoke
    | ReadRevision
    | Sync
    | ReadStatus
    | Bye
    | CreateTicket
    | ListTickets
    | RevokeTicket
    | ReadNewest
)


class HelloReply(NamedTuple):
    """The server's answer to a good ticket.

    Attributes:
        server_id: 16 bytes that each server process draws anew.
        version: the version that both ends speak from now on.
        prefix: the ticket opens the keys that start with it.
        can_write: whether the ticket allows commits and leases.
        is_admin: whether it allows to manage tickets.
        session_is_new: the server remembers nothing of the client session, so no slot of it.
        started_revision: the revision that this server process found when it started. A client
            that knows of a higher one learns from it that commits were lost that were not synced.
        slots_max: slots are numbered from 0 to one less.
        requests_max: how many requests of the session may be in flight.
    """

    server_id: bytes
    version: int
    prefix: bytes
    can_write: bool
    is_admin: bool
    session_is_new: bool
    started_revision: int
    slots_max: int
    requests_max: int


Reply = (
    HelloReply
    | list[Versioned | None]
    | ScanPage
    | CommitResult
    | Status
    | CreatedTicket
    | list[TicketInfo]
    | Newest
    | int
    | None
)
"""Leases and revisions are answered by their number, requests that only do something by None."""


class WatchOpened(NamedTuple):
    """The first message of a watch: every commit above ``revision`` that touches it will follow."""

    revision: int


class WatchProgress(NamedTuple):
    """Every commit up to ``revision`` was handed out, or did not concern the watch."""

    revision: int


WatchMessage = WatchOpened | WatchEvent | WatchProgress
