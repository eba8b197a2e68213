"""Requests out of arbitrary bytes: of every kind, with the values that matter more often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from aspenkv.contract import (
    Add,
    Check,
    Copy,
    Delete,
    DeleteRange,
    Op,
    Patch,
    Put,
    RangeEmpty,
    RevisionIs,
    SlotUse,
)
from aspenkv.limits import KEY_BYTES_MAX
from aspenkv.protocol import (
    Bye,
    Commit,
    CreateTicket,
    Get,
    GrantLease,
    Hello,
    Keepalive,
    ListTickets,
    OpenWatch,
    ReadNewest,
    ReadRevision,
    ReadStatus,
    Request,
    Revoke,
    RevokeTicket,
    Scan,
    Sync,
)
from fuzz.steps import Source

_KEYS: Final = (
    b"",
    b"fs:",
    b"fs:a",
    b"fs:a:",
    b"fs:a:key",
    b"fs:a:other",
    b"fs:a;",
    b"fs:b:",
    b"fs:b:key",
    b"fs:b;",
    b"\xff" * KEY_BYTES_MAX,
    b"fs:a:".ljust(KEY_BYTES_MAX + 1, b"k"),
)
_NUMBERS: Final = (0, 1, 2, 3, 64, 1024, 2**20, 2**63 - 1, 2**63, 2**64 - 1)
_REALS: Final = (0.0, 1e-9, 1.0, 30.0, 3600.0, 1e300, -1.0, float("inf"), float("nan"))
_TEXTS: Final = ("", "name", "two\nlines", "ü" * 64, "x" * 129)
_PARTS_MAX: Final = 8
_RAW: Final = 0xFF  # a choice that means: the bytes that follow


class Chooser:
    """Makes requests of the bytes of a source.

    Args:
        source: what decides.
        numbers: that mean something to the server, such as leases.
        ticket_ids: of tickets that the server made.
    """

    def __init__(
        self, source: Source, numbers: Sequence[int] = (), ticket_ids: Sequence[bytes] = ()
    ) -> None:
        """Begin at the source's next byte."""
        self._source = source
        self._numbers = (*_NUMBERS, *numbers)
        self._ticket_ids = (bytes(16), b"", *ticket_ids)

    def request(self) -> Request:
        """Return the next request; some can be put in no frame."""
        kinds: tuple[Callable[[], Request], ...] = (
            self._get,
            self._scan,
            self._commit,
            self._watch,
            self._hello,
            self._lease,
            self._keepalive,
            self._revoke,
            self._create_ticket,
            self._revoke_ticket,
            self._newest,
            ReadRevision,
            Sync,
            ReadStatus,
            Bye,
            ListTickets,
        )
        return self._source.choose(kinds)()

    def number(self) -> int:
        """Return a number."""
        choice = self._source.byte()
        if choice == _RAW:
            return self._source.number(8)
        return self._numbers[choice % len(self._numbers)]

    def _key(self) -> bytes:
        choice = self._source.byte()
        return self._bytes() if choice == _RAW else _KEYS[choice % len(_KEYS)]

    def _bytes(self) -> bytes:
        return self._source.take(self._source.byte())

    def _flag(self) -> bool:
        return bool(self._source.byte() & 1)

    def _count(self) -> int:
        return self._source.byte() % (_PARTS_MAX + 1)

    def _check(self) -> Check:
        if self._flag():
            return RevisionIs(self._key(), self.number())
        return RangeEmpty(self._key(), self._key())

    def _op(self) -> Op:
        match self._source.byte() % 6:
            case 0:
                return Put(self._key(), self._bytes(), self.number())
            case 1:
                return Delete(self._key())
            case 2:
                return DeleteRange(self._key(), self._key())
            case 3:
                end = self.number() if self._flag() else None
                return Patch(self._key(), self.number(), self._bytes(), end)
            case 4:
                return Copy(self._key(), self._key())
            case _:
                return Add(self._key(), self.number() - 2**63)

    def _get(self) -> Get:
        return Get(tuple(self._key() for _ in range(self._count())), bulk=self._flag())

    def _scan(self) -> Scan:
        return Scan(
            self._key(),
            self._key(),
            self.number(),
            keys_only=self._flag(),
            reverse=self._flag(),
            continuation=self._key() if self._flag() else None,
        )

    def _commit(self) -> Commit:
        return Commit(
            [self._check() for _ in range(self._count())],
            [self._op() for _ in range(self._count())],
            SlotUse(self.number(), self.number()) if self._flag() else None,
        )

    def _watch(self) -> OpenWatch:
        start = self.number() if self._flag() else None
        return OpenWatch(self._key(), start, values=self._flag(), skip_own=self._flag())

    def _hello(self) -> Hello:
        return Hello(
            self._source.choose(self._ticket_ids),
            bytes(32),
            self._source.choose((bytes(16), b"", b"\xff" * 16)),
            self._source.choose(_TEXTS),
            self.number(),
        )

    def _create_ticket(self) -> CreateTicket:
        return CreateTicket(
            self._key(),
            can_write=self._flag(),
            is_admin=self._flag(),
            expires_s=self._source.choose(_REALS) if self._flag() else None,
            label=self._source.choose(_TEXTS),
        )

    def _lease(self) -> GrantLease:
        return GrantLease(self._source.choose(_REALS))

    def _keepalive(self) -> Keepalive:
        return Keepalive(self.number())

    def _revoke(self) -> Revoke:
        return Revoke(self.number())

    def _newest(self) -> ReadNewest:
        return ReadNewest(self.number())

    def _revoke_ticket(self) -> RevokeTicket:
        return RevokeTicket(self._source.choose(self._ticket_ids))
