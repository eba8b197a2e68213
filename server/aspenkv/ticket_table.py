"""The tickets that a server has made, and who may come in with them. Pure; time is passed in.

The server keeps them in memory, and as server records:

    ``T`` + ticket id (16 bytes)    SHA-256 of the secret (32 bytes), flags (u8: 1 may write,
                                    2 administrator, 4 revoked), created (u64), expires (u64, 0 is
                                    never), in seconds since 1970, length of the prefix (u16), all
                                    big-endian; then the prefix, and the label in UTF-8

A plain hash is enough for secrets of 256 random bits: there is nothing to guess. A revoked ticket
stays until its place is needed, so that who shows it is told what became of it.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from aspenkv.access import Grant
from aspenkv.contract import TicketInfo
from aspenkv.errors import (
    DataCorruptError,
    InvalidRequestError,
    TicketExpiredError,
    TicketRevokedError,
    TicketUnknownError,
    TooManyError,
)
from aspenkv.limits import (
    TICKET_LABEL_BYTES_MAX,
    TICKET_LIFETIME_S_MAX,
    TICKET_PREFIX_BYTES_MAX,
    TICKETS_MAX,
)
from aspenkv.tickets import TICKET_ID_BYTES

TICKET_PREFIX: Final = b"T"
_HEAD: Final = struct.Struct(">32sBQQH")
_CAN_WRITE: Final = 1
_IS_ADMIN: Final = 2
_IS_REVOKED: Final = 4
_FLAGS: Final = _CAN_WRITE | _IS_ADMIN | _IS_REVOKED
_NEVER: Final = 0
_NOBODYS_HASH: Final = bytes(32)

Records = dict[bytes, bytes | None]


class StoredTicket(NamedTuple):
    """One ticket as the server keeps it."""

    ticket_id: bytes
    secret_hash: bytes
    grant: Grant
    label: str
    created_s: int
    expires_s: int | None
    is_revoked: bool = False

    def info(self) -> TicketInfo:
        """Return what an administrator is told of it."""
        return TicketInfo(
            self.ticket_id,
            self.label,
            self.grant.prefix,
            self.grant.can_write,
            self.grant.is_admin,
            self.created_s,
            self.expires_s,
        )

    def record(self) -> Records:
        """Return its server record."""
        prefix, can_write, is_admin = self.grant
        flags = can_write * _CAN_WRITE | is_admin * _IS_ADMIN | self.is_revoked * _IS_REVOKED
        head = _HEAD.pack(
            self.secret_hash,
            flags,
            self.created_s,
            _NEVER if self.expires_s is None else self.expires_s,
            len(prefix),
        )
        return {_name(self.ticket_id): head + prefix + self.label.encode()}

    def check(self, now_s: float) -> None:
        """Check that it is still good.

        Raises:
            TicketRevokedError: it was revoked.
            TicketExpiredError: its time is over.
        """
        if self.is_revoked:
            raise TicketRevokedError("the ticket was revoked: ask for a new one")
        if self.expires_s is not None and now_s >= self.expires_s:
            raise TicketExpiredError("the ticket has expired: ask for a new one")

    def is_good(self, now_s: float) -> bool:
        """Tell whether it was not revoked and has not expired."""
        return not self.is_revoked and (self.expires_s is None or now_s < self.expires_s)


class TicketTable:
    """All tickets of a server, at most TICKETS_MAX."""

    def __init__(self) -> None:
        """Start empty."""
        self._tickets: dict[bytes, StoredTicket] = {}

    def __iter__(self) -> Iterator[StoredTicket]:
        """Iterate over all tickets, the revoked ones, too."""
        return iter(self._tickets.values())

    def load(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Take over the server records of an earlier process.

        Raises:
            DataCorruptError: a record cannot be read.
        """
        for name, content in records:
            try:
                self.insert(_decoded(name, content))
            except (struct.error, ValueError) as error:
                raise DataCorruptError(
                    f"the ticket record {name!r} is damaged: restore the data directory from a "
                    f"backup"
                ) from error

    def get(self, ticket_id: bytes) -> StoredTicket | None:
        """Return a ticket, None if it never was, or was revoked long ago."""
        return self._tickets.get(ticket_id)

    def insert(self, ticket: StoredTicket) -> None:
        """Add a ticket, or what became of it, once its record is stored."""
        self._tickets[ticket.ticket_id] = ticket

    def remove(self, ticket: StoredTicket) -> None:
        """Forget a ticket whose record is gone."""
        del self._tickets[ticket.ticket_id]

    def to_drop(self, now_s: float) -> StoredTicket | None:
        """Return the ticket that must go before another comes; None while there is room.

        Raises:
            TooManyError: there are TICKETS_MAX, all good.
        """
        if len(self._tickets) < TICKETS_MAX:
            return None
        useless = [ticket for ticket in self if not ticket.is_good(now_s)]
        if not useless:
            raise TooManyError(f"{TICKETS_MAX} tickets exist: revoke some")
        return min(useless, key=lambda ticket: ticket.created_s)

    def authenticated(self, ticket_id: bytes, secret: bytes, now_s: float) -> StoredTicket:
        """Return the ticket of who knows its secret, in the same time whether it exists or not.

        Raises:
            TicketUnknownError: there is none with this secret.
            TicketRevokedError: it was revoked.
            TicketExpiredError: its time is over.
        """
        ticket = self._tickets.get(ticket_id)
        expected = _NOBODYS_HASH if ticket is None else ticket.secret_hash
        is_known = hmac.compare_digest(hashlib.sha256(secret).digest(), expected)
        if ticket is None or not is_known:
            raise TicketUnknownError("the server does not know the ticket: ask for a new one")
        ticket.check(now_s)
        return ticket


