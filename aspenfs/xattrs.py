"""Extended attributes, POSIX ACLs among them. See xattr(7) and acl(5)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import aclosing

from aspenfs import acl, limits
from aspenfs.errors import FilesystemError
from aspenfs.inodes import Inodes
from aspenfs.keys import Keys
from aspenfs.metadata import Inode, Times
from aspenfs.nodes import Node
from aspenfs.scans import records_below
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import Ino
from aspenkv.contract import KeyValue

_NAMESPACES = (b"user.", b"trusted.", b"security.")
_ACL_NAMES = (acl.ACCESS_XATTR, acl.DEFAULT_XATTR)


class Xattrs:
    """Reads and changes extended attributes; each change is one commit."""

    def __init__(
        self,
        kv: KeyValue,
        keys: Keys,
        inodes: Inodes,
        transactions: Transactions,
        now_ns: Callable[[], int],
    ) -> None:
        """Take the parts that the mount composed."""
        self._kv = kv
        self._keys = keys
        self._inodes = inodes
        self._transactions = transactions
        self._now_ns = now_ns

    async def get(self, ino: Ino, name: bytes) -> bytes:
        """Return a value.

        Raises:
            FilesystemError: ENODATA, there is none; EOPNOTSUPP (namespace); ESTALE.
        """
        _check_namespace(name)
        node = await self._inodes.require(ino)
        found = await self._inodes.xattr(ino, node, name)
        if found is None:
            raise FilesystemError(errno.ENODATA)
        return found.value

    async def names(self, ino: Ino) -> list[bytes]:
        """Return all names in byte order.

        Raises:
            FilesystemError: E2BIG, they are longer than listxattr(2) can return; ESTALE.
        """
        node = await self._inodes.require(ino)
        if not node.inode.has_xattrs:
            return []
        prefix = self._keys.xattrs(ino)
        names: list[bytes] = []
        list_bytes = 0
        async with aclosing(records_below(self._kv, prefix, keys_only=True)) as records:
            async for record in records:
                names.append(record.key[len(prefix) :])
                list_bytes += len(names[-1]) + 1
                if list_bytes > limits.XATTR_LIST_BYTES_MAX:
                    raise FilesystemError(errno.E2BIG)
        return names

    async def set(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set a value; with XATTR_CREATE it must be new, with XATTR_REPLACE it must exist.

        An access ACL also sets the mode's permission bits, and is not stored when these say it all.

        Raises:
            FilesystemError: EEXIST, ENODATA, ERANGE (name), E2BIG (value), EOPNOTSUPP (namespace),
                EINVAL (a namespace and no name, or not an ACL), EACCES (a default ACL of a
                file), ESTALE.
        """
        if not 0 < len(name) <= limits.XATTR_NAME_BYTES_MAX:
            raise FilesystemError(errno.ERANGE)
        if len(value) > limits.XATTR_VALUE_BYTES_MAX:
            raise FilesystemError(errno.E2BIG)
        if name in _NAMESPACES:
            raise FilesystemError(errno.EINVAL)
        _check_namespace(name)
        key = self._keys.xattr(ino, name)

        async def attempt(txn: Transaction) -> None:
            node = await self._inodes.require(ino)
            found = await self._inodes.xattr(ino, node, name)
            if found is not None and flags & os.XATTR_CREATE:
                raise FilesystemError(errno.EEXIST)
            if found is None and flags & os.XATTR_REPLACE:
                raise FilesystemError(errno.ENODATA)
            inode, stored = node.inode, True
            if name in _ACL_NAMES:
                inode, stored = _with_acl(inode, name, value)
            txn.require_inode(ino, node)
            txn.require(key, 0 if found is None else found.revision)
            if stored:
                inode = inode._replace(has_xattrs=True)
                txn.put(key, value)
            else:
                txn.delete(key)
            if inode != node.inode:
                txn.put_inode(ino, inode)
            self._touch(txn, ino, node)

        await self._transactions.run(attempt)

    async def remove(self, ino: Ino, name: bytes) -> None:
        """Remove an attribute.

        Raises:
            FilesystemError: ENODATA, there is none; EOPNOTSUPP (namespace); ESTALE.
        """
        _check_namespace(name)
        key = self._keys.xattr(ino, name)

        async def attempt(txn: Transaction) -> None:
            node = await self._inodes.require(ino)
            found = await self._inodes.xattr(ino, node, name)
            if found is None and name in _ACL_NAMES:
                return  # "no ACL" is what it has already, as in fs/posix_acl.c
            if found is None:
                raise FilesystemError(errno.ENODATA)
            txn.require(key, found.revision)
            txn.delete(key)
            self._touch(txn, ino, node)

        await self._transactions.run(attempt)

    def _touch(self, txn: Transaction, ino: Ino, node: Node) -> None:
        txn.require_times(ino, node)
        txn.put_times(ino, Times(node.times.mtime_ns, self._now_ns()))


def _check_namespace(name: bytes) -> None:
    if not name.startswith(_NAMESPACES) and name not in _ACL_NAMES:
        raise FilesystemError(errno.EOPNOTSUPP)


def _with_acl(inode: Inode, name: bytes, value: bytes) -> tuple[Inode, bool]:
    """Return the inode with the mode that an ACL gives it, and whether the ACL is to be stored."""
    parsed = acl.parse(value)
    if name == acl.DEFAULT_XATTR:
        if not inode.is_directory:
            raise FilesystemError(errno.EACCES)
        return inode, bool(parsed)
    if not parsed:
        return inode, False
    mode = acl.mode_from_acl(parsed, inode.mode)
    return inode._replace(mode=mode), not acl.equivalent_to_mode(parsed)
