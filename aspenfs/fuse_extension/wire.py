"""What the kernel says of a request and pyfuse3 does not hand on; see <linux/fuse.h>. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

WRITE_OF_PAGE_CACHE: Final = 1 << 0  # FUSE_WRITE_CACHE: the pid and handle may be another's
WRITE_KILL_SUIDGID: Final = 1 << 2  # the caller lacks CAP_FSETID
SETATTR_KILL_SUIDGID: Final = 1 << 11  # FATTR_KILL_SUIDGID, the same for a truncate
OPEN_KILL_SUIDGID: Final = 1 << 0  # the same for O_TRUNC
RELEASE_FLOCK_UNLOCK: Final = 1 << 1  # the lock owner has BSD locks through this handle


class WireRequest(NamedTuple):
    """A request as it was read.

    ``flags`` are those of WRITE, OPEN, CREATE and RELEASE, and of SETATTR the field ``valid``;
    ``lock_owner`` is that of WRITE, FLUSH and RELEASE. Of other requests both are 0.
    """

    unique: int
    flags: int
    lock_owner: int