def new_ticket(
    ticket_id: bytes,
    secret: bytes,
    grant: Grant,
    *,
    label: str,
    lifetime_s: float | None,
    now_s: float,
) -> StoredTicket:
    """Return what the server keeps of a new ticket.

    Raises:
        InvalidRequestError: the grant contradicts itself, or something is too long.
    """
    if len(grant.prefix) > TICKET_PREFIX_BYTES_MAX:
        raise InvalidRequestError(
            f"a ticket for a prefix of {len(grant.prefix)} bytes: use at most "
            f"{TICKET_PREFIX_BYTES_MAX}"
        )
    if grant.is_admin and (grant.prefix or not grant.can_write):
        raise InvalidRequestError("an administrator's ticket is for all volumes, and may write")
    if not label.isprintable() or len(label.encode()) > TICKET_LABEL_BYTES_MAX:
        raise InvalidRequestError(
            f"a label is up to {TICKET_LABEL_BYTES_MAX} bytes of printable text"
        )
    if lifetime_s is not None and not 0 < lifetime_s <= TICKET_LIFETIME_S_MAX:
        raise InvalidRequestError(
            f"a ticket for {lifetime_s} s: use up to {TICKET_LIFETIME_S_MAX:.0f}, or no end"
        )
    return StoredTicket(
        ticket_id,
        hashlib.sha256(secret).digest(),
        grant,
        label,
        int(now_s),
        None if lifetime_s is None else max(int(now_s + lifetime_s), 1),
    )


def removal_record(ticket: StoredTicket) -> Records:
    """Return the server record that removes a ticket."""
    return {_name(ticket.ticket_id): None}


def _name(ticket_id: bytes) -> bytes:
    return TICKET_PREFIX + ticket_id


def _decoded(name: bytes, content: bytes) -> StoredTicket:
    ticket_id = name[len(TICKET_PREFIX) :]
    secret_hash, flags, created_s, expires_s, size = _HEAD.unpack_from(content)
    prefix_end = _HEAD.size + size
    if len(ticket_id) != TICKET_ID_BYTES or flags & ~_FLAGS:
        raise ValueError("no ticket of this version")
    if prefix_end > len(content):  # what is left of a prefix would give more rights
        raise ValueError("a part of a ticket")
    return StoredTicket(
        ticket_id,
        secret_hash,
        Grant(content[_HEAD.size : prefix_end], bool(flags & _CAN_WRITE), bool(flags & _IS_ADMIN)),
        content[prefix_end:].decode(),
        created_s,
        None if expires_s == _NEVER else expires_s,
        bool(flags & _IS_REVOKED),
    )
