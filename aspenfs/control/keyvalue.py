"""The key-value store behind a mount, by way of its control socket: both ends of the calls.

Reading is whole; of the operations of a commit only put and delete are offered, which is what the
command line needs. Watches and leases belong to mounts, not to a look inside.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from aspenfs.control.client import ControlClient
from aspenfs.control.server import Handlers
from aspenfs.errors import FilesystemError
from aspenkv.contract import (
    Check,
    CommitResult,
    Delete,
    KeyValue,
    Op,
    Put,
    Record,
    RevisionIs,
    ScanPage,
    SessionStatus,
    Status,
    Versioned,
    Watch,
)
from aspenkv.errors import InvalidRequestError


def key_value_handlers(kv: KeyValue, *, read_only: bool) -> Handlers:
    """Return the server's end.

    Args:
        kv: a client of its own, so that the mount's watch shows it these commits.
        read_only: refuse commits.
    """

    async def get(args: Mapping[str, Any]) -> object:
        return await kv.get(args["keys"], bulk=True)

    async def scan(args: Mapping[str, Any]) -> object:
        return await kv.scan(
            args["start"],
            args["end"],
            limit=args["limit"],
            keys_only=args["keys_only"],
            reverse=args["reverse"],
            continuation=args["continuation"],
        )

    async def commit(args: Mapping[str, Any]) -> object:
        if read_only:
            raise FilesystemError(errno.EROFS, "it is mounted read-only")
        checks = [RevisionIs(key, revision) for key, revision in args["checks"]]
        ops: list[Op] = [
            Delete(key) if value is None else Put(key, value) for key, value in args["ops"]
        ]
        return await kv.commit(checks, ops)

    async def revision(_args: Mapping[str, Any]) -> object:
        return await kv.revision()

    async def status(_args: Mapping[str, Any]) -> object:
        return await kv.status()

    async def sync(_args: Mapping[str, Any]) -> None:
        await kv.sync()

    return {
        "kv_get": get,
        "kv_scan": scan,
        "kv_commit": commit,
        "kv_revision": revision,
        "kv_status": status,
        "kv_sync": sync,
    }


class RemoteKeyValue:
    """The client's end: a :class:`~aspenkv.contract.KeyValue` over a control connection."""

    def __init__(self, client: ControlClient) -> None:
        """Take a connection; it may be used for other calls too."""
        self._client = client

    async def get(self, keys: Sequence[bytes], *, bulk: bool = False) -> list[Versioned | None]:
        """See :meth:`aspenkv.contract.KeyValue.get`; there is one way to carry any value."""
        del bulk
        found = await self._client.call("kv_get", keys=list(keys))
        return [None if row is None else Versioned(*row) for row in found]

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
        records, after = await self._client.call(
            "kv_scan",
            start=start,
            end=end,
            limit=limit,
            keys_only=keys_only,
            reverse=reverse,
            continuation=continuation,
        )
        return ScanPage([Record(*row) for row in records], after)

    async def commit(self, checks: Sequence[Check], ops: Sequence[Op]) -> CommitResult:
        """See :meth:`aspenkv.contract.KeyValue.commit`; takes what the module's docstring says.

        Raises:
            InvalidRequestError: another kind of check or operation. Nothing was done.
        """
        answer = await self._client.call(
            "kv_commit",
            checks=[_encode_check(check) for check in checks],
            ops=[_encode_op(op) for op in ops],
        )
        return CommitResult(*answer)

    def watch(
        self,
        prefix: bytes,  # noqa: ARG002 - the names are the contract's
        from_revision: int | None = None,  # noqa: ARG002
        *,
        values: bool = False,  # noqa: ARG002
        skip_own: bool = False,  # noqa: ARG002
    ) -> AbstractAsyncContextManager[Watch]:
        """Refuse. Raises InvalidRequestError."""
        raise _not_offered("watch")

    async def lease(self, ttl_s: float) -> int:  # noqa: ARG002
        """Refuse. Raises InvalidRequestError."""
        raise _not_offered("lease")

    async def keepalive(self, lease: int) -> None:  # noqa: ARG002
        """Refuse. Raises InvalidRequestError."""
        raise _not_offered("keepalive")

    async def revoke(self, lease: int) -> None:  # noqa: ARG002
        """Refuse. Raises InvalidRequestError."""
        raise _not_offered("revoke")

    async def revision(self) -> int:
        """See :meth:`aspenkv.contract.KeyValue.revision`."""
        return int(await self._client.call("kv_revision"))

    async def sync(self) -> None:
        """See :meth:`aspenkv.contract.KeyValue.sync`."""
        await self._client.call("kv_sync")

    async def status(self) -> Status:
        """See :meth:`aspenkv.contract.KeyValue.status`."""
        engine, members, *numbers, sessions = await self._client.call("kv_status")
        rows = tuple(SessionStatus(*row) for row in sessions)
        return Status._make((engine, tuple(members), *numbers, rows))


def _encode_check(check: Check) -> tuple[bytes, int]:
    if isinstance(check, RevisionIs):
        return check.key, check.revision
    raise _not_offered(type(check).__name__)


def _encode_op(op: Op) -> tuple[bytes, bytes | None]:
    if isinstance(op, Put) and not op.lease:
        return op.key, bytes(op.value)
    if isinstance(op, Delete):
        return op.key, None
    raise _not_offered(type(op).__name__)


def _not_offered(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"{what} is not offered over the control socket")
