"""The filesystem: the whole POSIX API of one volume, usable from Python without a mount.

    async with open_filesystem(kv) as fs:
        fh, attributes = await fs.create(ROOT_INO, b"hello", 0o644, os.O_RDWR, Context(0, 0))
        await fs.write(fh, 0, b"world")
        await fs.release(fh)

Names are bytes, times are nanoseconds since the epoch. Every method raises ``AspenError`` or
``AspenKvError``; :func:`aspenfs.errors.errno_of` tells the errno. Nothing here checks permissions:
the kernel does, by ``default_permissions``.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import trio

from aspenfs import limits
from aspenfs.attributes import CAPABILITY_XATTR, AttributeSetter
from aspenfs.cache import Caches, CacheStatistics
from aspenfs.chunk_reader import ChunkReader
from aspenfs.coherence import Coherence, Lifetimes
from aspenfs.data import Data, DataStatistics
from aspenfs.errors import AspenError, FilesystemError
from aspenfs.file_content import FileContent
from aspenfs.file_ranges import FileRanges
from aspenfs.handles import HandleTable
from aspenfs.inodes import Inodes
from aspenfs.keys import Keys, ParsedKey, range_end
from aspenfs.known_inodes import KnownInodes, Name
from aspenfs.lock_calls import FoundLock, LockCalls
from aspenfs.locks import Locks
from aspenfs.metadata import Superblock
from aspenfs.namespace import RENAME_EXCHANGE, Found, Namespace, Removed
from aspenfs.nodes import Node, attributes
from aspenfs.open_directory import OpenDirectory
from aspenfs.orphans import Orphans
from aspenfs.range_content import RangeContent
from aspenfs.session import Session, open_session
from aspenfs.stored_chunks import StoredChunks
from aspenfs.txn import Transactions, TransactionStatistics
from aspenfs.types import (
    AttributeChanges,
    Attributes,
    Clock,
    CoherenceLevel,
    Context,
    DirectoryEntry,
    FileHandle,
    Ino,
    StatFs,
)
from aspenfs.volume import open_volume, usage
from aspenfs.watch import Listener, Watcher
from aspenfs.xattrs import Xattrs
from aspenkv.contract import KeyValue
from aspenkv.errors import AspenKvError

log = logging.getLogger(__name__)

SYSTEM_CLOCK = Clock(time.monotonic, time.time_ns)

_CREATE_ATTEMPTS_MAX = 8


class FilesystemStatistics(NamedTuple):
    """What a mount has done and holds."""

    caches: dict[str, CacheStatistics]
    data: DataStatistics
    transactions: TransactionStatistics
    handles: int
    known_inodes: int


class _Volume(NamedTuple):
    """One volume, as one mount reaches it."""

    kv: KeyValue
    keys: Keys
    superblock: Superblock
    caches: Caches
    transactions: Transactions


class Filesystem:
    """One mount's view of one volume. Made by :func:`open_filesystem`."""

    def __init__(
        self,
        volume: _Volume,
        session: Session,
        watcher: Watcher,
        nursery: trio.Nursery,
        clock: Clock,
        *,
        coherence: CoherenceLevel,
        readahead: bool,
        timeout_s: float,
    ) -> None:
        """Compose the layers."""
        kv, keys, superblock, caches, transactions = volume
        self.kv = kv
        self.keys = keys
        self.superblock = superblock
        self._caches = caches
        self._transactions = transactions
        self._watcher = watcher
        self._handles: HandleTable[object] = HandleTable()
        self._known = KnownInodes()
        self._removed: dict[Ino, Attributes] = {}
        self._inodes = Inodes(kv, keys, caches, looks_ahead=readahead)
        self._coherence = Coherence(coherence, watcher, self._inodes, self._known, clock.monotonic)
        self._listener: Listener | None = None
        watcher.listen(self._changed_by_others)
        # The kernel has to ask for each page again: under a lock that is gone it gets EIO.
        transactions.on_session_lost = partial(self._changed_by_others, None)
        now_ns = clock.now_ns
        self._attributes = AttributeSetter(keys, self._inodes, transactions, now_ns)
        self._data = Data(
            self._inodes,
            ChunkReader(kv, keys, caches, nursery, readahead=readahead),
            FileContent(keys, self._inodes, transactions, session, self._attributes),
            self._handles,
            nursery,
            clock,
            timeout_s,
            lambda: session.has_peers,
        )
        stored_chunks = StoredChunks(kv, keys)
        self._ranges = FileRanges(
            self._data,
            self._inodes,
            RangeContent(keys, self._inodes, transactions, session, stored_chunks),
            stored_chunks,
            clock,
        )
        self._namespace = Namespace(
            keys, self._inodes, transactions, session, self._data.is_open, now_ns
        )
        self._locks = Locks(
            kv,
            keys,
            transactions,
            session,
            flush=self._data.flush_inode,
            freshen=self._freshen,
            hears_of_changes=lambda: watcher.is_live,
        )
        self._lock_calls = LockCalls(self._locks)
        self._xattrs = Xattrs(kv, keys, self._inodes, transactions, now_ns)
        self._orphans = Orphans(kv, keys, self._inodes, transactions, session, self._data.is_open)

    # --- inodes and names -----------------------------------------------------------------------

    def _seen(self, ino: Ino, node: Node) -> Attributes:
        return self._data.with_dirty(attributes(ino, node))

    def _tell(self, found: Found, parent: Ino, name: bytes) -> Attributes:
        """Return attributes that the caller may go on using until it forgets them."""
        is_own_name = name not in (b".", b"..")
        self._known.told(found.ino, Name(parent, name) if is_own_name else None)
        return self._seen(found.ino, found.node)

    async def lookup(self, parent: Ino, name: bytes) -> Attributes:
        """Return the inode that a name means; "." and ".." work. One lookup more to forget.

        Raises:
            FilesystemError: ENOENT, ENAMETOOLONG, ENOTDIR, ESTALE.
        """
        await self._coherence.before_lookup(parent, name)
        found = await self._namespace.lookup(parent, name)
        if found is None:
            raise FilesystemError(errno.ENOENT)
        return self._tell(found, parent, name)

    def forget(self, ino: Ino, lookup_count: int) -> None:
        """Take back what lookup, create, mknod, mkdir, symlink, link and remember have counted."""
        if self._known.forget(ino, lookup_count):
            self._removed.pop(ino, None)

    async def getattr(self, ino: Ino) -> Attributes:
        """Return an inode's attributes; one without a name has them until it is forgotten.

        Raises:
            FilesystemError: ESTALE.
        """
        await self._coherence.before_getattr()
        node = await self._inodes.node(ino)
        if node is not None:
            return self._seen(ino, node)
        removed = self._removed.get(ino)
        if removed is not None:
            return removed
        raise FilesystemError(errno.ESTALE, f"inode {ino} is gone")

    async def setattr(
        self,
        ino: Ino,
        changes: AttributeChanges,
        fh: FileHandle | None = None,
        *,
        drops_set_id: bool = False,
    ) -> Attributes:
        """Change attributes, the size first; return those after the change.

        ``drops_set_id``: a change of the size clears set-user-ID and an effective set-group-ID.

        Raises:
            FilesystemError: ESTALE, EFBIG, EINVAL, EROFS; EBADF, ``fh`` is no open file.
        """
        if fh is not None:
            self._data.ino_of(fh)
        if changes.size is not None:
            await self._data.truncate(ino, changes.size, drops_set_id=drops_set_id)
            changes = changes._replace(size=None)
            if not any(change is not None for change in changes):
                return await self.getattr(ino)
        node = await self._data.change(ino, changes)
        if node is None:
            node = await self._attributes.set(ino, changes)
        return self._seen(ino, node)

    async def readlink(self, ino: Ino) -> bytes:
        """Return the target of a symlink.

        Raises:
            FilesystemError: EINVAL, it is none; ESTALE.
        """
        target = (await self._inodes.require(ino)).inode.target
        if target is None:
            raise FilesystemError(errno.EINVAL)
        return target

    async def mknod(
        self, parent: Ino, name: bytes, mode: int, rdev: int, ctx: Context
    ) -> Attributes:
        """Make a file, device, FIFO or socket. One lookup more to forget.

        Raises:
            FilesystemError: EEXIST, ENAMETOOLONG, ENOENT, EINVAL (a directory or symlink).
        """
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        if stat.S_IFMT(mode) in {stat.S_IFDIR, stat.S_IFLNK}:
            raise FilesystemError(errno.EINVAL)
        if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            rdev = 0
        return await self._make(parent, name, mode, ctx, rdev=rdev)

    async def mkdir(self, parent: Ino, name: bytes, mode: int, ctx: Context) -> Attributes:
        """Make a directory. One lookup more to forget.

        Raises:
            FilesystemError: EEXIST, ENAMETOOLONG, EMLINK, ENOENT.
        """
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return await self._make(parent, name, mode, ctx)

    async def symlink(self, parent: Ino, name: bytes, target: bytes, ctx: Context) -> Attributes:
        """Make a symlink. One lookup more to forget.

        Raises:
            FilesystemError: EEXIST, ENAMETOOLONG, ENOENT.
        """
        mode = stat.S_IFLNK | 0o777
        return await self._make(parent, name, mode, ctx, target=target)

    async def _make(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        ctx: Context,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Attributes:
        make = partial(self._namespace.make, parent, name, mode, ctx, rdev=rdev, target=target)
        return self._tell(await self._coherence.exactly(make), parent, name)

    async def link(self, ino: Ino, new_parent: Ino, new_name: bytes) -> Attributes:
        """Give an inode one more name. One lookup more to forget.

        Raises:
            FilesystemError: EEXIST, EPERM (a directory), EMLINK, ENOENT, ESTALE.
        """
        link = partial(self._namespace.link, ino, new_parent, new_name)
        return self._tell(await self._coherence.exactly(link), new_parent, new_name)

    async def unlink(self, parent: Ino, name: bytes) -> None:
        """Remove a name; the inode stays while it has others or is open.

        Raises:
            FilesystemError: ENOENT, EISDIR.
        """
        unlink = partial(self._namespace.unlink, parent, name)
        self._note_removed(await self._coherence.exactly(unlink), Name(parent, name))

    async def rmdir(self, parent: Ino, name: bytes) -> None:
        """Remove an empty directory.

        Raises:
            FilesystemError: ENOENT, ENOTDIR, ENOTEMPTY, EINVAL.
        """
        rmdir = partial(self._namespace.rmdir, parent, name)
        self._note_removed(await self._coherence.exactly(rmdir), Name(parent, name))

    async def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0
    ) -> None:
        """Move a name over another, or with RENAME_NOREPLACE, or RENAME_EXCHANGE of both.

        Raises:
            FilesystemError: ENOENT, EEXIST, ENOTEMPTY, EISDIR, ENOTDIR, EINVAL, ENAMETOOLONG.
        """
        rename = partial(self._namespace.rename, parent, name, new_parent, new_name, flags)
        removed = await self._coherence.exactly(rename)
        old, new = Name(parent, name), Name(new_parent, new_name)
        if removed is not None:
            self._note_removed(removed, new)
        if old != new:
            self._note_moved(old, new)
            if flags & RENAME_EXCHANGE:
                self._note_moved(new, old)

    def _note_moved(self, old: Name, new: Name) -> None:
        """Follow the kernel, which moves its own entry as a rename has succeeded."""
        entry = self._inodes.cached_entry(*new)
        if entry is not None and entry.dentry is not None:
            self._known.moved(entry.dentry.ino, old, new)

    def _note_removed(self, removed: Removed, name: Name) -> None:
        """Keep what fstat(2) shows of an inode that is gone but still known to the kernel."""
        self._known.removed(removed.ino, name)
        if removed.kept:
            if removed.node.inode.nlink > 1:
                return
            self._orphans.removed(removed.ino)
        if removed.ino in self._known:
            shown = attributes(removed.ino, removed.node)
            self._removed[removed.ino] = shown._replace(nlink=0)

    # --- files ----------------------------------------------------------------------------------

    async def open(
        self, ino: Ino, flags: int, *, drops_set_id: bool = False, is_retry: bool = False
    ) -> FileHandle:
        """Open a file; O_TRUNC cuts it, O_APPEND makes each write go to its end.

        It then has all that was closed before, on whatever mount (close-to-open).

        ``drops_set_id``: O_TRUNC, writes, copies and allocations clear set-user-ID and an effective
        set-group-ID, as those of an unprivileged process do.
        ``is_retry``: the caller has looked every name up anew, because this said ESTALE.

        Raises:
            FilesystemError: ESTALE, EISDIR, ELOOP (a symlink), ENXIO (a special file), EROFS.
        """
        if not is_retry:
            await self._coherence.before_open(ino)
        node = await self._inodes.require(ino)
        if node.inode.is_directory:
            raise FilesystemError(errno.EISDIR)
        if node.inode.target is not None:
            raise FilesystemError(errno.ELOOP)
        if not node.inode.is_regular:
            raise FilesystemError(errno.ENXIO, "devices, FIFOs and sockets are the kernel's")
        self._check_writable(flags)
        fh = self._data.open(ino, flags, drops_set_id=drops_set_id)
        self._orphans.opened(ino, node.inode)
        if flags & os.O_TRUNC:  # with O_RDONLY too, as Linux does
            try:
                await self._data.truncate(ino, 0, drops_set_id=drops_set_id)
            except BaseException:
                self._data.close(fh)
                raise
        return fh

    def _check_writable(self, flags: int) -> None:
        if self._transactions.read_only and flags & (os.O_ACCMODE | os.O_TRUNC):
            raise FilesystemError(errno.EROFS, "the mount is read-only")

    async def create(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        flags: int,
        ctx: Context,
        *,
        drops_set_id: bool = False,
    ) -> tuple[FileHandle, Attributes]:
        """Make a file and open it, or open the one that has the name. One lookup more to forget.

        See :meth:`open` for ``drops_set_id``.

        Raises:
            FilesystemError: EEXIST (with O_EXCL), ENAMETOOLONG, ENOENT, and those of open.
        """
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        make = partial(self._namespace.make, parent, name, mode, ctx)
        for _ in range(_CREATE_ATTEMPTS_MAX):
            try:
                found = await self._coherence.exactly(make)
            except FilesystemError as error:
                if error.errno != errno.EEXIST or flags & os.O_EXCL:
                    raise
            else:
                fh = self._data.open(found.ino, flags, drops_set_id=drops_set_id)
                return fh, self._tell(found, parent, name)
            opened = await self._open_existing(parent, name, flags, drops_set_id=drops_set_id)
            if opened is not None:
                return opened
        raise FilesystemError(errno.EBUSY, "others keep making and removing the name")

    async def _open_existing(
        self, parent: Ino, name: bytes, flags: int, *, drops_set_id: bool
    ) -> tuple[FileHandle, Attributes] | None:
        """Open what a name means; None if it was removed meanwhile."""
        existing = await self._namespace.lookup(parent, name)
        if existing is None:
            return None
        try:
            fh = await self.open(existing.ino, flags, drops_set_id=drops_set_id, is_retry=True)
            try:
                found = await self.getattr(existing.ino)
            except BaseException:
                self._data.close(fh)
                raise
        except FilesystemError as error:
            if error.errno == errno.ESTALE:
                return None
            raise
        self._known.told(existing.ino, Name(parent, name))
        return fh, found

    async def read(self, fh: FileHandle, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``; fewer only at the end of the file.

        Raises:
            FilesystemError: EBADF, EINVAL, ESTALE.
        """
        found = await self._data.read(fh, offset, size)
        self._locks.require_valid(self._data.ino_of(fh))
        return found

    async def write(
        self,
        fh: FileHandle,
        offset: int,
        data: bytes,
        *,
        may_be_page: bool = False,
        drops_set_id: bool | None = None,
    ) -> int:
        """Take bytes into the dirty buffer; return how many. On O_APPEND ``offset`` is ignored.

        ``may_be_page``: the caller is a kernel, which writes the pages of a mapping back through
        any handle that was mapped, also one with O_APPEND; they go where they belong.
        ``drops_set_id``: whether it clears set-user-ID and an effective set-group-ID; by default as
        :meth:`open` was told of all writes.

        Raises:
            FilesystemError: EBADF, EINVAL, EFBIG, ESTALE, EIO.
        """
        self._locks.require_valid(self._data.ino_of(fh))
        return await self._data.write(
            fh, offset, data, may_be_page=may_be_page, drops_set_id=drops_set_id
        )

    async def flush(self, fh: FileHandle, lock_owner: int | None = None) -> None:
        """Commit what is dirty of the file, as close(2) does, so that others see it.

        And give back the POSIX locks of the process that closes it, ``lock_owner``.

        Raises:
            AspenError, AspenKvError: what made a commit fail.
        """
        ino = self._data.ino_of(fh)
        try:
            await self._flush(ino)
        finally:
            if lock_owner is not None:
                self._locks.close_owner(ino, lock_owner)
        await self._locks.settle(ino)

    async def _flush(self, ino: Ino) -> None:
        if self._data.is_settled(ino):
            return
        node = await self._inodes.node(ino)
        # Else nobody has it open, or ever can.
        if node is None or node.inode.nlink or self._orphans.may_be_open_elsewhere:
            await self._data.flush_inode(ino)

    async def fsync(self, fh: FileHandle, datasync: bool = False) -> None:
        """Commit what is dirty of the file and wait until it is on stable storage.

        Raises:
            AspenError, AspenKvError: what made a commit fail.
        """
        del datasync  # the size is needed to read the data, and comes in the same commit
        await self._data.flush_inode(self._data.ino_of(fh))
        await self.kv.sync()

    async def release(self, fh: FileHandle) -> None:
        """Close a handle; with the last one, an inode without a name is removed.

        Raises:
            AspenError, AspenKvError: what made a commit fail; the handle is closed all the same.
        """
        ino = self._data.ino_of(fh)
        try:
            await self._flush(ino)
        finally:
            self._locks.close_handle(ino, fh)
            self._data.close(fh)
        await self._locks.settle(ino)
        if not self._data.is_open(ino):
            await self._remove_if_nameless(ino)

    async def _remove_if_nameless(self, ino: Ino) -> None:
        """Remove an inode that no handle of this mount leads to, if no name does either."""
        node = await self._inodes.node(ino)
        if node is None or node.inode.nlink:
            return
        await self._data.discard(ino)
        await self._orphans.closed(ino)
        if ino in self._known:
            self._removed[ino] = attributes(ino, node)

    async def fallocate(
        self, ino: Ino, fh: FileHandle, mode: int, offset: int, length: int
    ) -> None:
        """Allocate a range, punch a hole or make zeros of it; the modes are those of the man page.

        To allocate sets the size, unless it is kept, and stores nothing: the store cannot set room
        aside, so that a later write may still meet ENOSPC. To zero also makes holes, of whole
        chunks. Ranges cannot be collapsed or inserted.

        Raises:
            FilesystemError: EBADF, EINVAL, EFBIG, ESTALE; EOPNOTSUPP, any other mode.
        """
        await self._ranges.fallocate(ino, fh, mode, offset, length)

    async def lseek(self, ino: Ino, fh: FileHandle, offset: int, whence: int) -> int:
        """Return where data (SEEK_DATA) or a hole (SEEK_HOLE) begins, at ``offset`` or behind.

        Holes are chunks that were never written, or were punched; and the end of the file.

        Raises:
            FilesystemError: ENXIO, the offset is not in the file, or no data follows; EBADF,
                EINVAL, ESTALE.
        """
        return await self._ranges.seek(ino, fh, offset, whence)

    async def copy_file_range(
        self,
        from_ino: Ino,
        from_fh: FileHandle,
        from_offset: int,
        to_ino: Ino,
        to_fh: FileHandle,
        to_offset: int,
        length: int,
        flags: int,
    ) -> int:
        """Copy bytes within the volume; return how many, 0 only at the end of the source.

        Where both offsets are alike within their chunks the store copies, and holes stay holes; no
        chunk is torn by who changes the source meanwhile. The rest is read and written.

        Raises:
            FilesystemError: EBADF, also for a target opened to append; EINVAL, ranges of one file
                overlap; EFBIG, ESTALE.
        """
        return await self._ranges.copy(
            from_ino, from_fh, from_offset, to_ino, to_fh, to_offset, length, flags
        )

    async def getlk(
        self, ino: Ino, fh: FileHandle, owner: int, kind: int, start: int, end: int, pid: int
    ) -> FoundLock | None:
        """Return a lock that is in the way of another, of whatever mount, or None.

        See :class:`~aspenfs.lock_calls.LockCalls` for what owner, kind and range are.

        Raises:
            FilesystemError: EINVAL, EBADF.
        """
        self._data.ino_of(fh)
        return await self._lock_calls.getlk(ino, owner, kind, start, end, pid)

    async def setlk(
        self,
        ino: Ino,
        fh: FileHandle,
        owner: int,
        kind: int,
        start: int,
        end: int,
        pid: int,
        wait: bool,
    ) -> bool:
        """Take, change or give back a range of bytes, against all mounts.

        Who has taken it sees what was written before, and what is written under it is committed
        before others may take it.

        Returns:
            False: the caller's own cache of the file may be older, and must be dropped.

        Raises:
            FilesystemError: EAGAIN, it is not free and ``wait`` is false; EDEADLK, ENOLCK, EINVAL.
            LeaseLostError: the session of this mount lapsed, and its locks with it.
        """
        self._data.ino_of(fh)
        return await self._lock_calls.setlk(ino, fh, owner, kind, start, end, pid, wait=wait)

    async def flock(self, ino: Ino, fh: FileHandle, owner: int, operation: int) -> bool:
        """Take, change or give back a BSD lock, against all mounts; as :meth:`setlk`.

        Raises:
            FilesystemError: EAGAIN, ENOLCK, EINVAL.
            LeaseLostError: the session of this mount lapsed, and its locks with it.
        """
        self._data.ino_of(fh)
        return await self._lock_calls.flock(ino, fh, owner, operation)

    async def _freshen(self, ino: Ino) -> bool:
        """Let what is read of a file from now on be no older than this call."""
        if await self._coherence.before_locked_io():
            return True
        chunks = self.keys.chunks(ino)
        self._caches.invalidate_key(self.keys.inode(ino))
        self._caches.invalidate_range(chunks, range_end(chunks))
        return False

    # --- directories ----------------------------------------------------------------------------

    async def opendir(self, ino: Ino, *, is_retry: bool = False) -> FileHandle:
        """Open a directory; listing it then shows all that was done before, on whatever mount.

        ``is_retry``: as for :meth:`open`.

        Raises:
            FilesystemError: ENOTDIR; ESTALE.
        """
        if not is_retry:
            await self._coherence.before_open(ino)
        node = await self._inodes.node(ino)
        if node is None and ino not in self._removed and not is_retry:
            raise FilesystemError(errno.ESTALE)  # else it is open, and was removed: it is empty
        if node is not None and not node.inode.is_directory:
            raise FilesystemError(errno.ENOTDIR)
        return FileHandle(self._handles.add(OpenDirectory(self._inodes, ino)))

    def _directory(self, fh: FileHandle) -> OpenDirectory:
        directory = self._handles.get(fh)
        if type(directory) is not OpenDirectory:
            raise FilesystemError(errno.EBADF)
        return directory

    async def readdir(self, fh: FileHandle, offset: int, limit: int) -> list[DirectoryEntry]:
        """Return up to ``limit`` entries after ``offset`` (0: the first), [] at the end.

        In the order of the names' bytes, without "." and "..". Nothing is skipped or returned
        twice when others add or remove entries meanwhile. The entries do not count as lookups:
        see :meth:`remember`.

        Raises:
            FilesystemError: EBADF, EINVAL.
        """
        found = await self._directory(fh).read(offset, limit)
        return [
            DirectoryEntry(entry.name, self._seen(entry.ino, entry.node), entry.next_offset)
            for entry in found
        ]

    def remember(self, fh: FileHandle, ino: Ino, name: bytes) -> None:
        """Count a lookup of an inode that readdir returned."""
        self._known.told(ino, Name(self._directory(fh).ino, name))

    async def releasedir(self, fh: FileHandle) -> None:
        """Close a directory."""
        self._directory(fh)
        self._handles.remove(fh)

    async def fsyncdir(self, fh: FileHandle, datasync: bool = False) -> None:
        """Wait until the directory's changes are on stable storage."""
        del datasync
        self._directory(fh)
        await self.kv.sync()

    # --- extended attributes --------------------------------------------------------------------

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """Return an extended attribute.

        Raises:
            FilesystemError: ENODATA, ESTALE.
        """
        if name == CAPABILITY_XATTR and self._data.has_dirty_bytes(ino):
            raise FilesystemError(errno.ENODATA)  # their commit takes it
        return await self._xattrs.get(ino, name)

    async def listxattr(self, ino: Ino) -> list[bytes]:
        """Return the names of all extended attributes.

        Raises:
            FilesystemError: E2BIG, ESTALE.
        """
        lost = CAPABILITY_XATTR if self._data.has_dirty_bytes(ino) else None
        return [name for name in await self._xattrs.names(ino) if name != lost]

    async def setxattr(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; XATTR_CREATE and XATTR_REPLACE are honoured.

        Raises:
            FilesystemError: EEXIST, ENODATA, ERANGE, E2BIG, EOPNOTSUPP, EINVAL, ESTALE.
        """
        await self._before_change(ino, name)
        await self._xattrs.set(ino, name, value, flags)

    async def removexattr(self, ino: Ino, name: bytes) -> None:
        """Remove an extended attribute.

        Raises:
            FilesystemError: ENODATA, ESTALE.
        """
        await self._before_change(ino, name)
        await self._xattrs.remove(ino, name)

    async def _before_change(self, ino: Ino, xattr_name: bytes) -> None:
        """Let bytes that were written before take a capability before it is changed."""
        if xattr_name == CAPABILITY_XATTR:
            await self._data.flush_inode(ino)

    # --- the volume -----------------------------------------------------------------------------

    async def statfs(self) -> StatFs:
        """Return how full the volume is."""
        return await usage(self.kv, self.keys)

    async def sync(self) -> None:
        """Commit everything dirty and wait until it is on stable storage.

        Raises:
            AspenError, AspenKvError: the first commit that failed.
        """
        await self._data.flush_all()
        await self.kv.sync()

    def listen(self, listener: Listener | None) -> None:
        """Set who is told what other clients change; see :class:`aspenfs.watch.Watcher`."""
        self._listener = listener

    def _changed_by_others(self, key: ParsedKey | None) -> None:
        self._locks.changed_by_others(key)
        self._orphans.heard(key)
        if self._listener is not None:
            self._listener(key)

    @property
    def hears_of_changes(self) -> bool:
        """Whether the listener is told of every change by others now."""
        return self._watcher.is_live

    def kernel_lifetimes(self) -> Lifetimes:
        """Return for how long a kernel may keep what it is told now."""
        return self._coherence.kernel_lifetimes()

    def known_names(self) -> list[Name]:
        """Return the names that the caller was told of."""
        return self._known.all_names()

    def known_inodes(self) -> list[Ino]:
        """Return the inodes that the caller may still name: looked up and not forgotten."""
        return list(self._known)

    def statistics(self) -> FilesystemStatistics:
        """Return what this mount has done and holds now."""
        return FilesystemStatistics(
            self._caches.statistics(),
            self._data.statistics(),
            self._transactions.statistics(),
            len(self._handles),
            len(self._known),
        )

    async def run(self) -> None:
        """Write back and collect orphans until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._data.run)
            nursery.start_soon(self._orphans.run)
            nursery.start_soon(self._locks.run)


@asynccontextmanager
async def open_filesystem(
    kv: KeyValue,
    *,
    volume: str = "default",
    read_only: bool = False,
    coherence: CoherenceLevel = CoherenceLevel.DEFAULT,
    readahead: bool = False,
    timeout_s: float = limits.KV_TIMEOUT_S,
    owner: Context | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> AsyncIterator[Filesystem]:
    """Open a volume, which is made if there is none, and on exit commit and sync all that is dirty.

    Args:
        kv: the store.
        volume: the volume's name.
        read_only: change nothing; EROFS for who tries.
        coherence: what is promised of changes by others.
        readahead: read ahead of sequential readers, and of lookups in order; worthwhile where
            a read waits for a network.
        timeout_s: how long a writer waits for room in the buffer while the store is away; what a
            call of ``kv`` takes at most.
        owner: who owns the root of a new volume; by default this process.
        clock: where time comes from.

    Raises:
        VolumeError, FormatVersionError, CorruptRecordError: the volume cannot be used.
        AspenKvError: the store failed.
    """
    keys = Keys(volume)
    caches = Caches.create(clock.monotonic)
    transactions = Transactions(kv, keys, caches, read_only=read_only)
    owner = Context(os.geteuid(), os.getegid()) if owner is None else owner
    superblock = await open_volume(
        kv, keys, transactions, owner=owner, now_ns=clock.now_ns(), read_only=read_only
    )
    watcher = Watcher(kv, keys, caches)
    transactions.on_doubt = watcher.hear_own
    try:
        async with (
            open_session(kv, keys, transactions, read_only=read_only) as session,
            trio.open_nursery() as nursery,
        ):
            filesystem = Filesystem(
                _Volume(kv, keys, superblock, caches, transactions),
                session,
                watcher,
                nursery,
                clock,
                coherence=coherence,
                readahead=readahead,
                timeout_s=timeout_s,
            )
            if coherence is not CoherenceLevel.TTL:
                await nursery.start(watcher.run)
            if not read_only:
                await session.live_sessions()  # the watch tells of those that come from now on
                nursery.start_soon(filesystem.run)
            try:
                yield filesystem
            finally:
                with trio.CancelScope(shield=True):
                    await _flush_at_exit(filesystem)
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = _only_exception(group)
        if error is group:
            raise
        raise error from error.__cause__


def _only_exception(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception of nested groups, so that the caller's own leaves as it was."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _flush_at_exit(filesystem: Filesystem) -> None:
    """Write what is dirty, in bounded time; what cannot be written gets one line in the log."""
    is_away = filesystem.statistics().data.is_away
    patience_s = limits.SHUTDOWN_AWAY_S if is_away else limits.SHUTDOWN_S
    reason = f"no answer within {patience_s:g} s"
    with trio.move_on_after(patience_s):
        try:
            await filesystem.sync()
        except (AspenError, AspenKvError) as error:
            reason = str(error)
        else:
            return
    lost = filesystem.statistics().data
    if lost.dirty_files:
        log.critical(
            "some data could not be written and is lost: %d bytes in %d files: %s",
            lost.dirty_bytes,
            lost.dirty_files,
            reason,
        )
    else:
        log.critical("the last changes may not survive a power cut of the store: %s", reason)
