"""Inodes without a name: removed at the last close, or collected when their mount is gone.

Large files are removed in steps, each a commit of bounded size, so that nothing else waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from aspenfs import limits
from aspenfs.chunks import extent_bytes
from aspenfs.errors import (
    AspenError,
    CorruptRecordError,
    FormatVersionError,
    LeaseLostError,
)
from aspenfs.inodes import Inodes
from aspenfs.keys import Keys, range_end
from aspenfs.metadata import decode_orphan
from aspenfs.scans import records_below
from aspenfs.session import Session
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import NO_SESSION, Ino, SessionId
from aspenkv.contract import KeyValue
from aspenkv.errors import AspenKvError, ClosedError

log = logging.getLogger(__name__)


class Orphans:
    """Removes inodes that have lost their last name."""

    def __init__(
        self,
        kv: KeyValue,
        keys: Keys,
        inodes: Inodes,
        transactions: Transactions,
        session: Session,
        is_open: Callable[[Ino], bool],
    ) -> None:
        """Take the parts that the mount composed; ``is_open``: by a handle of this mount."""
        self._kv = kv
        self._keys = keys
        self._inodes = inodes
        self._transactions = transactions
        self._session = session
        self._is_open = is_open
        self._wanted = trio.Event()

    async def delete(self, ino: Ino) -> None:
        """Remove an orphan with all that it holds; nothing happens if it is gone, or has a name."""
        while await self._delete_step(ino):
            pass

    async def _delete_step(self, ino: Ino) -> bool:
        """Remove up to ORPHAN_STEP_CHUNKS chunks, or all the rest; return whether more remain."""
        prefix = self._keys.chunks(ino)
        page = await self._kv.scan(
            prefix, range_end(prefix), limit=limits.ORPHAN_STEP_CHUNKS, keys_only=True
        )
        indices = [int.from_bytes(record.key[-8:], "big") for record in page.records]

        async def attempt(txn: Transaction) -> bool:
            node = await self._inodes.node(ino)
            orphan = self._keys.orphan(ino)
            if node is None:
                txn.delete(orphan)
                return False
            if node.inode.nlink:
                return False
            txn.require_inode(ino, node)
            if page.continuation is None:
                txn.delete(orphan)
                txn.delete_inode(ino, node.inode)
                allocated = node.inode.allocated_bytes
                self._session.count(txn, inodes=-1, allocated_bytes=-allocated)
                return False
            freed = sum(extent_bytes(i, node.inode.size, limits.CHUNK_BYTES) for i in indices)
            rest = node.inode.allocated_bytes - freed
            txn.delete_chunks(prefix, page.records[-1].key + b"\x00")
            txn.put_inode(ino, node.inode._replace(allocated_bytes=rest))
            self._session.count(txn, allocated_bytes=-freed)
            return True

        return await self._transactions.run(attempt)

    def collect_soon(self) -> None:
        """Let :meth:`run` look for orphans now: one without an owner was made."""
        self._wanted.set()

    async def collect(self) -> None:
        """Remove the orphans, and fold the usage counters, of every session that has ended.

        Also those of this session that were closed while their last name was being removed.
        The live sessions are read last: a session registers before it owns anything, so an owner
        that is not among them has ended.
        """
        owners = await self._owners()
        counted = await self._counted_sessions()
        live = await self._session.live_sessions()
        for ino, owner in owners.items():
            is_held = self._is_open(ino) if owner == self._session.id else owner in live
            if not is_held:
                with _damage_skipped(f"orphan inode {ino} cannot be removed"):
                    await self.delete(ino)
        for session in counted - live - {NO_SESSION}:
            with _damage_skipped(f"the counters of session {session} cannot be folded"):
                await self._session.fold(session)

    async def _owners(self) -> dict[Ino, SessionId]:
        owners: dict[Ino, SessionId] = {}
        async for record in records_below(self._kv, self._keys.orphans()):
            parsed = self._keys.parse(record.key)
            if parsed is not None:
                with _damage_skipped(f"orphan inode {parsed.ino} cannot be removed"):
                    owners[parsed.ino] = decode_orphan(record.key, record.value)
        return owners

    async def _counted_sessions(self) -> set[SessionId]:
        counted: set[SessionId] = set()
        async for record in records_below(self._kv, self._keys.usages(), keys_only=True):
            parsed = self._keys.parse(record.key)
            if parsed is not None:
                counted.add(parsed.session)
        return counted

    async def run(self) -> None:
        """Collect now, every ORPHAN_SCAN_S seconds, and when asked to, while the session lives."""
        while True:
            try:
                await self.collect()
            except (LeaseLostError, ClosedError):
                return  # the log says so, or the mount ends; others collect
            except (AspenError, AspenKvError) as error:
                log.warning("orphans could not be collected: %s; trying again later", error)
            with trio.move_on_after(limits.ORPHAN_SCAN_S):
                await self._wanted.wait()
            self._wanted = trio.Event()


@contextmanager
def _damage_skipped(consequence: str) -> Iterator[None]:
    """Log a record that cannot be read, and go on: it must not keep the rest."""
    try:
        yield
    except (CorruptRecordError, FormatVersionError) as error:
        log.warning("%s: %s", consequence, error)
