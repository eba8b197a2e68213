"""A POSIX filesystem in a dict: slow, without concurrency, and meant to be plainly right.

It has the calls of :class:`aspenfs.filesystem.Filesystem`, none of which ever waits, and answers
with the errnos of Linux. Like the core it makes no permission checks. Files are byte strings
without holes: what a hole costs is the business of the consistency check.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from aspenfs.errors import FilesystemError
from aspenfs.types import (
    ROOT_INO,
    AttributeChanges,
    Attributes,
    Context,
    DirectoryEntry,
    FileHandle,
    Ino,
)

NAME_BYTES_MAX = 255
SYMLINK_BYTES_MAX = 4095
FILE_BYTES_MAX = 2**63 - 1
XATTR_NAME_BYTES_MAX = 255
XATTR_VALUE_BYTES_MAX = 65536
XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


@dataclass(slots=True)
class ModelInode:
    """Everything there is to know of an inode; ``entries`` of a directory only, and so on."""

    ino: Ino
    mode: int
    uid: int
    gid: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    names: int = 0
    parent: Ino | None = None
    entries: dict[bytes, Ino] = field(default_factory=dict)
    content: bytes = b""
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)


@dataclass(slots=True)
class ModelHandle:
    """An open file or directory."""

    inode: ModelInode
    flags: int


class ModelFilesystem:
    """The reference. ``now_ns`` is asked once for each change."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._inodes: dict[Ino, ModelInode] = {}
        self._handles: dict[FileHandle, ModelHandle] = {}
        self._next_ino = int(ROOT_INO)
        self._next_handle = 1
        root = self._new_inode(stat.S_IFDIR | 0o755, Context(0, 0))
        root.parent = root.ino
        root.names = 1

    # --- names ---------------------------------------------------------------------------------

    async def lookup(self, parent: Ino, name: bytes) -> Attributes:
        directory = self._directory(parent)
        if name == b".":
            return self._attributes(directory)
        if name == b"..":
            assert directory.parent is not None
            return self._attributes(self._inodes[directory.parent])
        _check_length(name)
        return self._attributes(self._child(directory, name))

    async def mknod(
        self, parent: Ino, name: bytes, mode: int, rdev: int, ctx: Context
    ) -> Attributes:
        return self._attributes(self._make(parent, name, mode, ctx, rdev=rdev))

    async def mkdir(self, parent: Ino, name: bytes, mode: int, ctx: Context) -> Attributes:
        return self._attributes(self._make(parent, name, stat.S_IFDIR | mode, ctx))

    async def symlink(self, parent: Ino, name: bytes, target: bytes, ctx: Context) -> Attributes:
        if not target:
            raise FilesystemError(errno.ENOENT)
        if len(target) > SYMLINK_BYTES_MAX:
            raise FilesystemError(errno.ENAMETOOLONG)
        inode = self._make(parent, name, stat.S_IFLNK | 0o777, ctx)
        inode.target = target
        return self._attributes(inode)

    async def readlink(self, ino: Ino) -> bytes:
        inode = self._inode(ino)
        if not stat.S_ISLNK(inode.mode):
            raise FilesystemError(errno.EINVAL)
        return inode.target

    async def link(self, ino: Ino, new_parent: Ino, new_name: bytes) -> Attributes:
        inode = self._inode(ino)
        directory = self._directory(new_parent)
        _check_length(new_name)
        if new_name in directory.entries:
            raise FilesystemError(errno.EEXIST)
        if inode.is_directory:
            raise FilesystemError(errno.EPERM)
        if inode.names == 0:
            raise FilesystemError(errno.ENOENT)
        self._add_name(directory, new_name, inode)
        inode.ctime_ns = self._touch(directory)
        return self._attributes(inode)

    async def unlink(self, parent: Ino, name: bytes) -> None:
        directory = self._directory(parent)
        _check_length(name)
        inode = self._child(directory, name)
        if inode.is_directory:
            raise FilesystemError(errno.EISDIR)
        self._remove_name(directory, name)
        inode.ctime_ns = self._touch(directory)
        self._forget_if_unused(inode)

    async def rmdir(self, parent: Ino, name: bytes) -> None:
        directory = self._directory(parent)
        _check_length(name)
        inode = self._child(directory, name)
        if not inode.is_directory:
            raise FilesystemError(errno.ENOTDIR)
        if inode.entries:
            raise FilesystemError(errno.ENOTEMPTY)
        self._remove_name(directory, name)
        self._touch(directory)
        self._forget_if_unused(inode)

    async def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise FilesystemError(errno.EINVAL)
        old, new = self._directory(parent), self._directory(new_parent)
        _check_length(name)
        moved = self._child(old, name)
        _check_length(new_name)
        replaced = self._inodes[new.entries[new_name]] if new_name in new.entries else None
        self._check_rename(old, moved, new, replaced, flags)
        if replaced is moved:
            return
        now_ns = self._touch(old, new)
        self._remove_name(old, name)
        if replaced is not None:
            self._remove_name(new, new_name)
            replaced.ctime_ns = now_ns
        if replaced is not None and flags == RENAME_EXCHANGE:
            self._add_name(old, name, replaced)
        self._add_name(new, new_name, moved)
        moved.ctime_ns = now_ns
        if replaced is not None:
            self._forget_if_unused(replaced)

    def _check_rename(
        self,
        old: ModelInode,
        moved: ModelInode,
        new: ModelInode,
        replaced: ModelInode | None,
        flags: int,
    ) -> None:
        """Refuse what renameat2(2) refuses, in the order in which Linux looks."""
        is_exchange = flags == RENAME_EXCHANGE
        if replaced is not None and flags == RENAME_NOREPLACE:
            raise FilesystemError(errno.EEXIST)
        if replaced is None and is_exchange:
            raise FilesystemError(errno.ENOENT)
        if self._contains(moved, new):
            raise FilesystemError(errno.EINVAL)
        if replaced is None or replaced is moved:
            return
        if self._contains(replaced, old):
            raise FilesystemError(errno.EINVAL if is_exchange else errno.ENOTEMPTY)
        if is_exchange:
            return
        if replaced.is_directory and not moved.is_directory:
            raise FilesystemError(errno.EISDIR)
        if moved.is_directory and not replaced.is_directory:
            raise FilesystemError(errno.ENOTDIR)
        if replaced.entries:
            raise FilesystemError(errno.ENOTEMPTY)

    async def opendir(self, ino: Ino) -> FileHandle:
        return self._add_handle(self._directory(ino), os.O_RDONLY)

    async def readdir(self, fh: FileHandle, offset: int, limit: int) -> list[DirectoryEntry]:
        """Return entries in name order; an offset counts entries, so list only what is still."""
        inode = self._handles[fh].inode
        names = sorted(inode.entries)[offset : offset + limit]
        return [
            DirectoryEntry(name, self._attributes(self._child(inode, name)), offset + index + 1)
            for index, name in enumerate(names)
        ]

    async def releasedir(self, fh: FileHandle) -> None:
        await self.release(fh)

    # --- attributes ----------------------------------------------------------------------------

    async def getattr(self, ino: Ino) -> Attributes:
        return self._attributes(self._inode(ino))

    async def setattr(
        self, ino: Ino, changes: AttributeChanges, fh: FileHandle | None = None
    ) -> Attributes:
        """Change attributes; as in chown(2), a new owner clears set-user-ID and set-group-ID."""
        inode = self._handles[fh].inode if fh is not None else self._inode(ino)
        now_ns = self._now_ns()
        if changes.size is not None:
            self._truncate(inode, changes.size, now_ns)
        if changes.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(changes.mode)
        elif (changes.uid, changes.gid) != (None, None) and not inode.is_directory:
            inode.mode &= ~stat.S_ISUID
            if inode.mode & stat.S_IXGRP:
                inode.mode &= ~stat.S_ISGID
        inode.uid = inode.uid if changes.uid is None else changes.uid
        inode.gid = inode.gid if changes.gid is None else changes.gid
        inode.atime_ns = inode.atime_ns if changes.atime_ns is None else changes.atime_ns
        inode.mtime_ns = inode.mtime_ns if changes.mtime_ns is None else changes.mtime_ns
        inode.ctime_ns = now_ns if changes.ctime_ns is None else changes.ctime_ns
        return self._attributes(inode)

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        inode = self._inode(ino)
        _check_namespace(name)
        if name not in inode.xattrs:
            raise FilesystemError(errno.ENODATA)
        return inode.xattrs[name]

    async def listxattr(self, ino: Ino) -> list[bytes]:
        return sorted(self._inode(ino).xattrs)

    async def setxattr(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        inode = self._inode(ino)
        if not 0 < len(name) <= XATTR_NAME_BYTES_MAX:
            raise FilesystemError(errno.ERANGE)
        if len(value) > XATTR_VALUE_BYTES_MAX:
            raise FilesystemError(errno.E2BIG)
        _check_namespace(name)
        if flags & os.XATTR_CREATE and name in inode.xattrs:
            raise FilesystemError(errno.EEXIST)
        if flags & os.XATTR_REPLACE and name not in inode.xattrs:
            raise FilesystemError(errno.ENODATA)
        inode.xattrs[name] = value
        inode.ctime_ns = self._now_ns()

    async def removexattr(self, ino: Ino, name: bytes) -> None:
        inode = self._inode(ino)
        _check_namespace(name)
        if name not in inode.xattrs:
            raise FilesystemError(errno.ENODATA)
        del inode.xattrs[name]
        inode.ctime_ns = self._now_ns()

    # --- data ----------------------------------------------------------------------------------

    async def open(self, ino: Ino, flags: int) -> FileHandle:
        inode = self._inode(ino)
        if stat.S_ISLNK(inode.mode):
            raise FilesystemError(errno.ELOOP)
        if inode.is_directory:
            raise FilesystemError(errno.EISDIR)
        if flags & os.O_TRUNC:
            self._truncate(inode, 0, self._now_ns())
        return self._add_handle(inode, flags)

    async def create(
        self, parent: Ino, name: bytes, mode: int, flags: int, ctx: Context
    ) -> tuple[FileHandle, Attributes]:
        directory = self._directory(parent)
        _check_length(name)
        if name in directory.entries:
            if flags & os.O_EXCL:
                raise FilesystemError(errno.EEXIST)
            fh = await self.open(directory.entries[name], flags)
        else:
            inode = self._make(parent, name, stat.S_IFREG | mode, ctx)
            fh = self._add_handle(inode, flags)
        return fh, self._attributes(self._handles[fh].inode)

    async def read(self, fh: FileHandle, offset: int, size: int) -> bytes:
        return self._handles[fh].inode.content[offset : offset + size]

    async def write(self, fh: FileHandle, offset: int, data: bytes) -> int:
        handle = self._handles[fh]
        inode = handle.inode
        if not data:
            return 0
        if handle.flags & os.O_APPEND:
            offset = len(inode.content)
        if offset + len(data) > FILE_BYTES_MAX:
            raise FilesystemError(errno.EFBIG)
        before = inode.content[:offset].ljust(offset, b"\0")
        inode.content = before + data + inode.content[offset + len(data) :]
        inode.mtime_ns = inode.ctime_ns = self._now_ns()
        return len(data)

    async def flush(self, fh: FileHandle) -> None:
        assert fh in self._handles

    async def fsync(self, fh: FileHandle, datasync: bool = False) -> None:  # noqa: ARG002
        assert fh in self._handles

    async def release(self, fh: FileHandle) -> None:
        inode = self._handles.pop(fh).inode
        self._forget_if_unused(inode)

    # --- inside --------------------------------------------------------------------------------

    def _inode(self, ino: Ino) -> ModelInode:
        inode = self._inodes.get(ino)
        if inode is None:
            raise FilesystemError(errno.ESTALE)
        return inode

    def _directory(self, ino: Ino) -> ModelInode:
        inode = self._inodes.get(ino)
        if inode is None or (inode.is_directory and inode.names == 0):
            raise FilesystemError(errno.ENOENT)
        if not inode.is_directory:
            raise FilesystemError(errno.ENOTDIR)
        return inode

    def _child(self, directory: ModelInode, name: bytes) -> ModelInode:
        if name not in directory.entries:
            raise FilesystemError(errno.ENOENT)
        return self._inodes[directory.entries[name]]

    def _contains(self, inode: ModelInode, directory: ModelInode) -> bool:
        """Return whether ``directory`` is ``inode`` or lies below it."""
        while directory is not inode and directory.ino != ROOT_INO:
            assert directory.parent is not None
            directory = self._inodes[directory.parent]
        return directory is inode

    def _make(
        self, parent: Ino, name: bytes, mode: int, ctx: Context, *, rdev: int = 0
    ) -> ModelInode:
        directory = self._directory(parent)
        _check_length(name)
        if name in directory.entries:
            raise FilesystemError(errno.EEXIST)
        gid = ctx.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        inode = self._new_inode(mode, ctx._replace(gid=gid))
        inode.rdev = rdev
        self._add_name(directory, name, inode)
        directory.mtime_ns = directory.ctime_ns = inode.ctime_ns
        return inode

    def _new_inode(self, mode: int, ctx: Context) -> ModelInode:
        now_ns = self._now_ns()
        ino = Ino(self._next_ino)
        self._next_ino += 1
        inode = ModelInode(ino, mode, ctx.uid, ctx.gid, 0, now_ns, now_ns, now_ns, now_ns)
        self._inodes[ino] = inode
        return inode

    def _add_name(self, directory: ModelInode, name: bytes, inode: ModelInode) -> None:
        directory.entries[name] = inode.ino
        inode.names += 1
        if inode.is_directory:
            inode.parent = directory.ino

    def _remove_name(self, directory: ModelInode, name: bytes) -> None:
        inode = self._inodes[directory.entries.pop(name)]
        inode.names -= 1

    def _touch(self, *directories: ModelInode) -> int:
        now_ns = self._now_ns()
        for directory in directories:
            directory.mtime_ns = directory.ctime_ns = now_ns
        return now_ns

    def _truncate(self, inode: ModelInode, size: int, now_ns: int) -> None:
        if inode.is_directory:
            raise FilesystemError(errno.EISDIR)
        if not inode.is_regular or size < 0:
            raise FilesystemError(errno.EINVAL)
        if size > FILE_BYTES_MAX:
            raise FilesystemError(errno.EFBIG)
        inode.content = inode.content[:size].ljust(size, b"\0")
        inode.mtime_ns = inode.ctime_ns = now_ns

    def _add_handle(self, inode: ModelInode, flags: int) -> FileHandle:
        fh = FileHandle(self._next_handle)
        self._next_handle += 1
        self._handles[fh] = ModelHandle(inode, flags)
        return fh

    def _forget_if_unused(self, inode: ModelInode) -> None:
        is_open = any(handle.inode is inode for handle in self._handles.values())
        if inode.names == 0 and not is_open:
            self._inodes.pop(inode.ino, None)

    def _attributes(self, inode: ModelInode) -> Attributes:
        if inode.is_directory:
            children = [self._inodes[ino] for ino in inode.entries.values()]
            nlink = 2 + sum(child.is_directory for child in children)
            nlink = nlink if inode.names else 0
        else:
            nlink = inode.names
        size = len(inode.target) if stat.S_ISLNK(inode.mode) else len(inode.content)
        return Attributes(
            inode.ino,
            inode.mode,
            nlink,
            inode.uid,
            inode.gid,
            inode.rdev,
            size,
            0,
            inode.atime_ns,
            inode.mtime_ns,
            inode.ctime_ns,
            inode.btime_ns,
            0,
        )


def _check_length(name: bytes) -> None:
    if len(name) > NAME_BYTES_MAX:
        raise FilesystemError(errno.ENAMETOOLONG)


def _check_namespace(name: bytes) -> None:
    if not name.startswith(XATTR_NAMESPACES):
        raise FilesystemError(errno.EOPNOTSUPP)
