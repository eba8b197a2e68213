"""The pyfuse3 adapter: converts types, maps errors to errnos, counts lookups. No policy.

An exception that is not a FUSEError would end pyfuse3's loop and with it the mount, so every
handler is wrapped once: our errors become their errno, anything else is logged with its traceback,
counted as a bug and answered with EIO. A handler that waits ends with EINTR when its caller is
signalled; see :mod:`aspenfs.interrupts`.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import os
import platform
import re
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast

import pyfuse3
import trio

from aspenfs import limits
from aspenfs.errors import FilesystemError, errno_of
from aspenfs.extra_operations import ExtraOperations
from aspenfs.filesystem import Filesystem
from aspenfs.fuse_extension import (
    OPEN_KILL_SUIDGID,
    SETATTR_KILL_SUIDGID,
    WRITE_KILL_SUIDGID,
    WRITE_OF_PAGE_CACHE,
    FuseExtension,
    Settings,
)
from aspenfs.interrupts import Caller, Interrupts
from aspenfs.kernel_notifier import KernelNotifier
from aspenfs.path_retries import PathRetries
from aspenfs.types import AttributeChanges, Attributes, Context, FileHandle, Ino

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])


_BLOCK_BYTES = 512  # the unit of st_blocks, whatever st_blksize is


_NEVER_INTERRUPTED = frozenset({"release", "releasedir"})  # nobody waits for their answer


def _handler(method: F) -> F:
    """Wrap a handler, so that nothing but FUSEError leaves it, and a signal can end it."""
    knows_caller = list(inspect.signature(method).parameters)[-1] == "ctx"
    is_waited_for = method.__name__ not in _NEVER_INTERRUPTED

    async def answer(self: Operations, args: tuple[Any, ...]) -> object:
        try:
            return await method(self, *args)
        except FilesystemError as error:
            number = error.errno
            if number == errno.ESTALE and knows_caller:
                number = self._retries.error_for(args[-1].pid, method.__name__, args[0])
            raise pyfuse3.FUSEError(number) from None
        except Exception as error:  # noqa: BLE001  # nothing may reach pyfuse3's loop
            raise pyfuse3.FUSEError(self.explain(method.__name__, error)) from None

    @functools.wraps(method)
    async def wrapper(self: Operations, *args: Any) -> object:  # noqa: ANN401  # as pyfuse3 calls it
        if not self._interruptible or not is_waited_for:
            return await answer(self, args)
        request = self.extension.last_request()
        with trio.CancelScope() as scope:
            if request is not None:
                self.extension.begin(request.unique, scope)
            else:
                tid = args[-1].pid if knows_caller else self._openers.get(args[0], 0)
                self._interrupts.begin(scope, Caller(tid, is_opener=not knows_caller))
            try:
                return await answer(self, args)
            finally:
                if request is not None:
                    self.extension.end(request.unique)
                else:
                    self._interrupts.end(scope)
        raise pyfuse3.FUSEError(errno.EINTR)

    return cast("F", wrapper)


class Operations(pyfuse3.Operations):
    """Serves the kernel's requests from a :class:`Filesystem`.

    Args:
        filesystem: what is served.
        interruptible: let a signal end what its caller waits for; worthwhile where the store may be
            out of reach, for it costs each request a few microseconds.
        shares_locks: file locks hold on all mounts; else within this one only.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        filesystem: Filesystem,
        *,
        interruptible: bool = True,
        shares_locks: bool = True,
    ) -> None:
        """Serve nothing yet: pyfuse3.main() calls the handlers."""
        super().__init__()
        self._fs = filesystem
        self.bug_count = 0
        self._interruptible = interruptible
        self._interrupts = Interrupts()  # for a mount without the extension
        self._openers: dict[int, int] = {}  # the thread that opened a handle, by the handle
        self._notifier = KernelNotifier(
            lambda ino, with_pages: pyfuse3.invalidate_inode(ino, attr_only=not with_pages),
            lambda name: pyfuse3.invalidate_entry(name.parent, name.name),
            lambda: (filesystem.known_inodes(), filesystem.known_names()),
        )
        self._retries = PathRetries(trio.current_time)
        self.extension = FuseExtension(
            ExtraOperations(filesystem, self._notifier),
            self.explain,
            Settings(
                locks=shares_locks,
                apply_umask=True,
                kill_privileges=True,
                direct_mmap=True,
                max_background=limits.KERNEL_BACKGROUND_MAX,
            ),
        )

    def explain(self, handler: str, error: Exception) -> int:
        """Return the errno for an error of a handler; a bug of ours is logged, counted, and EIO."""
        number = errno_of(error)
        if number is None:
            self.bug_count += 1
            log.error("bug in the handler of %s; answered EIO", handler, exc_info=error)
            return errno.EIO
        log.error("%s failed: %s", handler, error)
        return number

    # --- conversions ----------------------------------------------------------------------------

    def _entry(self, found: Attributes) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = found.ino
        entry.st_mode = found.mode
        entry.st_nlink = found.nlink
        entry.st_uid = found.uid
        entry.st_gid = found.gid
        entry.st_rdev = found.rdev
        entry.st_size = found.size
        entry.st_blocks = -(-found.allocated_bytes // _BLOCK_BYTES)
        entry.st_blksize = limits.CHUNK_BYTES
        entry.st_atime_ns = found.atime_ns
        entry.st_mtime_ns = found.mtime_ns
        entry.st_ctime_ns = found.ctime_ns
        entry.generation = found.generation
        lifetimes = self._fs.kernel_lifetimes()
        is_symlink = stat.S_ISLNK(found.mode)
        entry.entry_timeout = lifetimes.exact_s if is_symlink else lifetimes.entry_s
        entry.attr_timeout = lifetimes.attributes_s
        return entry

    # --- inodes and names -----------------------------------------------------------------------

    @_handler
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """See Filesystem.lookup; a name that does not exist is an entry with inode 0."""
        try:
            found = await self._fs.lookup(Ino(parent_inode), name)
        except FilesystemError as error:
            if error.errno != errno.ENOENT:
                raise
        else:
            self._retries.looked_up(ctx.pid, found.ino)
            return self._entry(found)
        self._retries.looked_up(ctx.pid, 0)
        absent = pyfuse3.EntryAttributes()
        absent.st_ino = 0
        absent.entry_timeout = self._fs.kernel_lifetimes().exact_s
        return absent

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Take back lookups; must not fail."""
        for ino, lookup_count in inode_list:
            self._fs.forget(Ino(ino), lookup_count)

    @_handler
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """See Filesystem.getattr."""
        del ctx
        return self._entry(await self._fs.getattr(Ino(inode)))

    @_handler
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """See Filesystem.setattr."""
        del ctx
        request = self.extension.last_request()
        drops_set_id = request is not None and bool(request.flags & SETATTR_KILL_SUIDGID)
        changes = AttributeChanges(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        handle = None if fh is None else FileHandle(fh)
        found = await self._fs.setattr(Ino(inode), changes, handle, drops_set_id=drops_set_id)
        return self._entry(found)

    @_handler
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """See Filesystem.readlink."""
        del ctx
        return await self._fs.readlink(Ino(inode))

    @_handler
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """See Filesystem.mknod."""
        made = await self._fs.mknod(Ino(parent_inode), name, mode, rdev, _context(ctx))
        return self._entry(made)

    @_handler
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """See Filesystem.mkdir."""
        return self._entry(await self._fs.mkdir(Ino(parent_inode), name, mode, _context(ctx)))

    @_handler
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """See Filesystem.symlink."""
        return self._entry(await self._fs.symlink(Ino(parent_inode), name, target, _context(ctx)))

    @_handler
    async def link(
        self,
        inode: int,
        new_parent_inode: int,
        new_name: bytes,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """See Filesystem.link."""
        del ctx
        return self._entry(await self._fs.link(Ino(inode), Ino(new_parent_inode), new_name))

    @_handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """See Filesystem.unlink."""
        del ctx
        await self._fs.unlink(Ino(parent_inode), name)

    @_handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """See Filesystem.rmdir."""
        del ctx
        await self._fs.rmdir(Ino(parent_inode), name)

    @_handler
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """See Filesystem.rename."""
        del ctx
        await self._fs.rename(
            Ino(parent_inode_old), name_old, Ino(parent_inode_new), name_new, flags
        )

    # --- files ----------------------------------------------------------------------------------

    @_handler
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """See Filesystem.open. The kernel keeps its pages if it is told who else writes."""
        direct = _is_direct(flags)
        fh = await self._fs.open(
            Ino(inode),
            flags,
            drops_set_id=self._lacks_fsetid(ctx),
            is_retry=self._retries.takes_anew(ctx.pid, "open", inode),
        )
        self._retries.succeeded(ctx.pid)
        self._openers[fh] = ctx.pid
        # While one with O_TRUNC is open()ing, the kernel itself may wait with what we wait for.
        keep = self._fs.hears_of_changes and (
            bool(flags & os.O_TRUNC) or await self._notifier.settle(Ino(inode))
        )
        direct = direct or self._reads_past_pages(Ino(inode), flags)
        return pyfuse3.FileInfo(fh=fh, keep_cache=keep, direct_io=direct)

    def _lacks_fsetid(self, ctx: pyfuse3.RequestContext) -> bool:
        """Return whether what an opener does to a file clears its set-ID bits; see CAP_FSETID.

        The kernel says so of O_TRUNC and of each write, but only to the extension. Else, and for
        copies and allocations, which carry no such flag, the opener's user ID has to do.
        """
        request = self.extension.last_request()
        return ctx.uid != 0 or (request is not None and bool(request.flags & OPEN_KILL_SUIDGID))

    def _reads_past_pages(self, ino: Ino, flags: int) -> bool:
        """Return whether a handle is to be read without the kernel's pages.

        Those are cut at the size that the kernel knows. While others go on changing the file, it
        may not learn the one that an open has to see: it throws an answer to GETATTR away if it was
        told of a change meanwhile (fuse_change_attributes in fs/fuse/inode.c).
        """
        return (
            flags & os.O_ACCMODE == os.O_RDONLY
            and self._notifier.is_changing(ino)
            and self.extension.allows_direct_mmap
        )

    @_handler
    async def create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """See Filesystem.create."""
        direct = _is_direct(flags)
        fh, made = await self._fs.create(
            Ino(parent_inode),
            name,
            mode,
            flags,
            _context(ctx),
            drops_set_id=self._lacks_fsetid(ctx),
        )
        self._openers[fh] = ctx.pid
        keep = self._fs.hears_of_changes
        return pyfuse3.FileInfo(fh=fh, keep_cache=keep, direct_io=direct), self._entry(made)

    @_handler
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """See Filesystem.read."""
        return await self._fs.read(FileHandle(fh), off, size)

    @_handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """See Filesystem.write. Without the extension any write may be pages of a mapping."""
        request = self.extension.last_request()
        may_be_page = request is None or bool(request.flags & WRITE_OF_PAGE_CACHE)
        drops_set_id = None if request is None else bool(request.flags & WRITE_KILL_SUIDGID)
        return await self._fs.write(
            FileHandle(fh), off, buf, may_be_page=may_be_page, drops_set_id=drops_set_id
        )

    @_handler
    async def flush(self, fh: int) -> None:
        """See Filesystem.flush. Without the extension, locks are the kernel's."""
        request = self.extension.last_request()
        await self._fs.flush(FileHandle(fh), None if request is None else request.lock_owner)

    @_handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        """See Filesystem.fsync."""
        await self._fs.fsync(FileHandle(fh), datasync)

    @_handler
    async def release(self, fh: int) -> None:
        """See Filesystem.release."""
        self._openers.pop(fh, None)
        await self._fs.release(FileHandle(fh))

    # --- directories ----------------------------------------------------------------------------

    @_handler
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """See Filesystem.opendir."""
        is_retry = self._retries.takes_anew(ctx.pid, "opendir", inode)
        fh = await self._fs.opendir(Ino(inode), is_retry=is_retry)
        self._retries.succeeded(ctx.pid)
        self._openers[fh] = ctx.pid
        return fh

    @_handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """See Filesystem.readdir; each entry that fits the kernel's buffer counts as a lookup."""
        handle, offset = FileHandle(fh), start_id
        counted: list[Ino] = []
        try:
            while True:
                entries = await self._fs.readdir(handle, offset, limits.READDIR_REPLY_ENTRIES)
                for name, found, next_offset in entries:
                    if not pyfuse3.readdir_reply(token, name, self._entry(found), next_offset):
                        return
                    self._fs.remember(handle, found.ino, name)
                    counted.append(found.ino)
                    offset = next_offset
                if not entries:
                    return
        except BaseException:
            for ino in counted:  # the kernel gets an error in place of the entries
                self._fs.forget(ino, 1)
            raise

    @_handler
    async def releasedir(self, fh: int) -> None:
        """See Filesystem.releasedir."""
        self._openers.pop(fh, None)
        await self._fs.releasedir(FileHandle(fh))

    @_handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """See Filesystem.fsyncdir."""
        await self._fs.fsyncdir(FileHandle(fh), datasync)

    # --- extended attributes and the volume -----------------------------------------------------

    @_handler
    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        """See Filesystem.setxattr; pyfuse3 has looked after XATTR_CREATE and XATTR_REPLACE."""
        del ctx
        await self._fs.setxattr(Ino(inode), name, value)

    @_handler
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """See Filesystem.getxattr."""
        del ctx
        return await self._fs.getxattr(Ino(inode), name)

    @_handler
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """See Filesystem.listxattr."""
        del ctx
        return await self._fs.listxattr(Ino(inode))

    @_handler
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """See Filesystem.removexattr."""
        del ctx
        await self._fs.removexattr(Ino(inode), name)

    @_handler
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """See Filesystem.statfs."""
        del ctx
        found = await self._fs.statfs()
        shown = pyfuse3.StatvfsData()
        shown.f_bsize = limits.CHUNK_BYTES
        shown.f_frsize = found.block_bytes
        shown.f_blocks = found.blocks_total
        shown.f_bfree = shown.f_bavail = found.blocks_free
        shown.f_files = found.inodes_used + found.inodes_free
        shown.f_ffree = shown.f_favail = found.inodes_free
        shown.f_namemax = found.name_bytes_max
        return shown

    @_handler
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        """Never called with default_permissions: the kernel decides."""
        del inode, mode, ctx
        return True

    # --- what others change ---------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End requests whose caller is signalled, and tell the kernel what others changed."""
        self._fs.listen(self._notifier.changed)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._interrupts.run)
                nursery.start_soon(self._notifier.run)
                task_status.started()
        finally:
            self._fs.listen(None)


def _is_direct(flags: int) -> bool:
    """Return whether a handle bypasses the kernel's page cache.

    A write-only handle does: nothing can be read or mapped through it, so its writes need no second
    copy in the page cache, nor the question for security.capability that the kernel asks before
    each cached write without the extension.
    Kernels before 6.6 leave stale pages behind a direct write (fuse_direct_io in fs/fuse/file.c).
    """
    return _DIRECT_WRITES_ARE_COHERENT and flags & os.O_ACCMODE == os.O_WRONLY


def _kernel_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


_DIRECT_WRITES_ARE_COHERENT = _kernel_version() >= (6, 6)


def _context(ctx: pyfuse3.RequestContext) -> Context:
    return Context(ctx.uid, ctx.gid, ctx.pid, ctx.umask)
