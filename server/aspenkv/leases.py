"""The table of leases: deadlines, and which keys hang on which lease. Pure; time is passed in.

The service keeps the table in memory, and its records in the engine, written in the same commit as
the keys they are about:

    ``L`` + lease (u64 big-endian)          time to live in ms (u64), 1 if process-bound, or 0; then
                                            the prefix of the client that made it
    ``A`` + lease (u64 big-endian) + key    empty: ``key`` hangs on the lease
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

from aspenkv.contract import NO_LEASE, Copy, Delete, DeleteRange, Op, Put
from aspenkv.errors import DataCorruptError, LeaseNotFoundError, TooManyError
from aspenkv.limits import (
    LEASE_KEYS_MAX,
    LEASE_KEYS_PER_PREFIX_MAX,
    LEASE_LATENESS_S_MAX,
    LEASE_TTL_S_MAX,
    LEASES_MAX,
    LEASES_PER_PREFIX_MAX,
)

LEASE_PREFIX: Final = b"L"
ATTACHMENT_PREFIX: Final = b"A"

_ID: Final = struct.Struct(">Q")
_TERMS: Final = struct.Struct(">QB")
_FIRST: Final = itemgetter(0)

Records = dict[bytes, bytes | None]
Attachments = dict[bytes, int]
"""The lease on which each key hangs after a commit; NO_LEASE if it no longer hangs on any."""


class LeaseTerms(NamedTuple):
    """What a lease is granted for.

    ``process_bound``: its holder lives in the server's process and dies with it. ``prefix``: that
    of the keys its holder may touch. Who may not touch all of those has nothing to do with it.
    """

    ttl_s: float
    process_bound: bool
    prefix: bytes


class Lease:
    """One lease, and the keys that hang on it. ``lapsed``: it only waits to be removed."""

    __slots__ = ("deadline_s", "id", "keys", "lapsed", "terms")

    def __init__(self, lease: int, terms: LeaseTerms, *, now_s: float) -> None:
        """Start the full time to live at ``now_s``."""
        self.id = lease
        self.terms = terms
        self.deadline_s = now_s + terms.ttl_s
        self.keys: set[bytes] = set()
        self.lapsed = False

    def record(self) -> tuple[bytes, bytes]:
        """Return the name and content of its server record."""
        ttl_s, process_bound, prefix = self.terms
        content = _TERMS.pack(round(ttl_s * 1000), process_bound) + prefix
        return LEASE_PREFIX + _ID.pack(self.id), content


class LeaseTable:
    """All leases of a server. Bounded by LEASES_MAX, and LEASE_KEYS_MAX keys on all of them."""

    def __init__(self) -> None:
        """Start empty."""
        self._leases: dict[int, Lease] = {}
        self._lease_of: Attachments = {}

    def count(self, prefix: bytes) -> int:
        """Return how many leases there are below ``prefix``."""
        return sum(lease.terms.prefix.startswith(prefix) for lease in self._leases.values())

    def load(
        self,
        leases: Iterable[tuple[bytes, bytes]],
        attachments: Iterable[tuple[bytes, bytes]],
        now_s: float,
    ) -> None:
        """Take over the server records of an earlier run; every lease has its full time anew.

        Raises:
            DataCorruptError: a record cannot be read.
        """
        name = b""
        try:
            for name, content in leases:
                (lease,) = _ID.unpack(name[1:])
                self.insert(Lease(lease, _decoded_terms(content), now_s=now_s))
            for name, _ in attachments:
                (lease,) = _ID.unpack_from(name, 1)
                self.apply({name[1 + _ID.size :]: lease})
        except (struct.error, KeyError, ValueError) as error:
            raise DataCorruptError(
                f"the lease record {name!r} is damaged: restore the data directory from a backup"
            ) from error

    def new(self, lease: int, terms: LeaseTerms, *, now_s: float) -> Lease:
        """Return a lease that is not in the table yet.

        Raises:
            TooManyError: LEASES_MAX leases exist, or LEASES_PER_PREFIX_MAX of the same prefix.
        """
        if len(self._leases) >= LEASES_MAX:
            raise TooManyError(f"{LEASES_MAX} leases exist: revoke some, or wait until they lapse")
        if terms.prefix:
            same = sum(each.terms.prefix == terms.prefix for each in self._leases.values())
            if same >= LEASES_PER_PREFIX_MAX:
                raise TooManyError(f"{LEASES_PER_PREFIX_MAX} leases of yours exist: revoke some")
        return Lease(lease, terms, now_s=now_s)

    def insert(self, lease: Lease) -> None:
        """Add a lease whose record is stored."""
        self._leases[lease.id] = lease

    def live(self, lease: int, now_s: float, prefix: bytes) -> Lease:
        """Return a lease that has not lapsed, to a client of all keys below ``prefix``.

        Raises:
            LeaseNotFoundError: it lapsed, was revoked, never was, or is of another prefix: who may
                not use it does not learn that it is.
        """
        found = self._leases.get(lease)
        if found is not None and found.deadline_s <= now_s:
            self._lapse(now_s)
        if found is None or found.lapsed or not found.terms.prefix.startswith(prefix):
            raise LeaseNotFoundError(f"lease {lease} lapsed, was revoked or never was")
        return found

    def renew(self, lease: int, now_s: float, prefix: bytes) -> None:
        """Give a lease its full time to live again.

        Raises:
            LeaseNotFoundError: as :meth:`live`.
        """
        found = self.live(lease, now_s, prefix)
        found.deadline_s = now_s + found.terms.ttl_s

    def next_deadline_s(self) -> float:
        """Return when the next lease lapses; infinity if there is none."""
        return min((lease.deadline_s for lease in self._leases.values()), default=float("inf"))

    def lapsed(self, now_s: float) -> list[Lease]:
        """Return the leases whose time is over, the longest dead first."""
        self._lapse(now_s)
        dead = [lease for lease in self._leases.values() if lease.lapsed]
        return sorted(dead, key=lambda lease: (lease.deadline_s, lease.id))

    def process_bound(self) -> list[Lease]:
        """Return the leases whose holder lived in the server's process."""
        return [lease for lease in self._leases.values() if lease.terms.process_bound]

    def remove(self, leases: Iterable[Lease]) -> None:
        """Forget leases whose records and keys are gone."""
        for lease in leases:
            del self._leases[lease.id]
            for key in lease.keys:
                del self._lease_of[key]

    def touched(
        self, ops: Sequence[Op], *, names_lease: bool, now_s: float, prefix: bytes
    ) -> Attachments:
        """Return which keys ``ops`` of a client of ``prefix`` would attach or detach.

        ``names_lease`` says that a put names a lease; if none does and no key is attached, this
        costs nothing.

        Raises:
            LeaseNotFoundError: a put names a lease that does not exist.
            TooManyError: more than LEASE_KEYS_MAX keys would be attached, or
                LEASE_KEYS_PER_PREFIX_MAX to leases of one prefix.
        """
        lease_of = self._lease_of
        if not names_lease and (
            not lease_of
            or (lease_of.keys().isdisjoint(map(_FIRST, ops)) and DeleteRange not in map(type, ops))
        ):
            return {}
        touched: Attachments = {}
        for op in ops:
            if isinstance(op, DeleteRange):
                hanging = {*lease_of, *touched}
                touched.update((key, NO_LEASE) for key in hanging if op.start <= key < op.end)
            elif isinstance(op, Put) and op.lease != NO_LEASE:
                self.live(op.lease, now_s, prefix)
                touched[op.key] = op.lease
            elif isinstance(op, Put | Delete | Copy) and (op.key in lease_of or op.key in touched):
                touched[op.key] = NO_LEASE
        self._check_count(touched)
        return touched

    def attachment_records(self, touched: Attachments) -> Records:
        """Return the server records that make ``touched`` last."""
        records: Records = {}
        for key, lease in touched.items():
            old = self._lease_of.get(key, NO_LEASE)
            if old != NO_LEASE:
                records[_attachment_name(old, key)] = None
            if lease != NO_LEASE:
                records[_attachment_name(lease, key)] = b""
        return records

    def apply(self, touched: Attachments) -> None:
        """Take over what a commit attached and detached."""
        for key, lease in touched.items():
            old = self._lease_of.pop(key, NO_LEASE)
            if old != NO_LEASE:
                self._leases[old].keys.discard(key)
            if lease != NO_LEASE:
                self._lease_of[key] = lease
                self._leases[lease].keys.add(key)

    def _lapse(self, now_s: float) -> None:
        """Let leases lapse whose time is over, each once and for all.

        If that is noticed only LEASE_LATENESS_S_MAX later, this process was stopped, and nobody
        could have renewed his lease meanwhile: so all have their full time anew.
        """
        live = [lease for lease in self._leases.values() if not lease.lapsed]
        if any(lease.deadline_s + LEASE_LATENESS_S_MAX < now_s for lease in live):
            for lease in live:
                lease.deadline_s = now_s + lease.terms.ttl_s
        for lease in live:
            lease.lapsed = lease.deadline_s <= now_s

    def _check_count(self, touched: Attachments) -> None:
        more: Counter[bytes] = Counter()
        for key, lease in touched.items():
            old = self._lease_of.get(key, NO_LEASE)
            if old != NO_LEASE:
                more[self._leases[old].terms.prefix] -= 1
            if lease != NO_LEASE:
                more[self._leases[lease].terms.prefix] += 1
        if len(self._lease_of) + more.total() > LEASE_KEYS_MAX:
            raise TooManyError(f"{LEASE_KEYS_MAX} keys hang on leases: revoke some leases")
        for prefix, count in more.items():
            if prefix and count > 0 and self._keys_on(prefix) + count > LEASE_KEYS_PER_PREFIX_MAX:
                raise TooManyError(
                    f"{LEASE_KEYS_PER_PREFIX_MAX} keys hang on leases of yours: revoke some"
                )

    def _keys_on(self, prefix: bytes) -> int:
        return sum(
            len(lease.keys) for lease in self._leases.values() if lease.terms.prefix == prefix
        )


def removal_records(leases: Iterable[Lease]) -> Records:
    """Return the server records that remove leases and all their attachments."""
    records: Records = {}
    for lease in leases:
        records[lease.record()[0]] = None
        records.update((_attachment_name(lease.id, key), None) for key in lease.keys)
    return records


def _decoded_terms(content: bytes) -> LeaseTerms:
    ttl_ms, process_bound = _TERMS.unpack_from(content)
    ttl_s = ttl_ms / 1000
    if ttl_s > LEASE_TTL_S_MAX:
        raise ValueError(f"a lease for {ttl_s} s")
    return LeaseTerms(ttl_s, bool(process_bound), content[_TERMS.size :])


def _attachment_name(lease: int, key: bytes) -> bytes:
    return ATTACHMENT_PREFIX + _ID.pack(lease) + key
