"""What Linux does when a filesystem answers ESTALE: it walks the path once more. Pure.

At each step it then asks for the name anew (LOOKUP_REVAL; retry_estale() in linux/namei.h). A
second ESTALE goes to the process, which knows no such error from a local disk.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from aspenfs import limits


class _Stale(NamedTuple):
    """Which call on which inode was answered ESTALE, and where the walk has come since."""

    call: str
    ino: int
    told_at_s: float
    found: int
    found_at_s: float


class PathRetries:
    """The threads that were answered ESTALE a moment ago, and for what.

    Args:
        monotonic: the time in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """Start with none."""
        self._monotonic = monotonic
        self._stale: OrderedDict[int, _Stale] = OrderedDict()

    def looked_up(self, tid: int, ino: int) -> None:
        """Note what a thread's lookup answered; 0: the name does not exist."""
        stale = self._stale.get(tid)
        if stale is None:
            return
        if ino:
            self._stale[tid] = stale._replace(found=ino, found_at_s=self._monotonic())
        else:
            del self._stale[tid]  # the walk ends here

    def takes_anew(self, tid: int, call: str, ino: int) -> bool:
        """Return whether a thread has come to an inode by the walk that follows ESTALE.

        So the names are right, even if others have changed them again meanwhile; who said ESTALE
        again would say it to the process. An open may also have been told so by the GETATTR before
        it, but so may a stat, after whose walk nothing follows: that is told by the time.
        """
        stale = self._stale.get(tid)
        if stale is None or stale.found != ino:
            return False
        if stale.call == call:
            return self._is_recent(stale)
        return self._monotonic() - stale.found_at_s < limits.PATH_WALKED_S

    def succeeded(self, tid: int) -> None:
        """Note that a thread's call went well."""
        self._stale.pop(tid, None)

    def error_for(self, tid: int, call: str, ino: int) -> int:
        """Return the errno for a call on an inode that is gone.

        ESTALE; the second time ENOENT, as on a local disk. Then the thread gets to the inode by
        something other than a name, such as a directory that it has open; or others have removed
        what its walk had just found.
        """
        now_s = self._monotonic()
        before = self._stale.pop(tid, None)
        if before is not None and self._is_recent(before):
            is_back = (before.call, before.ino) == (call, ino)
            is_walking = now_s - before.found_at_s < limits.PATH_WALKED_S
            if is_back or is_walking:
                return errno.ENOENT
        # Until a lookup says otherwise: what no name leads to, it comes back to at once.
        self._stale[tid] = _Stale(call, ino, now_s, found=ino, found_at_s=float("-inf"))
        if len(self._stale) > limits.PATH_RETRIES_MAX:
            self._stale.popitem(last=False)
        return errno.ESTALE

    def _is_recent(self, stale: _Stale) -> bool:
        return self._monotonic() - stale.told_at_s < limits.PATH_RETRY_S
