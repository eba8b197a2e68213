"""Mode, owner and times: what chmod(2), chown(2) and utimensat(2) change.

One commit each, or none: where bytes of the file wait too, that commit makes both changes.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Final

from aspenfs import acl
from aspenfs.inodes import Inodes
from aspenfs.keys import Keys
from aspenfs.metadata import Inode, Times, clamp_ns, without_set_id
from aspenfs.nodes import Node
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import AttributeChanges, Ino

CAPABILITY_XATTR: Final = b"security.capability"
"""What a program may do, beyond what its caller may: see capabilities(7)."""

_PERMISSION_BITS = 0o7777


class AttributeSetter:
    """Changes attributes other than the size, which belongs to the file's data."""

    def __init__(
        self, keys: Keys, inodes: Inodes, transactions: Transactions, now_ns: Callable[[], int]
    ) -> None:
        """Take the parts that the mount composed."""
        self._keys = keys
        self._inodes = inodes
        self._transactions = transactions
        self._now_ns = now_ns

    async def set(self, ino: Ino, changes: AttributeChanges) -> Node:
        """Change what ``changes`` names and ctime; return the inode as it is then.

        A change of owner clears set-user-ID, and set-group-ID where the group may execute, and
        takes the capability, as chown(2) of Linux does for every caller; a change of mode also
        changes the inode's ACL.

        Raises:
            FilesystemError: ESTALE, the inode is gone.
        """

        async def attempt(txn: Transaction) -> Node:
            node = await self._inodes.require(ino)
            changed = await self.apply(txn, ino, node, changes)
            if changed.inode != node.inode:
                txn.put_inode(ino, changed.inode)
            if changes.mtime_ns is None:
                txn.require_times(ino, node)
            txn.require_inode(ino, node)
            txn.put_times(ino, changed.times)
            return changed

        return await self._transactions.run(attempt)

    async def apply(
        self, txn: Transaction, ino: Ino, node: Node, changes: AttributeChanges
    ) -> Node:
        """Return a node as :meth:`set` leaves it; let a transaction change its xattrs accordingly.

        The caller writes the inode and its times, and checks what it read of them.
        """
        inode = _changed(node.inode, changes)
        times = Times(
            node.times.mtime_ns if changes.mtime_ns is None else clamp_ns(changes.mtime_ns),
            self._now_ns() if changes.ctime_ns is None else clamp_ns(changes.ctime_ns),
        )
        if _changes_owner(changes) and not inode.is_directory:
            drop_capability(txn, self._keys, ino, inode)
        if changes.mode is not None:
            await self._change_acl(txn, ino, node, inode.mode)
        return Node(inode, 0, times, 0)

    async def _change_acl(self, txn: Transaction, ino: Ino, node: Node, mode: int) -> None:
        if not node.inode.has_xattrs:
            return
        # An ACL that is set meanwhile need not change the inode, if it says what the mode says.
        found = await self._inodes.xattr(ino, node, acl.ACCESS_XATTR)
        key = self._keys.xattr(ino, acl.ACCESS_XATTR)
        txn.require(key, 0 if found is None else found.revision)
        if found is not None:
            txn.put(key, acl.encode(acl.chmod(acl.parse(found.value), mode)))


def drop_capability(txn: Transaction, keys: Keys, ino: Ino, inode: Inode) -> None:
    """Let a transaction take a file's capability, as each change of bytes, size or owner does.

    Whoever makes the change: see file_remove_privs in fs/inode.c of Linux. Without a check: who
    sets a capability meanwhile has set it before this change.
    """
    if inode.has_xattrs:
        txn.delete(keys.xattr(ino, CAPABILITY_XATTR))


def _changes_owner(changes: AttributeChanges) -> bool:
    return changes.uid is not None or changes.gid is not None


def _changed(inode: Inode, changes: AttributeChanges) -> Inode:
    mode = inode.mode
    if changes.mode is not None:
        mode = stat.S_IFMT(mode) | (changes.mode & _PERMISSION_BITS)
    elif _changes_owner(changes) and not stat.S_ISDIR(mode):
        mode = without_set_id(mode)
    return inode._replace(
        mode=mode,
        uid=inode.uid if changes.uid is None else changes.uid,
        gid=inode.gid if changes.gid is None else changes.gid,
        atime_ns=inode.atime_ns if changes.atime_ns is None else clamp_ns(changes.atime_ns),
    )
