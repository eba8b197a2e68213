"""The server behind every carrier: limits, one commit at a time, leases, watches."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import trio

from aspenkv import validation
from aspenkv.contract import (
    Check,
    CommitResult,
    Delete,
    KeyValue,
    Op,
    ScanPage,
    Status,
    Versioned,
    Watch,
)
from aspenkv.engine import NO_SERVER_RECORDS, Engine
from aspenkv.errors import ClosedError, EngineError
from aspenkv.leases import (
    ATTACHMENT_PREFIX,
    LEASE_PREFIX,
    Attachments,
    Lease,
    LeaseTable,
    removal_records,
)
from aspenkv.limits import (
    INLINE_COMMIT_BYTES_MAX,
    LEASE_ID_MAX,
    LEASE_REMOVAL_RETRY_S,
    SCAN_ENTRIES_MAX,
)
from aspenkv.watches import NOBODY, Origin, WatchHub

_log = logging.getLogger(__name__)

_SERVER: Final[Origin] = object()
"""The origin of the commits that the server makes itself."""


class Service:
    """Serves one engine to any number of clients.

    Commits run one at a time: inline while nobody else commits and the engine need not wait, else
    under ``_committing``. A commit, its leases and its watch events change together, with no
    checkpoint between, so nobody sees one without the others.
    """

    def __init__(self, engine: Engine, members: Sequence[str]) -> None:
        """Serve ``engine``; :meth:`load` comes first, and before any commit :meth:`start`."""
        self._engine = engine
        self._members = tuple(members)
        self._committing = trio.Lock()
        self._leases = LeaseTable()
        self._lease_granted = trio.Event()
        self._hub = WatchHub(engine.revision())
        self._closed = False

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
        self._hub.close()

    def connect(self, *, process_bound: bool = True) -> KeyValue:
        """Return a new client that calls this service directly.

        ``process_bound`` says that its user dies with this process, and its leases with them.
        """
        return ServiceClient(self, process_bound=process_bound)

    async def get(self, keys: Sequence[bytes], *, bulk: bool) -> list[Versioned | None]:
        """See :meth:`aspenkv.contract.KeyValue.get`."""
        if self._closed:
            raise _closed()
        validation.check_keys(keys)
        return await self._engine.get(keys, bulk=bulk)

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
        self, origin: Origin, checks: Sequence[Check], ops: Sequence[Op]
    ) -> CommitResult:
        """See :meth:`aspenkv.contract.KeyValue.commit`."""
        if self._closed:
            raise _closed()
        size_bytes, names_lease = validation.check_commit(checks, ops)
        if size_bytes <= INLINE_COMMIT_BYTES_MAX and not self._committing.locked():
            touched = self._touched(ops, names_lease=names_lease)
            records = self._leases.attachment_records(touched) if touched else NO_SERVER_RECORDS
            result = self._engine.commit_nowait(checks, ops, records)
            if result is not None:
                self._committed(result, ops, touched, origin)
                return result
        async with self._committing:
            if self._closed:
                raise _closed()
            touched = self._touched(ops, names_lease=names_lease)
            records = self._leases.attachment_records(touched)
            result = await self._engine.commit(checks, ops, records)
            self._committed(result, ops, touched, origin)
        return result

    @asynccontextmanager
    async def watch(
        self, prefix: bytes, from_revision: int | None, *, values: bool, skipped: Origin
    ) -> AsyncIterator[Watch]:
        """See :meth:`aspenkv.contract.KeyValue.watch`."""
        if self._closed:
            raise _closed()
        validation.check_range(prefix, prefix)
        with self._hub.open(prefix, from_revision, values=values, skipped=skipped) as watch:
            yield watch

    async def grant(self, ttl_s: float, *, process_bound: bool) -> int:
        """Store a new lease and return its number; see :meth:`aspenkv.contract.KeyValue.lease`."""
        if self._closed:
            raise _closed()
        validation.check_ttl(ttl_s)
        async with self._committing:
            lease = self._leases.new(
                1 + secrets.randbelow(LEASE_ID_MAX),
                ttl_s,
                process_bound=process_bound,
                now_s=trio.current_time(),
            )
            await self._engine.commit((), (), dict((lease.record(),)))
            self._leases.insert(lease)
        self._lease_granted.set()
        return lease.id

    def keepalive(self, lease: int) -> None:
        """See :meth:`aspenkv.contract.KeyValue.keepalive`."""
        if self._closed:
            raise _closed()
        self._leases.renew(lease, trio.current_time())

    async def revoke(self, lease: int) -> None:
        """See :meth:`aspenkv.contract.KeyValue.revoke`."""
        if self._closed:
            raise _closed()
        await self._remove_leases(lambda: [self._leases.live(lease, trio.current_time())])

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

    def status(self) -> Status:
        """See :meth:`aspenkv.contract.KeyValue.status`."""
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
            leases=len(self._leases),
            watches=len(self._hub),
            sessions=(),
        )

    def _touched(self, ops: Sequence[Op], *, names_lease: bool) -> Attachments:
        return self._leases.touched(ops, names_lease=names_lease, now_s=trio.current_time())

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
            self._committed(result, ops, {}, _SERVER)


class ServiceClient:
    """The direct carrier: the key-value interface as plain calls of the service."""

    def __init__(self, service: Service, *, process_bound: bool) -> None:
        """Make one client; see :meth:`Service.connect`."""
        self._service = service
        self._process_bound = process_bound

    async def get(self, keys: Sequence[bytes], *, bulk: bool = False) -> list[Versioned | None]:
        """See :meth:`aspenkv.contract.KeyValue.get`."""
        return await self._service.get(keys, bulk=bulk)

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
        """See :meth:`aspenkv.contract.KeyValue.scan`."""
        return await self._service.scan(
            start,
            end,
            limit=limit,
            keys_only=keys_only,
            reverse=reverse,
            continuation=continuation,
        )

    async def commit(self, checks: Sequence[Check], ops: Sequence[Op]) -> CommitResult:
        """See :meth:`aspenkv.contract.KeyValue.commit`."""
        return await self._service.commit(self, checks, ops)

    def watch(
        self,
        prefix: bytes,
        from_revision: int | None = None,
        *,
        values: bool = False,
        skip_own: bool = False,
    ) -> AbstractAsyncContextManager[Watch]:
        """See :meth:`aspenkv.contract.KeyValue.watch`."""
        return self._service.watch(
            prefix, from_revision, values=values, skipped=self if skip_own else NOBODY
        )

    async def lease(self, ttl_s: float) -> int:
        """See :meth:`aspenkv.contract.KeyValue.lease`."""
        return await self._service.grant(ttl_s, process_bound=self._process_bound)

    async def keepalive(self, lease: int) -> None:
        """See :meth:`aspenkv.contract.KeyValue.keepalive`."""
        self._service.keepalive(lease)

    async def revoke(self, lease: int) -> None:
        """See :meth:`aspenkv.contract.KeyValue.revoke`."""
        await self._service.revoke(lease)

    async def revision(self) -> int:
        """See :meth:`aspenkv.contract.KeyValue.revision`."""
        return self._service.revision()

    async def sync(self) -> None:
        """See :meth:`aspenkv.contract.KeyValue.sync`."""
        await self._service.sync()

    async def status(self) -> Status:
        """See :meth:`aspenkv.contract.KeyValue.status`."""
        return self._service.status()


def _closed() -> ClosedError:
    return ClosedError("the service was closed: connect again")
