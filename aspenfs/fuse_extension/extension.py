"""The extension's part of one mount: requests become tasks, and each is answered once."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from aspenfs import limits
from aspenfs.errors import FilesystemError
from aspenfs.fuse_extension.handlers import Handlers
from aspenfs.fuse_extension.native import NATIVE, WHY_MISSING, Native
from aspenfs.fuse_extension.wire import WireRequest

if TYPE_CHECKING:
    from aspenfs.fuse_extension._native import Request

log = logging.getLogger(__name__)


_LOCKS: Final = frozenset({"getlk", "setlk", "flock"})
_OPERATIONS: Final = ("fallocate", "lseek", "copy_file_range", *sorted(_LOCKS))


class Settings(NamedTuple):
    """What the kernel is told when it makes contact, beside what pyfuse3 says.

    Attributes:
        locks: hand locks to the handlers; else the kernel keeps them, for this mount alone.
        apply_umask: leave the umask of a creating process to the filesystem, which must apply it
            where no default ACL takes its place (FUSE_DONT_MASK).
        kill_privileges: leave it to the filesystem to drop security.capability and, where the
            request says so, the set-ID bits (FUSE_HANDLE_KILLPRIV_V2). The kernel then does not ask
            for security.capability before each write.
        direct_mmap: let files that bypass the page cache be mapped shared, as others can
            (FUSE_DIRECT_IO_ALLOW_MMAP, Linux 6.6).
        max_background: how many requests that nobody waits for, above all readahead, may be under
            way; 0 leaves it to libfuse and the kernel (12).
        congestion_threshold: from how many on the kernel holds others back; 0: three quarters.
    """

    locks: bool = True
    apply_umask: bool = False
    kill_privileges: bool = False
    direct_mmap: bool = False
    max_background: int = 0
    congestion_threshold: int = 0


class FuseExtension:
    """Serves what pyfuse3 does not.

    Enter :meth:`armed` around the session and start :meth:`run` before pyfuse3's loop. Without the
    compiled part all methods do nothing.

    Args:
        handlers: answers the requests.
        explain: takes the name of a handler and an error that is no FilesystemError; logs and
            counts it as need be, and returns the errno to answer.
        settings: what the kernel is told.
        native: the compiled part.
    """

    def __init__(
        self,
        handlers: Handlers,
        explain: Callable[[str, Exception], int],
        settings: Settings,
        native: Native | None = NATIVE,
    ) -> None:
        """Serve nothing yet."""
        self._explain = explain
        self._settings = settings
        self._native = native
        self._handlers: Mapping[str, Callable[..., Coroutine[Any, Any, Any]]] = {
            name: getattr(handlers, name)
            for name in _OPERATIONS
            if settings.locks or name not in _LOCKS
        }
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[int, trio.CancelScope] = {}  # of requests in work, by their number
        self._lock_waiters = 0

    @property
    def is_active(self) -> bool:
        """Whether the mount runs with the extension: from the kernel's first contact to the end."""
        return self._native is not None and self._native.is_extended()

    @property
    def allows_direct_mmap(self) -> bool:
        """Whether files that bypass the page cache can be mapped shared."""
        return self._native is not None and self._native.allows_direct_mmap()

    def why_inactive(self) -> str | None:
        """Return why a mount that the kernel has made contact with runs without; None: it does not.

        The reason is one line, for the log and ``aspenfs status``.
        """
        if self.is_active:
            return None
        if self._native is None:
            return WHY_MISSING
        return "pyfuse3 was loaded before it"

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Extend the session that pyfuse3 makes in this block; the block ends after its close."""
        if self._native is None:
            yield
            return
        settings = self._settings
        self._native.arm(
            receiver=self._receive,
            interrupted=self._interrupted,
            operations=list(self._handlers),
            want=self._native.CAP_DONT_MASK if settings.apply_umask else 0,
            do_not_want=0,
            max_background=settings.max_background,
            congestion_threshold=settings.congestion_threshold,
            kill_privileges=settings.kill_privileges,
            direct_mmap=settings.direct_mmap,
        )
        try:
            yield
        finally:
            self._native.disarm()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer requests until cancelled; those in work then are answered with ENOTCONN."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    # --- for the handlers of pyfuse3 ------------------------------------------------------------

    def last_request(self) -> WireRequest | None:
        """Return what the kernel said of the request that is being handed over; None: unknown.

        Ask before the first await of a handler: later it is about another request.
        """
        if self._native is None or not self._native.is_extended():
            return None
        return WireRequest(*self._native.last_request())

    def begin(self, unique: int, scope: trio.CancelScope) -> None:
        """Cancel ``scope`` if the caller of a request is signalled, until :meth:`end`."""
        self._scopes[unique] = scope

    def end(self, unique: int) -> None:
        """Forget a request, which is being answered."""
        del self._scopes[unique]

    # --- called by the compiled part, inside the system call's turn of the event loop -----------

    def _interrupted(self, unique: int) -> None:
        """A signal came for the caller of a request, which may have been answered meanwhile."""
        scope = self._scopes.get(unique)
        if scope is not None:
            scope.cancel()

    def _receive(self, request: Request) -> None:
        if self._nursery is None:
            _sent(request, request.reply_error(errno.ENOTCONN))
            return
        # Here and not in the task: a signal may be read before the task has its first turn.
        scope = trio.CancelScope()
        self.begin(request.unique, scope)
        self._nursery.start_soon(self._serve, request, scope, name=request.operation)

    async def _serve(self, request: Request, scope: trio.CancelScope) -> None:
        is_lock_waiter = _waits_for_lock(request)
        self._lock_waiters += is_lock_waiter
        try:
            with scope:
                if is_lock_waiter and self._lock_waiters > limits.FUSE_LOCK_WAITERS_MAX:
                    _sent(request, request.reply_error(errno.ENOLCK))
                else:
                    _sent(request, await self._answer(request))
        finally:
            self._lock_waiters -= is_lock_waiter
            self.end(request.unique)
            if not request.is_answered:
                # EINTR is for those who are signalled: for others the kernel makes of it, for a
                # lock, an error that no program knows (ERESTARTSYS, fuse_setlk in fs/fuse/file.c).
                number = errno.EINTR if scope.cancelled_caught else errno.ENOTCONN
                _sent(request, request.reply_error(number))

    async def _answer(self, request: Request) -> int:
        """Run the handler and reply; return what the device said to it."""
        try:
            return _reply(request, await self._handlers[request.operation](*request.arguments))
        except FilesystemError as error:
            return request.reply_error(error.errno)
        except Exception as error:  # noqa: BLE001  # it would end the mount
            return request.reply_error(self._explain(request.operation, error))


def _waits_for_lock(request: Request) -> bool:
    """Return whether a request may have to wait for another's lock, for however long."""
    arguments = request.arguments
    if request.operation == "flock":
        return not arguments[-1] & (fcntl.LOCK_NB | fcntl.LOCK_UN)
    return request.operation == "setlk" and bool(arguments[-1]) and arguments[3] != fcntl.F_UNLCK


def _reply(request: Request, result: Any) -> int:  # noqa: ANN401  # of any handler
    match request.operation:
        case "getlk":
            return request.reply_lock(*(result or (fcntl.F_UNLCK, 0, 0, 0)))
        case "lseek":
            return request.reply_offset(result)
        case "copy_file_range":
            return request.reply_count(result)
        case _:
            return request.reply_done()


def _sent(request: Request, result: int) -> None:
    """Log an answer that the device refused: 0, or a negated errno.

    ENOENT is no fault: nobody waits for it any more, for the connection was aborted.
    """
    if result not in {0, -errno.ENOENT}:
        log.error("the answer to %s was refused: %s", request.operation, os.strerror(-result))
