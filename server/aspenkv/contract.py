"""The key-value contract: what both ends of every carrier and every engine agree on.

One ordered map of keys to values, both arbitrary bytes, and one revision (u64) that every commit
raises by one. All calls are linearizable. :mod:`aspenkv.limits` bounds every size and count.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

ABSENT = 0
"""The revision of a key that does not exist; no commit ever has it."""

NO_LEASE = 0


class Versioned(NamedTuple):
    """A value with the revision of the commit that last wrote it."""

    value: bytes
    revision: int


class Record(NamedTuple):
    """One row of a scan. ``value`` is ``b""`` when only keys were asked for."""

    key: bytes
    value: bytes
    revision: int


class ScanPage(NamedTuple):
    """An ordered page. Pass ``continuation`` to the same scan to go on; None at the end."""

    records: list[Record]
    continuation: bytes | None


class RevisionIs(NamedTuple):
    """Check: ``revision`` last wrote ``key``; :data:`ABSENT` asks that it does not exist."""

    key: bytes
    revision: int


class RangeEmpty(NamedTuple):
    """Check: no key in ``[start, end)`` exists."""

    start: bytes
    end: bytes


class Put(NamedTuple):
    """Write a value, and hang the key on a lease, or on none.

    A key on a lease vanishes when the lease lapses or is revoked. Deletion takes it off; ``patch``
    and ``add`` leave it where it hangs.
    """

    key: bytes
    value: bytes | memoryview
    lease: int = NO_LEASE


class Delete(NamedTuple):
    """Remove a key; nothing happens if it does not exist."""

    key: bytes


class DeleteRange(NamedTuple):
    """Remove every key in ``[start, end)``; the bounds may be one byte longer than a key."""

    start: bytes
    end: bytes


class Patch(NamedTuple):
    """Write ``data`` at ``offset`` of the value, then cut it to ``truncate_to`` bytes if given.

    An absent key counts as an empty value; a gap between its end and ``data`` is filled with zeros,
    and there is none if ``data`` is empty. ``truncate_to`` only shortens. Two patches of different
    ranges never lose each other's bytes.
    """

    key: bytes
    offset: int
    data: bytes | memoryview
    truncate_to: int | None = None


class Add(NamedTuple):
    """Add ``delta`` to a little-endian i64 counter; an absent key counts as 0."""

    key: bytes
    delta: int


class Copy(NamedTuple):
    """Write the value of ``source`` at ``key``, on no lease; remove ``key`` if there is no source.

    So the value need not pass through the client. The copies of one commit have at most
    COMMIT_COPIED_BYTES_MAX bytes together. An engine whose store cannot copy (etcd) reads the
    source, and puts its value in a transaction that also compares its revision.
    """

    key: bytes
    source: bytes


Check = RevisionIs | RangeEmpty
Op = Put | Delete | DeleteRange | Patch | Add | Copy


class CommitResult(NamedTuple):
    """``failed_check`` is None and ``revision`` the commit's own, or nothing was done.

    When a check failed, ``failed_check`` is its index and ``revision`` the current one.
    """

    revision: int
    failed_check: int | None


class Change(NamedTuple):
    """One effect of a commit: ``key`` was written or removed, or, with ``end``, ``[key, end)`` was.

    ``value`` is what a ``put`` wrote, if the watch asked for values. It is None otherwise: for all
    other operations, and for commits from before the watch was opened. Then the watcher must read.
    """

    key: bytes
    end: bytes | None
    value: bytes | None


class WatchEvent(NamedTuple):
    """All changes of one commit below the watched prefix, in the order of its operations."""

    revision: int
    changes: tuple[Change, ...]


class Newest(NamedTuple):
    """How far a watch must come to have handed out all that was answered before it was asked.

    ``revision`` is that of the newest commit which the watch hands out or has handed out; if there
    was none since it opened, one that it has already reached. ``alone_s`` is a delegation: for so
    many seconds, counted from the call, no other client's commit below the watch's prefix will be
    carried out. 0: none is granted. Commits of the server itself, as at the end of a lease, do not
    count as another client's; nor does the time count in which a suspended machine's clock stands.
    """

    revision: int
    alone_s: float


class SessionStatus(NamedTuple):
    """One client as the server sees it: who it says it is, from where, and by how many connections.

    ``address`` is that of its newest connection; a client in the server's process has none.
    """

    client: str
    address: str
    connections: int
    can_write: bool


class Status(NamedTuple):
    """What the server says of itself. Sizes in bytes.

    ``sessions`` are the clients that came over the network, as far as the asker may know of them.
    """

    engine: str
    members: tuple[str, ...]
    revision: int
    used_bytes: int
    capacity_bytes: int
    available_bytes: int
    leases: int
    watches: int
    sessions: tuple[SessionStatus, ...]


class SlotUse(NamedTuple):
    """Which slot of its session a commit uses, so that it can be sent again safely.

    A slot carries one commit after the other, each with a ``sequence`` above the one before. The
    same sequence means the same commit: it is not done twice but answered as it was the first time
    (RFC 8881 §2.10.6).
    """

    slot: int
    sequence: int


class CreatedTicket(NamedTuple):
    """What only the maker of a ticket ever sees; the server keeps a hash of ``secret``."""

    ticket_id: bytes
    secret: bytes

    def __repr__(self) -> str:
        """Return the ticket without its secret: what is printed may end up in a log."""
        return f"CreatedTicket(ticket_id={self.ticket_id!r}, secret=<hidden>)"


class TicketInfo(NamedTuple):
    """A ticket as the server lists it. Times in seconds since 1970; None: it never expires.

    ``prefix`` is that of all keys which the ticket opens; an administrator's is empty.
    """

    ticket_id: bytes
    label: str
    prefix: bytes
    can_write: bool
    is_admin: bool
    created_s: int
    expires_s: int | None


class Watch(Protocol):
    """An open watch: an iterator of events, and how far it has come."""

    @property
    def revision(self) -> int:
        """Every commit up to this revision has been handed out, or did not touch the prefix."""

    async def newest(self) -> Newest:
        """Return how far this watch must come to have handed out all that is committed by now.

        Once :attr:`revision` has reached the answer's, the iterator has handed out every commit
        that concerns this watch and was answered before this call began. The call never waits for
        the iterator; a client in the server's process is answered without a checkpoint.

        Raises:
            WatchGapError: events were lost because the watcher fell behind; open a new watch.
            UnavailableError: no answer came, or the watch broke off; open a new watch.
            ClosedError: the watch, or the service, was closed.
        """

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        """Iterate over the events.

        Raises:
            WatchGapError: events were lost because the watcher fell behind; open a new watch.
        """


class KeyValue(Protocol):
    """The interface that every carrier offers to the filesystem and every test suite runs against.

    Each object is one client: :meth:`watch` can leave out the commits made through the same object.
    All calls raise :class:`~aspenkv.errors.AspenKvError`.
    """

    async def get(self, keys: Sequence[bytes], *, bulk: bool = False) -> list[Versioned | None]:
        """Read values, None for each absent key, in the order of ``keys`` (at most GET_KEYS_MAX).

        All are of one moment.

        ``bulk`` says that the values are large (chunk data), so that the carrier keeps them from
        standing in the way of small calls.
        """

    async def scan(
        self,
        start: bytes,
        end: bytes,
        *,
        limit: int,
        keys_only: bool = False,
        reverse: bool = False,
        continuation: bytes | None = None,
    ) -> ScanPage:
        """Read up to ``limit`` records of ``[start, end)`` in key order, or from the end.

        A page also ends at SCAN_ENTRIES_MAX records, and after the record that reaches
        SCAN_BYTES_MAX bytes of keys and values; a page that ends early has a continuation.
        """

    async def commit(self, checks: Sequence[Check], ops: Sequence[Op]) -> CommitResult:
        """Do all of ``ops`` in order if all of ``checks`` hold, else nothing.

        Checks see the state before the commit; operations see those before them. A commit with no
        operations only checks, and raises no revision.

        Raises:
            InvalidRequestError: a limit is broken, or an ``add`` meets a value that is no counter
                or overflows. Nothing was done.
            CommitTooLargeError: copies have more than COMMIT_COPIED_BYTES_MAX bytes. Nothing was
                done.
            LeaseNotFoundError: a put names a lease that does not exist. Nothing was done.
            TooManyError: LEASE_KEYS_MAX keys hang on leases. Nothing was done.
        """

    def watch(
        self,
        prefix: bytes,
        from_revision: int | None = None,
        *,
        values: bool = False,
        skip_own: bool = False,
    ) -> AbstractAsyncContextManager[Watch]:
        """Watch every commit above ``from_revision`` (None: from now) that touches ``prefix``.

        Raises (on entering):
            WatchGapError: history does not reach back to ``from_revision``, or is not yet there.
            TooManyError: WATCHES_MAX watches are open.
        """

    async def lease(self, ttl_s: float) -> int:
        """Grant a lease; it lapses ``ttl_s`` seconds after the last keepalive.

        After a restart of the server it has its full time again, unless its holder lived in the
        server's process: then its keys are gone.
        """

    async def keepalive(self, lease: int) -> None:
        """Renew a lease for its full time to live. Raises LeaseNotFoundError."""

    async def revoke(self, lease: int) -> None:
        """End a lease at once; its keys vanish in one commit. Raises LeaseNotFoundError."""

    async def revision(self) -> int:
        """Return the revision of the newest commit."""

    async def sync(self) -> None:
        """Return when all that this client committed is on stable storage (fsync)."""

    async def status(self) -> Status:
        """Return what the server knows of itself."""
