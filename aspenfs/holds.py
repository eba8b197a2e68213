"""This mount's holds: records that keep inodes which others have removed while it has them open.

A hold is put by a commit that requires the inode's record, and an inode is removed by a commit that
requires that there is no hold on it. So either the hold is there in time, or the inode is gone and
reading it says so. Holds are attached to the session's lease and end with it, however it ends.

Lock: ``_lock`` is held by the one task that puts or removes holds; it is freed when that commit
ends, however it ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import islice

import trio

from aspenfs import limits
from aspenfs.errors import AspenError, LeaseLostError
from aspenfs.inodes import Inodes
from aspenfs.keys import Keys
from aspenfs.session import Session
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import NO_SESSION, Ino
from aspenkv.errors import AspenKvError, ClosedError, LeaseNotFoundError

log = logging.getLogger(__name__)


class Holds:
    """The holds of one mount. Bounded by the inodes that it has open."""

    def __init__(
        self,
        keys: Keys,
        inodes: Inodes,
        transactions: Transactions,
        session: Session,
        is_open: Callable[[Ino], bool],
    ) -> None:
        """Take the parts that the mount composed; ``is_open``: by a handle of this mount."""
        self._keys = keys
        self._inodes = inodes
        self._transactions = transactions
        self._session = session
        self._is_open = is_open
        self._wanted: dict[Ino, None] = {}
        self._is_wanted = trio.Event()
        self._may_exist: set[Ino] = set()  # also those whose commit is in doubt
        self._lock = trio.Lock()

    def __contains__(self, ino: Ino) -> bool:
        """Return whether there may be a hold of this mount on an inode."""
        return ino in self._may_exist

    def want(self, ino: Ino) -> None:
        """Let :meth:`run` hold an inode, if it has no name and is open here. Does not block."""
        if self._session.id != NO_SESSION:  # a read-only mount writes no records
            self._wanted[ino] = None
            self._is_wanted.set()

    def note(self, ino: Ino) -> None:
        """Take note of a hold of this session that was found in the store."""
        self._may_exist.add(ino)

    async def run(self) -> None:
        """Put the holds that are wanted, while the session lives; tries again after failures."""
        has_failed = False
        while True:
            await self._is_wanted.wait()
            self._is_wanted = trio.Event()
            try:
                while self._wanted:
                    await self._put_some()
            except (LeaseLostError, LeaseNotFoundError, ClosedError):
                return  # the log says so, or soon will, or the mount ends
            except (AspenError, AspenKvError) as error:
                if not has_failed:
                    log.warning("removed files cannot be kept open: %s; trying again", error)
                has_failed = True
                self._is_wanted.set()
                await trio.sleep(limits.HOLD_RETRY_S)
            else:
                has_failed = False

    async def _put_some(self) -> None:
        async with self._lock:
            inos = list(islice(self._wanted, limits.HOLDS_AT_ONCE))
            for ino in inos:
                del self._wanted[ino]
            held: list[Ino] = []

            async def attempt(txn: Transaction) -> None:
                held.clear()
                for ino, node in zip(inos, await self._inodes.nodes(inos), strict=True):
                    if node is None or node.inode.nlink or not self._is_open(ino):
                        continue
                    txn.require_inode(ino, node)
                    txn.put(self._keys.hold(ino, self._session.id), b"", self._session.lease)
                    held.append(ino)
                self._may_exist.update(held)

            try:
                await self._transactions.run(attempt)
            except BaseException:
                self._wanted.update(dict.fromkeys(inos))
                raise
        # Their last close did not know yet that there is something to give up.
        await self.give_up(held)

    async def give_up(self, inos: Iterable[Ino]) -> None:
        """Remove the holds on inodes, but for those that are open again.

        Raises:
            AspenError, AspenKvError: what made the commit fail; the holds may still be there.
        """
        async with self._lock:
            held = [ino for ino in inos if ino in self._may_exist and not self._is_open(ino)]

            async def attempt(txn: Transaction) -> None:
                for ino in held:
                    txn.delete(self._keys.hold(ino, self._session.id))

            await self._transactions.run(attempt)
            self._may_exist.difference_update(held)
