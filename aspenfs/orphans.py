"""Inodes without a name: removed when nobody has them open any more, on whatever mount.

The mount that takes the last name of an inode which it has open itself removes it at its last
close. Where other mounts use the volume, they may have it open too, and there is no table of open
files to ask. So a regular file lingers: its remover leaves it ORPHAN_LINGER_S. A mount that hears
of the removal and has the file open puts a hold meanwhile (:mod:`aspenfs.holds`). When the time is
up, the remover removes the inode if there is no hold, else hands it over: who gives up the last
hold removes it.

Who gives up what keeps an inode looks afterwards whether anything still does. So of two who give up
at once, the later one sees that nothing is left. What a mount cannot do any more, others find: each
looks through all orphans from time to time and adopts those that no live session keeps.

Small files are removed many in one commit. Large ones are removed in steps, each a commit of
bounded size, so that nothing else waits for it.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from aspenfs import limits
from aspenfs.chunks import chunk_count, extent_bytes
from aspenfs.errors import (
    AspenError,
    CorruptRecordError,
    FormatVersionError,
    LeaseLostError,
)
from aspenfs.holds import Holds
from aspenfs.inodes import Inodes
from aspenfs.keys import Keys, ParsedKey, range_end
from aspenfs.lingering import Lingering
from aspenfs.metadata import Inode, decode_orphan, encode_orphan
from aspenfs.scans import records_below
from aspenfs.session import Session
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import NO_SESSION, Ino, SessionId
from aspenkv.contract import KeyValue, Record
from aspenkv.errors import AspenKvError, ClosedError
from aspenkv.limits import COMMIT_OPS_MAX, SCAN_ENTRIES_MAX

log = logging.getLogger(__name__)


class _Step(enum.Enum):
    """What a step of a removal has come to."""

    DONE = enum.auto()
    MORE = enum.auto()  # chunks are left
    HELD = enum.auto()  # by another session, which removes it


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
        self._holds = Holds(keys, inodes, transactions, session, is_open)
        self._lingering = Lingering()
        self._is_due = trio.Event()
        self._wanted = trio.Event()
        self._has_missed_news = False

    # --- what the mount hears and does ----------------------------------------------------------

    @property
    def may_be_open_elsewhere(self) -> bool:
        """Whether another mount may have open what has no name any more."""
        return self._session.has_peers

    def heard(self, key: ParsedKey | None) -> None:
        """Take into account what another client has changed; None: it may be anything.

        Does not block.
        """
        if key is None:
            self._has_missed_news = True  # but the store may be away: the next news says it is not
            self._session.heard_of_sessions()
            return
        if self._has_missed_news or key.kind == "M":
            self._session.heard_of_sessions()
            self.collect_soon()
        if key.kind == "O" and self._is_open(key.ino):
            self._holds.want(key.ino)

    def opened(self, ino: Ino, inode: Inode) -> None:
        """Keep a file that is open now, and that another mount has removed. Does not block.

        ``inode`` is what the caches have at this moment: a later change is heard of.
        """
        if not inode.nlink and self._session.has_peers:
            self._holds.want(ino)

    def removed(self, ino: Ino) -> None:
        """See to the end of an inode whose last name this mount has removed. Does not block."""
        if self._is_open(ino):
            return
        if self._session.has_peers:
            self._linger(ino)
        else:
            self.collect_soon()  # too large to be removed with its name

    async def closed(self, ino: Ino) -> None:
        """Give up an inode without a name that is no longer open here.

        Raises:
            AspenError, AspenKvError: it could not be removed; :meth:`run` tries again.
        """
        if ino in self._holds:
            self._lingering.add_due(ino)
            self._is_due.set()
        elif self._session.has_peers:
            self._linger(ino)
        else:
            await self.delete(ino)

    def _linger(self, ino: Ino) -> None:
        self._lingering.add(ino, trio.current_time())
        if len(self._lingering) == 1:
            self._is_due.set()

    def collect_soon(self) -> None:
        """Let :meth:`run` look for orphans now."""
        self._wanted.set()

    # --- removal --------------------------------------------------------------------------------

    async def delete(self, ino: Ino) -> None:
        """Remove an orphan with all that it holds; nothing happens if it is gone, or has a name.

        One that is open here stays until it is closed, one that another session holds is left to
        that one.
        """
        step = _Step.MORE
        while step is not _Step.DONE:
            step = await self._delete_step(ino)
            if step is _Step.HELD and await self._is_held(ino):
                return

    async def _is_held(self, ino: Ino) -> bool:
        page = await self._kv.scan(*self._keys.holds(ino), limit=1, keys_only=True)
        return bool(page.records)

    async def _delete_step(self, ino: Ino) -> _Step:
        """Remove up to ORPHAN_STEP_CHUNKS chunks, or all the rest."""
        prefix = self._keys.chunks(ino)

        async def attempt(txn: Transaction) -> _Step:
            node = await self._inodes.node(ino)
            orphan = self._keys.orphan(ino)
            if node is None:
                txn.delete(orphan)
                return _Step.DONE
            if node.inode.nlink or self._is_open(ino):
                return _Step.DONE
            txn.require_inode(ino, node)
            if txn.is_retry and await self._is_held(ino):
                txn.put(orphan, encode_orphan(NO_SESSION))
                return _Step.HELD
            txn.require_not_held(ino)
            # After the inode: no chunk comes or goes while that stays as it was read.
            page = await self._kv.scan(
                prefix, range_end(prefix), limit=limits.ORPHAN_STEP_CHUNKS, keys_only=True
            )
            if page.continuation is None:
                self._delete_whole(txn, ino, node.inode)
                allocated = node.inode.allocated_bytes
                self._session.count(txn, inodes=-1, allocated_bytes=-allocated)
                return _Step.DONE
            indices = [int.from_bytes(record.key[-8:], "big") for record in page.records]
            freed = sum(extent_bytes(i, node.inode.size, limits.CHUNK_BYTES) for i in indices)
            rest = node.inode.allocated_bytes - freed
            txn.delete_chunks(prefix, page.records[-1].key + b"\x00")
            txn.put_inode(ino, node.inode._replace(allocated_bytes=rest))
            self._session.count(txn, allocated_bytes=-freed)
            return _Step.MORE

        return await self._transactions.run(attempt)

    def _delete_whole(self, txn: Transaction, ino: Ino, inode: Inode) -> None:
        txn.delete(self._keys.orphan(ino))
        txn.delete_inode(ino, inode)

    async def _delete_all(self, inos: Sequence[Ino]) -> None:
        """Remove orphans, many in one commit; each alone where that cannot be."""
        while inos:
            left = await self._delete_together(inos)
            if len(left) == len(inos):
                for ino in inos:
                    with _damage_skipped(f"orphan inode {ino} cannot be removed"):
                        await self.delete(ino)
                return
            inos = left

    async def _delete_together(self, inos: Sequence[Ino]) -> Sequence[Ino]:
        """Remove as many orphans as one commit may; return which are left.

        They are all left if one of them has changed, is held or cannot be read.
        """

        async def attempt(txn: Transaction) -> Sequence[Ino]:
            if txn.is_retry:
                return inos
            left: list[Ino] = []
            inodes = chunks = allocated_bytes = 0
            for ino, node in zip(inos, await self._inodes.nodes(inos), strict=True):
                if node is None:
                    txn.delete(self._keys.orphan(ino))
                    continue
                if node.inode.nlink or self._is_open(ino):
                    continue
                chunks += chunk_count(node.inode.allocated_bytes, limits.CHUNK_BYTES)
                is_full = len(txn.ops) + limits.ORPHAN_OPS_MAX + 2 > COMMIT_OPS_MAX
                if is_full or chunks > limits.UNLINK_AT_ONCE_CHUNKS:
                    left.append(ino)
                    continue
                txn.require_inode(ino, node)
                txn.require_not_held(ino)
                self._delete_whole(txn, ino, node.inode)
                inodes += 1
                allocated_bytes += node.inode.allocated_bytes
            self._session.count(txn, inodes=-inodes, allocated_bytes=-allocated_bytes)
            return left

        try:
            return await self._transactions.run(attempt)
        except (CorruptRecordError, FormatVersionError):
            return inos

    # --- in the background ----------------------------------------------------------------------

    async def _sweep(self, inos: Sequence[Ino]) -> None:
        """Remove those of the inodes that are due which nobody keeps."""
        await self._holds.give_up(inos)
        owners = await self._owners(inos)
        live: set[SessionId] = set()
        if not {NO_SESSION, self._session.id}.issuperset(owners.values()):
            live = await self._session.live_sessions() - {self._session.id}
        await self._delete_all([ino for ino, owner in owners.items() if owner not in live])

    async def _owners(self, inos: Sequence[Ino]) -> dict[Ino, SessionId]:
        """Return who has removed each inode; those that are gone are left out."""
        owners: dict[Ino, SessionId] = {}
        keys = [self._keys.orphan(ino) for ino in inos]
        for ino, key, found in zip(inos, keys, await self._kv.get(keys), strict=True):
            if found is not None:
                with _damage_skipped(f"orphan inode {ino} cannot be removed"):
                    owners[ino] = decode_orphan(key, found.value)
        return owners

    async def _sweep_when_due(self) -> None:
        """Sweep as inodes become due, while the session lives; try again after failures."""
        while True:
            with trio.move_on_at(self._lingering.next_due_s()):
                await self._is_due.wait()
            self._is_due = trio.Event()
            due = self._lingering.take_due(trio.current_time(), limits.ORPHANS_AT_ONCE)
            try:
                if due:
                    await self._sweep(due)
            except (LeaseLostError, ClosedError):
                return  # the log says so, or the mount ends; others collect
            except (AspenError, AspenKvError) as error:
                log.warning("orphans could not be removed: %s; trying again later", error)
                await trio.sleep(limits.ORPHAN_LINGER_S)
                for ino in due:
                    self._lingering.add_due(ino)

    async def collect(self) -> None:
        """Remove the orphans, and fold the usage counters, of every session that has ended.

        Also those of this session that nothing keeps any more. Where there are other sessions, they
        linger first.

        The live sessions are read last: a session registers before it owns or holds anything, so
        one that is not among them has ended.
        """
        counted = await self._counted_sessions()
        start, end = self._keys.orphans(), range_end(self._keys.orphans())
        continuation: bytes | None = None
        while True:
            page = await self._kv.scan(
                start, end, limit=SCAN_ENTRIES_MAX, continuation=continuation
            )
            live = await self._session.live_sessions()
            await self._collect_some(self._users(page.records), live - {self._session.id})
            continuation = page.continuation
            if continuation is None:
                break
        for session in counted - live - {NO_SESSION}:
            with _damage_skipped(f"the counters of session {session} cannot be folded"):
                await self._session.fold(session)

    def _users(self, records: Sequence[Record]) -> dict[Ino, set[SessionId]]:
        """Return the sessions that keep each orphan: its remover, and those that hold it.

        Holds on the last one may be on the next page. Who removes an orphan checks them anyway.
        """
        users: dict[Ino, set[SessionId]] = {}
        for record in records:
            parsed = self._keys.parse(record.key)
            if parsed is None:
                continue
            if parsed.kind == "O.hold":
                users.setdefault(parsed.ino, set()).add(parsed.holder)
                if parsed.holder == self._session.id and not self._is_open(parsed.ino):
                    self._holds.note(parsed.ino)
                    self._lingering.add_due(parsed.ino)
                    self._is_due.set()
                continue
            with _damage_skipped(f"orphan inode {parsed.ino} cannot be removed"):
                owner = decode_orphan(record.key, record.value)
                users.setdefault(parsed.ino, set()).add(owner)
        return users

    async def _collect_some(self, users: dict[Ino, set[SessionId]], peers: set[SessionId]) -> None:
        unused: list[Ino] = []
        for ino, sessions in users.items():
            if self._is_open(ino):
                if self._session.id not in sessions:
                    self._holds.want(ino)  # this mount did not hear of the removal
            elif ino in self._lingering or sessions & peers:
                pass
            elif peers:
                self._linger(ino)
            else:
                unused.append(ino)
        for first in range(0, len(unused), limits.ORPHANS_AT_ONCE):
            await self._delete_all(unused[first : first + limits.ORPHANS_AT_ONCE])

    async def _counted_sessions(self) -> set[SessionId]:
        counted: set[SessionId] = set()
        async for record in records_below(self._kv, self._keys.usages(), keys_only=True):
            parsed = self._keys.parse(record.key)
            if parsed is not None:
                counted.add(parsed.session)
        return counted

    async def _collect_always(self) -> None:
        """Collect now, every ORPHAN_SCAN_S seconds, and when asked to, while the session lives."""
        while True:
            self._wanted = trio.Event()
            self._has_missed_news = False
            try:
                await self.collect()
            except (LeaseLostError, ClosedError):
                return  # the log says so, or the mount ends; others collect
            except (AspenError, AspenKvError) as error:
                log.warning("orphans could not be collected: %s; trying again later", error)
            with trio.move_on_after(limits.ORPHAN_SCAN_S):
                await self._wanted.wait()

    async def run(self) -> None:
        """Collect, hold and sweep until cancelled; then leave to others what they collect."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep_when_due)
                nursery.start_soon(self._holds.run)
                await self._collect_always()
        finally:
            if self._session.had_peers:
                with trio.CancelScope(shield=True), trio.move_on_after(limits.SESSION_CALL_S):
                    await self._collect_at_exit()

    async def _collect_at_exit(self) -> None:
        """Remove what lingers, unless there are others, who will."""
        try:
            if len(await self._session.live_sessions()) > 1:
                return
            await self.collect()
            while due := self._lingering.take_due(float("inf"), limits.ORPHANS_AT_ONCE):
                await self._sweep(due)
        except (AspenError, AspenKvError) as error:
            log.info("removed files are left to the next mount: %s", error)


@contextmanager
def _damage_skipped(consequence: str) -> Iterator[None]:
    """Log a record that cannot be read, and go on: it must not keep the rest."""
    try:
        yield
    except (CorruptRecordError, FormatVersionError) as error:
        log.warning("%s: %s", consequence, error)
