"""What pyfuse3 leaves out of FUSE: locks, fallocate, lseek, copy_file_range, interrupts, FUSE_INIT.

pyfuse3 has no handlers for these, and libfuse takes handlers only when a session is made. So a
shared object that is loaded before pyfuse3 stands before ``fuse_session_new()`` and adds ours to
pyfuse3's table (``session.c``). Their requests become tasks of trio (``requests.c``,
:mod:`~aspenfs.fuse_extension.extension`). What the kernel says of a request, but pyfuse3 does not
hand on, is noted as it is read (``wire.c``).

Import this before pyfuse3. Where the shared object is missing, :data:`~.native.NATIVE` is None, and
a mount does without: locks hold within the one mount, and the kernel answers the other calls by
itself. ``docs/decisions/0006-fuse-extension.md`` says why it is built so.
"""

from aspenfs.fuse_extension.extension import FuseExtension, Settings
from aspenfs.fuse_extension.handlers import Handlers
from aspenfs.fuse_extension.native import NATIVE, WHY_MISSING
from aspenfs.fuse_extension.wire import (
    OPEN_KILL_SUIDGID,
    RELEASE_FLOCK_UNLOCK,
    SETATTR_KILL_SUIDGID,
    WRITE_KILL_SUIDGID,
    WRITE_OF_PAGE_CACHE,
    WireRequest,
)

__all__ = [
    "NATIVE",
    "OPEN_KILL_SUIDGID",
    "RELEASE_FLOCK_UNLOCK",
    "SETATTR_KILL_SUIDGID",
    "WHY_MISSING",
    "WRITE_KILL_SUIDGID",
    "WRITE_OF_PAGE_CACHE",
    "FuseExtension",
    "Handlers",
    "Settings",
    "WireRequest",
]
