"""What the service asks of a storage engine.

An engine stores two spaces side by side: the keys of clients, each with the revision that last
wrote it, and the server's own records (leases and the like), which no client can name. A commit
writes to both at once. Requests were validated before; an engine checks no limits but that of what
is copied, which only it can know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from aspenkv.contract import Check, CommitResult, Op, ScanPage, Versioned

ServerRecords = Mapping[bytes, bytes | None]
"""Server records to write with a commit; None removes one."""

NO_SERVER_RECORDS: ServerRecords = {}


class Usage(NamedTuple):
    """Space in bytes: taken by live data, of the whole medium, and left on it."""

    used_bytes: int
    capacity_bytes: int
    available_bytes: int


class Engine(Protocol):
    """An ordered, transactional store. All calls raise :class:`~aspenkv.errors.EngineError`.

    The caller runs one commit at a time. Reads may overlap a commit and see all of it or nothing.
    """

    @property
    def name(self) -> str:
        """What ``status`` calls the engine."""

    def revision(self) -> int:
        """Return the revision of the newest commit, not older than any read has seen."""

    async def get(
        self, keys: Sequence[bytes], *, bulk: bool, bytes_max: int | None = None
    ) -> list[Versioned | None]:
        """Read values of one moment, None for an absent key, in the order of ``keys``.

        Raises:
            InvalidRequestError: the values have more than ``bytes_max`` bytes; they are not in
                memory all at once.
        """

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, keys_only: bool, reverse: bool
    ) -> ScanPage:
        """Read a page of ``[start, end)``, all of one moment.

        The continuation is the ``start`` (``end`` in reverse) from which the next page goes on.
        """

    def commit_nowait(
        self, checks: Sequence[Check], ops: Sequence[Op], server_records: ServerRecords
    ) -> CommitResult | None:
        """Commit at once, or return None with nothing done if that could block for long.

        Without any operation nothing changes the revision; server records are still written.

        Raises:
            InvalidRequestError: an ``add`` meets a value that is no counter, or overflows.
            CommitTooLargeError: copies have more than COMMIT_COPIED_BYTES_MAX bytes.
        """

    async def commit(
        self, checks: Sequence[Check], ops: Sequence[Op], server_records: ServerRecords
    ) -> CommitResult:
        """Commit, waiting as long as it takes; a cancelled call did all of it or nothing.

        Raises:
            InvalidRequestError: an ``add`` meets a value that is no counter, or overflows.
            CommitTooLargeError: copies have more than COMMIT_COPIED_BYTES_MAX bytes.
        """

    async def server_records(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Return the server records whose names start with ``prefix``, in order."""

    async def sync(self) -> None:
        """Return when every commit so far is on stable storage."""

    def usage(self) -> Usage:
        """Return the space taken and left."""
