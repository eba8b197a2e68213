"""Optimistic transactions: read, build one commit with checks, retry when another was first.

Every change of the filesystem is one commit. What it reads may come from the meta cache: a check on
the revision read makes a stale read a retry, never a wrong result. After a commit the caches are
brought up to date before the caller goes on (write-through).
"""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

import trio

from aspenfs import limits
from aspenfs.cache import Caches
from aspenfs.errors import FilesystemError, LeaseLostError
from aspenfs.keys import Keys, range_end
from aspenfs.metadata import Dentry, Inode, Times, encode_dentry, encode_inode, encode_times
from aspenfs.nodes import Entry, Node
from aspenfs.types import Ino
from aspenkv.contract import (
    Add,
    Check,
    Copy,
    Delete,
    DeleteRange,
    KeyValue,
    Op,
    Patch,
    Put,
    RangeEmpty,
    RevisionIs,
)
from aspenkv.errors import OutcomeUnknownError

log = logging.getLogger(__name__)

T = TypeVar("T")


class TransactionStatistics(NamedTuple):
    """Counts since the mount: commits that changed something, and commits that had to be redone."""

    commits: int
    conflicts: int


class Transaction:
    """The checks and operations of one attempt, and the records that they will leave in the caches.

    The methods only gather; nothing happens before :meth:`Transactions.run` commits.
    """

    __slots__ = (
        "_keys",
        "checks",
        "dentries",
        "directories",
        "inodes",
        "is_in_doubt",
        "is_retry",
        "ops",
        "required",
        "revision",
        "times",
        "touched",
    )

    def __init__(self, keys: Keys, *, is_retry: bool = False) -> None:
        """Start empty. ``is_retry``: a check failed before, so something known was wrong."""
        self._keys = keys
        self.is_retry = is_retry
        self.checks: list[Check] = []
        self.ops: list[Op] = []
        self.required: dict[Ino, Node] = {}
        self.is_in_doubt = False  # whether it was committed is not known
        self.revision = 0  # of the commit, once it is done
        self.inodes: dict[Ino, Inode | None] = {}
        self.times: dict[Ino, Times] = {}
        self.dentries: list[tuple[Ino, bytes, Dentry | None]] = []
        self.directories: list[Ino] = []
        self.touched: list[tuple[bytes, bytes | None]] = []

    def require(self, key: bytes, revision: int) -> None:
        """Check that ``key`` was last written by ``revision`` (0: is absent)."""
        self.checks.append(RevisionIs(key, revision))

    def require_inode(self, ino: Ino, node: Node) -> None:
        """Check that the inode record is still the one read."""
        self.checks.append(RevisionIs(self._keys.inode(ino), node.revision))
        self.required[ino] = node

    def require_times(self, ino: Ino, node: Node) -> None:
        """Check that the times are still those read; needed when only one of them changes."""
        self.checks.append(RevisionIs(self._keys.times(ino), node.times_revision))

    def require_entry(self, parent: Ino, name: bytes, entry: Entry | None) -> None:
        """Check that a name still means what was read; None: that it does not exist."""
        revision = 0 if entry is None else entry.revision
        self.checks.append(RevisionIs(self._keys.dentry(parent, name), revision))

    def require_empty_directory(self, ino: Ino) -> None:
        """Check that a directory has no entry."""
        prefix = self._keys.dentries(ino)
        self.checks.append(RangeEmpty(prefix, range_end(prefix)))

    def require_not_held(self, ino: Ino) -> None:
        """Check that no session holds an orphan."""
        self.checks.append(RangeEmpty(*self._keys.holds(ino)))

    def put_inode(self, ino: Ino, inode: Inode) -> None:
        """Write an inode record."""
        self.ops.append(Put(self._keys.inode(ino), encode_inode(inode)))
        self.inodes[ino] = inode

    def put_directory(self, ino: Ino, inode: Inode) -> None:
        """Write the record of a new directory, which has no names yet."""
        self.put_inode(ino, inode)
        self.directories.append(ino)

    def put_times(self, ino: Ino, times: Times) -> None:
        """Write an inode's mtime and ctime."""
        self.ops.append(Put(self._keys.times(ino), encode_times(times)))
        self.times[ino] = times

    def put_entry(self, parent: Ino, name: bytes, dentry: Dentry) -> None:
        """Make a name mean an inode."""
        self.ops.append(Put(self._keys.dentry(parent, name), encode_dentry(dentry)))
        self.dentries.append((parent, name, dentry))

    def delete_entry(self, parent: Ino, name: bytes) -> None:
        """Remove a name."""
        self.ops.append(Delete(self._keys.dentry(parent, name)))
        self.dentries.append((parent, name, None))

    def delete_inode(self, ino: Ino, inode: Inode) -> None:
        """Remove an inode with its times, chunks and extended attributes."""
        self.ops.append(Delete(self._keys.inode(ino)))
        self.ops.append(Delete(self._keys.times(ino)))
        self.inodes[ino] = None
        if inode.is_regular and inode.inline is None:
            self.delete_chunks(self._keys.chunks(ino))
        if inode.has_xattrs:
            xattrs = self._keys.xattrs(ino)
            self.ops.append(DeleteRange(xattrs, range_end(xattrs)))

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        """Write any other record."""
        self.ops.append(Put(key, value, lease))

    def delete(self, key: bytes) -> None:
        """Remove any other record."""
        self.ops.append(Delete(key))

    def delete_chunks(self, start: bytes, end: bytes | None = None) -> None:
        """Remove the chunks in ``[start, end)``, by default all whose keys start with ``start``."""
        end = range_end(start) if end is None else end
        self.ops.append(DeleteRange(start, end))
        self.touched.append((start, end))

    def put_chunk(self, key: bytes, data: bytes | memoryview) -> None:
        """Write a whole chunk."""
        self.ops.append(Put(key, data))
        self.touched.append((key, None))

    def patch_chunk(
        self, key: bytes, offset: int, data: bytes | memoryview, truncate_to: int | None = None
    ) -> None:
        """Write a part of a chunk, or cut it."""
        self.ops.append(Patch(key, offset, data, truncate_to))
        self.touched.append((key, None))

    def copy_chunk(self, source: bytes, key: bytes) -> None:
        """Write what another chunk has then, whole; nothing if that is a hole."""
        self.ops.append(Copy(key, source))
        self.touched.append((key, None))

    def add(self, key: bytes, delta: int) -> None:
        """Move a counter; nothing for 0."""
        if delta:
            self.ops.append(Add(key, delta))


