"""Names and inodes: each operation on the directory tree is one commit.

What makes each correct against any other client is in its checks:

* making a name: the name is absent (O_EXCL has one winner) and the directory's inode is the one
  read (so it was not removed meanwhile);
* removing a name: it still means the inode read, and that inode's record is the one read (so its
  link count is right);
* removing a directory: it has no entry;
* moving a directory to another parent: no other such move came between, by one volume-wide key
  that each of them writes, so that two crossing moves cannot make a cycle.

The touched parents' times are written without a check: the later one wins, and nothing conflicts.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from aspenfs import acl, limits
from aspenfs.errors import CorruptRecordError, FilesystemError
from aspenfs.inodes import Inodes
from aspenfs.keys import Keys
from aspenfs.metadata import Dentry, Inode, Times, encode_orphan
from aspenfs.nodes import Entry, Node
from aspenfs.session import Session
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import NO_INO, NO_SESSION, ROOT_INO, Context, Ino

RENAME_NOREPLACE: Final = 1  # linux/fs.h
RENAME_EXCHANGE: Final = 2


class Found(NamedTuple):
    """An inode number with its node."""

    ino: Ino
    node: Node


class Removed(NamedTuple):
    """What a name that was removed or replaced meant. ``kept``: the inode is still stored."""

    ino: Ino
    node: Node
    kept: bool


class _Existing(NamedTuple):
    """A name that exists, with what it means."""

    entry: Entry
    ino: Ino
    node: Node


class Namespace:
    """The directory tree of one volume, as one mount changes it.

    Args:
        keys: the volume's keys.
        inodes: reads.
        transactions: writes.
        session: who makes inodes, and where they are counted.
        is_open: whether this mount has an inode open, so that unlinking keeps its data.
        now_ns: the time that changes carry.
    """

    def __init__(
        self,
        keys: Keys,
        inodes: Inodes,
        transactions: Transactions,
        session: Session,
        is_open: Callable[[Ino], bool],
        now_ns: Callable[[], int],
    ) -> None:
        """Take the parts that the mount composed."""
        self._keys = keys
        self._inodes = inodes
        self._transactions = transactions
        self._session = session
        self._is_open = is_open
        self._now_ns = now_ns

    async def lookup(self, parent: Ino, name: bytes) -> Found | None:
        """Return what a name means; None if it does not exist.

        Raises:
            FilesystemError: ENAMETOOLONG, ENOTDIR, ESTALE.
        """
        if name == b".":
            return Found(parent, await self._inodes.require(parent))
        if name == b"..":
            above = (await self._directory(parent)).inode.parent
            return Found(above, await self._inodes.require(above))
        if len(name) > limits.NAME_BYTES_MAX:
            raise FilesystemError(errno.ENAMETOOLONG)
        entry, node = await self._inodes.meaning(parent, name)
        return None if entry.dentry is None or node is None else Found(entry.dentry.ino, node)

    async def make(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        ctx: Context,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Found:
        """Make an inode of any type and its name, as mknod(2), mkdir(2), symlink(2) and open(2) do.

        The group, the set-group-ID bit of a directory and the ACL are inherited as POSIX and
        inode_init_owner() of Linux say; where no ACL is, the umask applies.

        Raises:
            FilesystemError: EEXIST, ENAMETOOLONG, EMLINK, ENOENT (the directory was removed).
        """
        _check_name(name)
        if target is not None and not 0 < len(target) <= limits.SYMLINK_BYTES_MAX:
            raise FilesystemError(errno.ENAMETOOLONG if target else errno.ENOENT)
        is_directory = stat.S_ISDIR(mode)
        ino = await self._session.new_ino()

        async def attempt(txn: Transaction) -> Found:
            above = await self._directory(parent)
            entry = await self._inodes.entry(parent, name)
            if entry.dentry is not None:
                raise FilesystemError(errno.EEXIST)
            gid, new_mode = ctx.gid, mode
            if above.inode.mode & stat.S_ISGID:
                gid = above.inode.gid
                if is_directory:
                    new_mode |= stat.S_ISGID
            xattrs: dict[bytes, bytes] = {}
            if target is None:
                new_mode, xattrs = await self._inherit(parent, above, new_mode, ctx.umask)
            now_ns = self._now_ns()
            inode = Inode(
                mode=new_mode,
                uid=ctx.uid,
                gid=gid,
                nlink=2 if is_directory else 1,
                size=0 if target is None else len(target),
                allocated_bytes=0,
                rdev=rdev,
                atime_ns=now_ns,
                btime_ns=now_ns,
                parent=parent if is_directory else NO_INO,
                generation=0,
                has_xattrs=bool(xattrs),
                target=target,
                inline=b"" if stat.S_ISREG(new_mode) else None,
            )
            times = Times(now_ns, now_ns)
            txn.require_inode(parent, above)
            txn.require_entry(parent, name, None)
            txn.put_entry(parent, name, Dentry(ino, new_mode >> 12))
            if is_directory:
                txn.put_directory(ino, inode)
            else:
                txn.put_inode(ino, inode)
            txn.put_times(ino, times)
            for xattr_name, value in xattrs.items():
                txn.put(self._keys.xattr(ino, xattr_name), value)
            if is_directory:
                self._relink_parent(txn, parent, above, 1)
            txn.put_times(parent, times)
            self._session.count(txn, inodes=1)
            return Found(ino, Node(inode, 0, times, 0))

        return await self._transactions.run(attempt)

    async def link(self, ino: Ino, parent: Ino, name: bytes) -> Found:
        """Add a name to an inode, as POSIX says of hard links.

        Raises:
            FilesystemError: EEXIST, EPERM (a directory), EMLINK; ESTALE, no name is left: others
                may have given the one by which the caller came to another inode.
        """
        _check_name(name)

        async def attempt(txn: Transaction) -> Found:
            node = await self._inodes.require(ino)
            above = await self._directory(parent)
            if (await self._inodes.entry(parent, name)).dentry is not None:
                raise FilesystemError(errno.EEXIST)
            if node.inode.is_directory:
                raise FilesystemError(errno.EPERM)
            if node.inode.nlink == 0:
                raise FilesystemError(errno.ESTALE)
            if node.inode.nlink >= limits.NLINK_MAX:
                raise FilesystemError(errno.EMLINK)
            now_ns = self._now_ns()
            inode = node.inode._replace(nlink=node.inode.nlink + 1)
            times = Times(node.times.mtime_ns, now_ns)
            txn.require_inode(parent, above)
            txn.require_entry(parent, name, None)
            txn.require_inode(ino, node)
            txn.require_times(ino, node)
            txn.put_entry(parent, name, Dentry(ino, inode.mode >> 12))
            txn.put_inode(ino, inode)
            txn.put_times(ino, times)
            txn.put_times(parent, Times(now_ns, now_ns))
            return Found(ino, Node(inode, 0, times, 0))

        return await self._transactions.run(attempt)

    async def unlink(self, parent: Ino, name: bytes) -> Removed:
        """Remove a name that is not a directory's, and the inode with its last name.

        Raises:
            FilesystemError: ENOENT, EISDIR.
        """

        async def attempt(txn: Transaction) -> Removed:
            found = await self._existing(parent, name)
            if found.node.inode.is_directory:
                raise FilesystemError(errno.EISDIR)
            now_ns = self._now_ns()
            txn.require_entry(parent, name, found.entry)
            txn.delete_entry(parent, name)
            removed = self._drop_link(txn, found, now_ns)
            txn.put_times(parent, Times(now_ns, now_ns))
            return removed

        return await self._transactions.run(attempt)

    async def rmdir(self, parent: Ino, name: bytes) -> Removed:
        """Remove an empty directory.

        Raises:
            FilesystemError: ENOENT, ENOTDIR, ENOTEMPTY, EINVAL (".").
        """
        if name == b".":
            raise FilesystemError(errno.EINVAL)
        if name == b"..":
            raise FilesystemError(errno.ENOTEMPTY)

        async def attempt(txn: Transaction) -> Removed:
            above = await self._directory(parent)
            found = await self._existing(parent, name)
            if not found.node.inode.is_directory:
                raise FilesystemError(errno.ENOTDIR)
            now_ns = self._now_ns()
            txn.require_entry(parent, name, found.entry)
            txn.delete_entry(parent, name)
            removed = await self._drop_directory(txn, found)
            txn.require_inode(parent, above)
            self._relink_parent(txn, parent, above, -1)
            txn.put_times(parent, Times(now_ns, now_ns))
            return removed

        return await self._transactions.run(attempt)

    async def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> Removed | None:
        """Move a name, as renameat2(2) does with no flag or with RENAME_NOREPLACE.

        Returns what the new name meant before, if it existed.

        Raises:
            FilesystemError: ENOENT, EEXIST, ENOTEMPTY, EISDIR, ENOTDIR, EINVAL (a directory into
                itself, or an unknown flag), ENAMETOOLONG.
        """
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == (
            RENAME_NOREPLACE | RENAME_EXCHANGE
        ):
            raise FilesystemError(errno.EINVAL)
        _check_name(new_name)
        if flags & RENAME_EXCHANGE:
            await self._exchange(parent, name, new_parent, new_name)
            return None

        async def attempt(txn: Transaction) -> Removed | None:
            moved = await self._existing(parent, name)
            above, new_above = await self._directory(parent), await self._directory(new_parent)
            entry = await self._inodes.entry(new_parent, new_name)
            replaced: _Existing | None = None
            if entry.dentry is not None:
                if flags & RENAME_NOREPLACE:
                    raise FilesystemError(errno.EEXIST)
                if entry.dentry.ino == moved.ino:
                    return None  # two names of one inode: POSIX asks for nothing to happen
                replaced = await self._existing(new_parent, new_name)
            is_directory = moved.node.inode.is_directory
            if is_directory and parent != new_parent:
                await self._guard_move(txn, moved.ino, new_parent)
            now_ns = self._now_ns()
            txn.require_entry(parent, name, moved.entry)
            txn.require_entry(new_parent, new_name, entry)
            txn.require_inode(new_parent, new_above)
            txn.delete_entry(parent, name)
            txn.put_entry(new_parent, new_name, Dentry(moved.ino, moved.node.inode.mode >> 12))
            removed = None
            if replaced is not None:
                removed = await self._replace(txn, replaced, now_ns, by_directory=is_directory)
            self._touch_moved(txn, moved, new_parent, now_ns)
            if is_directory:
                gained = 1 if replaced is None else 0
                if parent == new_parent:
                    self._relink_parent(txn, parent, above, gained - 1)
                else:
                    txn.require_inode(parent, above)
                    self._relink_parent(txn, parent, above, -1)
                    self._relink_parent(txn, new_parent, new_above, gained)
            txn.put_times(parent, Times(now_ns, now_ns))
            if parent != new_parent:
                txn.put_times(new_parent, Times(now_ns, now_ns))
            return removed

        return await self._transactions.run(attempt)

    async def _exchange(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes) -> None:
        async def attempt(txn: Transaction) -> None:
            one = await self._existing(parent, name)
            two = await self._existing(new_parent, new_name)
            if one.ino == two.ino:
                return
            above, new_above = await self._directory(parent), await self._directory(new_parent)
            if parent != new_parent:
                if one.node.inode.is_directory:
                    await self._guard_move(txn, one.ino, new_parent)
                if two.node.inode.is_directory:
                    await self._guard_move(txn, two.ino, parent)
            now_ns = self._now_ns()
            txn.require_entry(parent, name, one.entry)
            txn.require_entry(new_parent, new_name, two.entry)
            txn.put_entry(parent, name, Dentry(two.ino, two.node.inode.mode >> 12))
            txn.put_entry(new_parent, new_name, Dentry(one.ino, one.node.inode.mode >> 12))
            self._touch_moved(txn, one, new_parent, now_ns)
            self._touch_moved(txn, two, parent, now_ns)
            gained = one.node.inode.is_directory - two.node.inode.is_directory
            if parent != new_parent and gained:
                txn.require_inode(parent, above)
                txn.require_inode(new_parent, new_above)
                self._relink_parent(txn, parent, above, -gained)
                self._relink_parent(txn, new_parent, new_above, gained)
            txn.put_times(parent, Times(now_ns, now_ns))
            if parent != new_parent:
                txn.put_times(new_parent, Times(now_ns, now_ns))

        await self._transactions.run(attempt)

    async def _directory(self, ino: Ino) -> Node:
        """Return a directory that still has a name."""
        node = await self._inodes.node(ino)
        if node is None:
            raise FilesystemError(errno.ENOENT, f"directory {ino} was removed")
        if not node.inode.is_directory:
            raise FilesystemError(errno.ENOTDIR)
        return node

    async def _existing(self, parent: Ino, name: bytes) -> _Existing:
        if len(name) > limits.NAME_BYTES_MAX:
            raise FilesystemError(errno.ENAMETOOLONG)
        entry, node = await self._inodes.meaning(parent, name)
        if entry.dentry is None or node is None:
            raise FilesystemError(errno.ENOENT)
        return _Existing(entry, entry.dentry.ino, node)

    async def _inherit(
        self, parent: Ino, above: Node, mode: int, umask: int
    ) -> tuple[int, dict[bytes, bytes]]:
        """Return the mode and the ACLs that a new inode gets from its directory's default ACL.

        Without one the umask is taken off the mode, once more if the kernel has done so already.
        """
        found = await self._inodes.xattr(parent, above, acl.DEFAULT_XATTR)
        if found is None:
            return mode & ~(umask & 0o777), {}
        access, new_mode = acl.inherit(acl.parse(found.value), mode)
        xattrs = {} if access is None else {acl.ACCESS_XATTR: acl.encode(access)}
        if stat.S_ISDIR(mode):
            xattrs[acl.DEFAULT_XATTR] = found.value
        return new_mode, xattrs

    def _relink_parent(self, txn: Transaction, parent: Ino, above: Node, delta: int) -> None:
        """Count a subdirectory in or out; the caller has required the inode record."""
        if not delta:
            return
        nlink = above.inode.nlink + delta
        if nlink > limits.NLINK_MAX:
            raise FilesystemError(errno.EMLINK)
        txn.require_inode(parent, above)
        txn.put_inode(parent, above.inode._replace(nlink=nlink))

    def _drop_link(self, txn: Transaction, found: _Existing, now_ns: int) -> Removed:
        """Take one name from a file; with the last one, remove it or make it an orphan."""
        inode = found.node.inode
        txn.require_inode(found.ino, found.node)
        # 0 already where a cached entry is older than the inode: the required entry fails then.
        nlink = max(0, inode.nlink - 1)
        many_chunks = inode.allocated_bytes > limits.UNLINK_AT_ONCE_CHUNKS * limits.CHUNK_BYTES
        # Where others may have a file open, it stays readable for a while; see orphans.py.
        lingers = inode.is_regular and self._session.has_peers
        is_used = lingers or self._is_open(found.ino)
        if nlink == 0 and not is_used and not many_chunks:
            txn.delete_inode(found.ino, inode)
            self._session.count(txn, inodes=-1, allocated_bytes=-inode.allocated_bytes)
            return Removed(found.ino, found.node, kept=False)
        if nlink == 0:
            owner = self._session.id if is_used else NO_SESSION
            txn.put(self._keys.orphan(found.ino), encode_orphan(owner))
        txn.require_times(found.ino, found.node)
        txn.put_inode(found.ino, inode._replace(nlink=nlink))
        txn.put_times(found.ino, Times(found.node.times.mtime_ns, now_ns))
        return Removed(found.ino, found.node, kept=True)

    async def _drop_directory(self, txn: Transaction, found: _Existing) -> Removed:
        # The commit checks it. Who looks before need not learn from a conflict that it is not so.
        looks_empty = not txn.is_retry and self._inodes.looks_empty(found.ino)
        if not looks_empty and not await self._inodes.is_empty(found.ino):
            raise FilesystemError(errno.ENOTEMPTY)
        txn.require_inode(found.ino, found.node)
        txn.require_empty_directory(found.ino)
        txn.delete_inode(found.ino, found.node.inode)
        self._session.count(txn, inodes=-1)
        return Removed(found.ino, found.node, kept=False)

    async def _replace(
        self, txn: Transaction, replaced: _Existing, now_ns: int, *, by_directory: bool
    ) -> Removed:
        if replaced.node.inode.is_directory:
            if not by_directory:
                raise FilesystemError(errno.EISDIR)
            return await self._drop_directory(txn, replaced)
        if by_directory:
            raise FilesystemError(errno.ENOTDIR)
        return self._drop_link(txn, replaced, now_ns)

    def _touch_moved(
        self, txn: Transaction, moved: _Existing, new_parent: Ino, now_ns: int
    ) -> None:
        """Set the ctime of what was moved and, in a directory, where it is now."""
        txn.require_times(moved.ino, moved.node)
        txn.put_times(moved.ino, Times(moved.node.times.mtime_ns, now_ns))
        inode = moved.node.inode
        if inode.is_directory and inode.parent != new_parent:
            txn.require_inode(moved.ino, moved.node)
            txn.put_inode(moved.ino, inode._replace(parent=new_parent))

    async def _guard_move(self, txn: Transaction, moved: Ino, new_parent: Ino) -> None:
        """Refuse to move a directory into itself or below.

        The way up from the new parent is read past the caches, which may not know yet of a move
        from before the key was read; they only guess it, so that it is read together with the key.
        What they do not know can be read in further steps, because a move by anyone else changes
        the volume-wide key and so fails the commit.
        """
        key = self._keys.directory_moves
        moves, nodes = await self._inodes.snapshot(key, self._inodes.way_up(new_parent))
        ino = new_parent
        above: set[Ino] = set()
        while ino != ROOT_INO:
            if ino == moved:
                raise FilesystemError(errno.EINVAL, "a directory cannot be moved into itself")
            if ino in above:
                raise CorruptRecordError(self._keys.inode(ino), "it lies below itself")
            above.add(ino)
            node = nodes[ino] if ino in nodes else await self._inodes.reload(ino)
            if node is None:
                raise FilesystemError(errno.ENOENT, f"directory {ino} was removed")
            ino = node.inode.parent
        txn.require(key, 0 if moves is None else moves.revision)
        txn.put(key, b"")


def _check_name(name: bytes) -> None:
    if len(name) > limits.NAME_BYTES_MAX:
        raise FilesystemError(errno.ENAMETOOLONG)
    if name in (b"", b".", b"..") or b"/" in name or b"\x00" in name:
        raise FilesystemError(errno.EEXIST if name in (b".", b"..") else errno.EINVAL)
