"""The store behind every client: limits, one commit at a time, leases, watches."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from aspenkv import validation
from aspenkv.contract import (
    Check,
    CommitResult,
    Delete,
    Op,
    ScanPage,
    SessionStatus,
    Status,
    Versioned,
)
from aspenkv.delegations import SERVER, Delegations, Origin
from aspenkv.engine import NO_SERVER_RECORDS, Engine, ServerRecords
from aspenkv.errors import ClosedError, EngineError
from aspenkv.leases import (
    ATTACHMENT_PREFIX,
    LEASE_PREFIX,
    Attachments,
    Lease,
    LeaseTable,
    LeaseTerms,
    removal_records,
)
from aspenkv.limits import (
    INLINE_COMMIT_BYTES_MAX,
    LEASE_ID_MAX,
    LEASE_REMOVAL_RETRY_S,
    SCAN_ENTRIES_MAX,
)
from aspenkv.watches import PrefixWatch, Watcher, WatchHub

_log = logging.getLogger(__name__)

EVERYTHING: Final = b""
"""The prefix of a client that may touch all keys."""

Receipt = Callable[[int], ServerRecords]
"""Returns the server records that tell of a commit, given its revision."""


class Store:
    """Serves one engine to any number of clients, whatever their rights.

    Commits run one at a time: inline while nobody else commits and the engine need not wait, else
    under ``_committing``. One that another client's delegation stands against waits before that, so
    that it holds up nobody else. A commit, its leases and its watch events change together, with no
    checkpoint between, so nobody sees one without the others.
    """

    def __init__(self, engine: Engine, members: Sequence[str], *, is_sole: bool = True) -> None:
        """Serve ``engine``; :meth:`load` comes first, and before any commit :meth:`start`.

        ``is_sole`` says that no other process serves the same data: only then can it be promised
        to a client that nobody else commits.
        """
        self.started_revision = engine.revision()
        self._engine = engine
        self._members = tuple(members)
        self._committing = trio.Lock()
        self._leases = LeaseTable()
        self._lease_granted = trio.Event()
        self._delegations = Delegations(are_granted=is_sole)
        self._hub = WatchHub(self.started_revision, self._delegations)
        self._closed = False
        self._closing = trio.Event()

    async def load(self) -> None:
        """Load the leases.

        Raises:
            EngineError: the engine cannot be read.
        """
        self._leases.load(
            await self._engine.server_records(LEASE_PREFIX),
            await self._engine.server_records(ATTACHMENT_PREFIX),
            trio.current_time(),
        )

    async def start(self) -> None:
        """Remove the leases whose holder died with the last server's process.

        Raises:
            EngineError: the engine cannot be written.
        """
        await self._remove_leases(self._leases.process_bound)

    async def run(self) -> None:
        """Remove leases as they lapse, for ever."""
        while True:
            self._lease_granted = trio.Event()
            with trio.move_on_at(self._leases.next_deadline_s()):
                await self._lease_granted.wait()
            try:
                await self._remove_leases(lambda: self._leases.lapsed(trio.current_time()))
            except EngineError:
                _log.exception("lapsed leases could not be removed; trying again")
                await trio.sleep(LEASE_REMOVAL_RETRY_S)

    def close(self) -> None:
        """Refuse all further calls and end all watches."""
        self._closed = True
        self._closing.set()
        self._hub.close()

    def check_open(self) -> None:
        """Check that the service was not closed. Raises ClosedError."""
        if self._closed:
            raise _closed()

    async def get(
        self, keys: Sequence[bytes], *, bulk: bool, bytes_max: int | None = None
    ) -> list[Versioned | None]:
        """See :meth:`aspenkv.contract.KeyValue.get`; at most ``bytes_max`` bytes of values."""
        if self._closed:
            raise _closed()
        validation.check_keys(keys)
        return await self._engine.get(keys, bulk=bulk, bytes_max=bytes_max)

    async def scan(
        self,
        start: bytes,
        end: bytes,
        *,
        limit: int,
        keys_only: bool,
        reverse: bool,
        continuation: bytes | None,
    ) -> ScanPage:
        """See :meth:`aspenkv.contract.KeyValue.scan`."""
        if self._closed:
            raise _closed()
        validation.check_scan(start, end, limit, continuation)
        if continuation is not None:
            start, end = (start, continuation) if reverse else (continuation, end)
        return await self._engine.scan(
            start, end, limit=min(limit, SCAN_ENTRIES_MAX), keys_only=keys_only, reverse=reverse
        )

    async def commit(
        self,
        origin: Origin,
        checks: Sequence[Check],
        ops: Sequence[Op],
        *,
        prefix: bytes = EVERYTHING,
        receipt: Receipt | None = None,
    ) -> CommitResult:
        """See :meth:`aspenkv.contract.KeyValue.commit`. A cancelled call did nothing.

        Args:
            origin: who commits.
            checks: what must hold.
            ops: what to do.
            prefix: that of the client's keys; leases of others do not exist for it.
            receipt: returns the server records to write with the operations, if there are any; it
                may raise, and then nothing is done.
        """
        if self._closed:
            raise _closed()
        size_bytes, names_lease = validation.check_commit(checks, ops)
        wait_until_s: float | None = None
        if self._delegations.stand_against(origin):
            wait_until_s = self._delegations.wait_until_s(origin, ops, trio.current_time())
        if wait_until_s is not None:
            self._hub.disturb(origin, ops)
        elif size_bytes <= INLINE_COMMIT_BYTES_MAX and not self._committing.locked():
            touched = self._touched(ops, prefix, names_lease=names_lease)
            records = self._records(ops, touched, receipt)
            result = self._engine.commit_nowait(checks, ops, records)
            if result is not None:
                self._committed(result, ops, touched, origin)
                return result
        with self._delegations.announced(origin, ops):
            if wait_until_s is not None:
                with trio.move_on_at(wait_until_s):
                    await self._closing.wait()
            async with self._committing:
                if self._closed:
                    raise _closed()
                touched = self._touched(ops, prefix, names_lease=names_lease)
                records = self._records(ops, touched, receipt)
                result = await self._engine.commit(checks, ops, records)
                self._committed(result, ops, touched, origin)
        return result

    @asynccontextmanager
    async def watch(
        self, prefix: bytes, from_revision: int | None, watcher: Watcher
    ) -> AsyncIterator[PrefixWatch]:
        """See :meth:`aspenkv.contract.KeyValue.watch`."""
        if self._closed:
            raise _closed()
        validation.check_range(prefix, prefix)
        with self._hub.open(prefix, from_revision, watcher) as watch:
            yield watch

    def assume_delegation(self, origin: Origin, prefix: bytes) -> None:
        """Keep what the process before this may have promised to a client just before it ended.

        It may have been killed, and its clients need not have noticed yet.
        """
        self._delegations.assume(origin, prefix, trio.current_time())

    def give_back_delegations(self, origin: Origin) -> None:
        """Forget what was promised to a client that has come to its end."""
        self._delegations.give_back(origin)

    async def grant(self, terms: LeaseTerms) -> int:
        """Store a new lease and return its number; see :meth:`aspenkv.contract.KeyValue.lease`."""
        if self._closed:
            raise _closed()
        validation.check_ttl(terms.ttl_s)
        async with self._committing:
            lease = self._leases.new(
                1 + secrets.randbelow(LEASE_ID_MAX), terms, now_s=trio.current_time()
            )
            await self._engine.commit((), (), dict((lease.record(),)))
            self._leases.insert(lease)
        self._lease_granted.set()
        return lease.id

    def keepalive(self, lease: int, *, prefix: bytes = EVERYTHING) -> None:
        """See :meth:`aspenkv.contract.KeyValue.keepalive`."""
        if self._closed:
            raise _closed()
        self._leases.renew(lease, trio.current_time(), prefix)

    async def revoke(self, lease: int, *, prefix: bytes = EVERYTHING) -> None:
        """See :meth:`aspenkv.contract.KeyValue.revoke`."""
        if self._closed:
            raise _closed()
        await self._remove_leases(lambda: [self._leases.live(lease, trio.current_time(), prefix)])

    def revision(self) -> int:
        """See :meth:`aspenkv.contract.KeyValue.revision`."""
        if self._closed:
            raise _closed()
        return self._engine.revision()

    async def sync(self) -> None:
        """See :meth:`aspenkv.contract.KeyValue.sync`."""
        if self._closed:
            raise _closed()
        await self._engine.sync()

    def status(self, sessions: tuple[SessionStatus, ...], *, prefix: bytes = EVERYTHING) -> Status:
        """See :meth:`aspenkv.contract.KeyValue.status`; leases and watches below ``prefix``."""
        if self._closed:
            raise _closed()
        usage = self._engine.usage()
        return Status(
            engine=self._engine.name,
            members=self._members,
            revision=self._engine.revision(),
            used_bytes=usage.used_bytes,
            capacity_bytes=usage.capacity_bytes,
            available_bytes=usage.available_bytes,
            leases=self._leases.count(prefix),
            watches=self._hub.count(prefix),
            sessions=sessions,
        )

    async def server_records(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Return the server records whose names start with ``prefix``, in order."""
        return await self._engine.server_records(prefix)

    async def write_server_records(self, records: ServerRecords) -> None:
        """Write server records, all or none; a cancelled call wrote none.

        Raises:
            ClosedError: the service was closed.
            EngineError: the engine cannot be written.
        """
        async with self._committing:
            if self._closed:
                raise _closed()
            await self._engine.commit((), (), records)

    def _touched(self, ops: Sequence[Op], prefix: bytes, *, names_lease: bool) -> Attachments:
        return self._leases.touched(
            ops, names_lease=names_lease, now_s=trio.current_time(), prefix=prefix
        )

    def _records(
        self, ops: Sequence[Op], touched: Attachments, receipt: Receipt | None
    ) -> ServerRecords:
        """Return the server records to write with a commit of ``ops``, which comes next.

        The commit raises the revision by one, and nobody else commits meanwhile.
        """
        records = self._leases.attachment_records(touched) if touched else NO_SERVER_RECORDS
        if receipt is None:
            return records
        receipts = receipt(self._hub.revision + 1)
        if not ops:
            return records
        return {**records, **receipts} if records else receipts

    def _committed(
        self, result: CommitResult, ops: Sequence[Op], touched: Attachments, origin: Origin
    ) -> None:
        """Let leases and watches follow a commit that the engine has done."""
        if result.failed_check is None and ops:
            if touched:
                self._leases.apply(touched)
            self._hub.publish(result.revision, ops, origin)

    async def _remove_leases(self, choose: Callable[[], list[Lease]]) -> None:
        """Remove the leases that ``choose`` returns, and their keys, in one commit."""
        async with self._committing:
            leases = choose()
            if not leases:
                return
            ops = [Delete(key) for lease in leases for key in sorted(lease.keys)]
            result = await self._engine.commit((), ops, removal_records(leases))
            self._leases.remove(leases)
            self._committed(result, ops, {}, SERVER)


def _closed() -> ClosedError:
    return ClosedError("the service was closed: connect again")