class Transactions:
    """Runs transactions on one volume and keeps the caches true to their results."""

    def __init__(
        self, kv: KeyValue, keys: Keys, caches: Caches, *, read_only: bool = False
    ) -> None:
        """Take the client and the caches of one mount."""
        self._kv = kv
        self._keys = keys
        self._caches = caches
        self.read_only = read_only
        self.on_doubt: Callable[[], None] = _do_nothing
        """Called when a commit may have been done, or may still be."""
        self.on_session_lost: Callable[[], None] = _do_nothing
        """Called once, when the session turns out to be gone."""
        self._fence: tuple[Check, ...] = ()
        self._session_lost = False
        self._doubtful: dict[Ino, None] = {}  # required by a commit whose outcome is not known
        self._commits = 0
        self._conflicts = 0

    def fence(self, key: bytes, revision: int) -> None:
        """Check in every further commit, first of all, that ``revision`` last wrote ``key``.

        The key is this mount's session, which vanishes when its lease lapses. So a mount that was
        out of reach for too long changes nothing, whenever its commits arrive.
        """
        self._fence = (RevisionIs(key, revision),)

    def refuse_from_now(self) -> None:
        """Let every further commit fail: the session is gone and others may have taken over."""
        if not self._session_lost:
            self._session_lost = True
            log.critical("the session of this mount lapsed: changes are refused; mount again")
            self.on_session_lost()

    @property
    def is_refused(self) -> bool:
        """Whether the session is known to be gone."""
        return self._session_lost

    def statistics(self) -> TransactionStatistics:
        """Return the counts since the mount."""
        return TransactionStatistics(self._commits, self._conflicts)

    async def run(self, attempt: Callable[[Transaction], Awaitable[T]]) -> T:
        """Call ``attempt`` until the commit that it builds is done, and return what it returned.

        An attempt without operations is done at once, without a commit.

        Raises:
            FilesystemError: EROFS on a read-only mount; EBUSY after TXN_ATTEMPTS_MAX conflicts.
            LeaseLostError: the session of this mount lapsed.
        """
        if self.read_only:
            raise FilesystemError(errno.EROFS, "the mount is read-only")
        backoff_s = limits.TXN_BACKOFF_FIRST_S
        for number in range(limits.TXN_ATTEMPTS_MAX):
            if self._session_lost:
                raise LeaseLostError("the session of this mount lapsed; mount again")
            txn = Transaction(self._keys, is_retry=number > 0)
            result = await attempt(txn)
            if not txn.ops:
                return result
            if self._doubtful:
                self._overtake(txn)
            try:
                committed = await self._kv.commit([*self._fence, *txn.checks], txn.ops)
            except BaseException as error:
                if isinstance(error, OutcomeUnknownError) or not isinstance(error, Exception):
                    self._note_doubt(txn)
                self._forget_ops(txn.ops)
                raise
            if committed.failed_check is None:
                self._commits += 1
                txn.revision = committed.revision
                self._keep(txn, committed.revision)
                for ino in self._doubtful.keys() & txn.inodes.keys():
                    del self._doubtful[ino]
                return result
            if self._fence and committed.failed_check == 0:
                self.refuse_from_now()
                continue
            self._conflicts += 1
            self._forget(txn.checks)
            await trio.sleep(random.uniform(0, backoff_s))  # noqa: S311  # jitter, not a secret
            backoff_s = min(backoff_s * 2, limits.TXN_BACKOFF_MAX_S)
        raise FilesystemError(errno.EBUSY, "too many conflicting changes by others; try again")

    def _note_doubt(self, txn: Transaction) -> None:
        """Remember that a commit, or a cancelled one, may have been done or may still be."""
        txn.is_in_doubt = True
        self.on_doubt()
        self._doubtful.update(dict.fromkeys(txn.required))
        while len(self._doubtful) > limits.DOUBTFUL_INODES_MAX:
            del self._doubtful[next(iter(self._doubtful))]

    def _overtake(self, txn: Transaction) -> None:
        """Also write the inodes on which a commit in doubt relies.

        Their new revision makes that commit fail, should it come after this one: else it would put
        older bytes over those that are written now, for most writes leave the inode as it is.
        """
        for ino in self._doubtful.keys() & txn.required.keys():
            if ino not in txn.inodes:
                txn.put_inode(ino, txn.required[ino].inode)

    def _forget(self, checks: Sequence[Check]) -> None:
        """Drop what a failed commit was built on, so that the next attempt reads it anew."""
        for check in checks:
            if type(check) is RevisionIs:
                self._caches.invalidate_key(self._keys.inode_of_times(check.key))

    def _forget_ops(self, ops: Sequence[Op]) -> None:
        """Drop what a commit with an unknown outcome may have changed."""
        for op in ops:
            if isinstance(op, DeleteRange):
                self._caches.invalidate_range(op.start, op.end)
                continue
            self._caches.invalidate_key(self._keys.inode_of_times(op.key))
            parsed = self._keys.parse(op.key)
            if parsed is not None and parsed.kind == "D":
                directory = self._keys.dentries(parsed.ino)
                self._caches.scan.invalidate(directory)
                self._caches.names.invalidate(directory)

    def _keep(self, txn: Transaction, revision: int) -> None:
        """Write a commit's results through to the caches."""
        meta, scan, keys = self._caches.meta, self._caches.scan, self._keys
        for start, end in txn.touched:
            if end is None:
                self._caches.read.invalidate(start, revision)
            else:
                self._caches.read.invalidate_range(start, end, revision)
        for ino in txn.inodes | txn.times:
            key = keys.inode(ino)
            inode, times = txn.inodes.get(ino), txn.times.get(ino)
            node = meta.get(key)
            if inode is None and ino in txn.inodes:
                meta.invalidate(key, revision)
            elif type(node) is Node:
                if inode is not None and node.revision < revision:
                    node = node._replace(inode=inode, revision=revision)
                if times is not None and node.times_revision < revision:
                    node = node._replace(times=times, times_revision=revision)
                meta.put(key, node, max(node.revision, node.times_revision))
            elif inode is not None and times is not None:
                meta.put(key, Node(inode, revision, times, revision), revision)
            else:  # a read of the state before may be under way
                meta.invalidate(key, revision)
        for parent, name, dentry in txn.dentries:
            entry = Entry(dentry, revision if dentry is not None else 0)
            meta.put(keys.dentry(parent, name), entry, revision)
            scan.invalidate(keys.dentries(parent), revision)
            self._keep_name(keys.dentries(parent), name, revision, exists=dentry is not None)
        for ino in txn.directories:
            self._caches.names.put(keys.dentries(ino), set(), revision)

    def _keep_name(self, directory: bytes, name: bytes, revision: int, *, exists: bool) -> None:
        """Bring what is known of a directory's names up to date, if all of them are known."""
        names = self._caches.names.get(directory)
        if names is None:  # a listing may be under way
            self._caches.names.invalidate(directory, revision)
            return
        if exists:
            names.add(name)
        else:
            names.discard(name)
        self._caches.names.put(directory, names, revision)


def _do_nothing() -> None:
    """Stand in for a callback that nobody has set."""
