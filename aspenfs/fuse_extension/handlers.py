"""What the requests of the extension are answered with: an interface of one mount's core."""

from __future__ import annotations

from typing import Protocol


class Handlers(Protocol):
    """What answers the requests.

    Each raises FilesystemError with the errno for its caller, but never with EINTR: a signal to the
    caller cancels it where it waits, as the end of the mount does. If it returns all the same, that
    is the answer.

    An ``owner`` is the kernel's number for whoever holds a lock: for POSIX locks the files of a
    process (fcntl(2)), for those of an open file description and for BSD locks that description.
    ``kind`` is F_RDLCK, F_WRLCK or F_UNLCK. A range is from byte ``start`` to byte ``end``, both
    included; 2**63 - 1 is the end of the file, wherever that is.
    """

    async def getlk(
        self, ino: int, fh: int, owner: int, kind: int, start: int, end: int, pid: int
    ) -> tuple[int, int, int, int] | None:
        """Return kind, start, end and pid of a lock in the way of this one, or None."""
        ...

    async def setlk(
        self,
        ino: int,
        fh: int,
        owner: int,
        kind: int,
        start: int,
        end: int,
        pid: int,
        wait: bool,
    ) -> None:
        """Take, change or give back a range; EAGAIN if it is not free and ``wait`` is false."""
        ...

    async def flock(self, ino: int, fh: int, owner: int, operation: int) -> None:
        """Take or give back a BSD lock; EAGAIN as LOCK_NB says. See its manual page."""
        ...

    async def fallocate(self, ino: int, fh: int, mode: int, offset: int, length: int) -> None:
        """Allocate, punch or zero a range, as the manual page says of ``mode``."""
        ...

    async def lseek(self, ino: int, fh: int, offset: int, whence: int) -> int:
        """Return where data (SEEK_DATA) or a hole (SEEK_HOLE) is; ENXIO if nowhere."""
        ...

    async def copy_file_range(
        self,
        from_ino: int,
        from_fh: int,
        from_offset: int,
        to_ino: int,
        to_fh: int,
        to_offset: int,
        length: int,
        flags: int,
    ) -> int:
        """Copy within the volume; return how many bytes."""
        ...
