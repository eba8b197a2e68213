"""The one error tree and the one errno table of the filesystem. Pure."""

from __future__ import annotations

import errno

from aspenkv import errors as kv_errors


class AspenError(Exception):
    """Base of every error that aspenfs raises on purpose."""


class FilesystemError(AspenError):
    """An outcome that POSIX names: the caller gets ``errno`` (see errno(3))."""

    def __init__(self, errno_: int, message: str = "") -> None:
        """Take an errno of :mod:`errno` and, for logs, what happened."""
        super().__init__(errno_, message)
        self.errno = errno_

    def __str__(self) -> str:
        """Return the symbolic errno and the message."""
        name = errno.errorcode.get(self.errno, str(self.errno))
        return f"{name}: {self.args[1]}" if self.args[1] else name


class ConflictError(AspenError):
    """A check of a commit failed: another client was first. Never leaves the transaction layer."""


class LeaseLostError(AspenError):
    """This mount's session lapsed; others may have changed what it had open."""


class CorruptRecordError(AspenError):
    """A stored record cannot be read; the message names its key."""

    def __init__(self, key: bytes, reason: str) -> None:
        """Name the key and what is wrong with its value."""
        super().__init__(f"damaged record at key {key!r}: {reason}; restore it from a backup")
        self.key = key


class FormatVersionError(AspenError):
    """The volume, or a record, was written by a newer aspenfs."""

    def __init__(self, key: bytes, found: int, supported: int) -> None:
        """Name the key, the version found and the newest that this build reads."""
        super().__init__(
            f"format version {found} at key {key!r} is newer than {supported}, the newest that "
            f"this aspenfs reads; upgrade aspenfs"
        )
        self.key = key


class UnknownFeaturesError(FormatVersionError):
    """The volume uses features of a newer aspenfs."""

    def __init__(self, key: bytes, features: int) -> None:
        """Name the key and the unknown bits."""
        AspenError.__init__(
            self,
            f"unknown features {features:#x} at key {key!r}: a newer aspenfs uses this volume; "
            f"upgrade aspenfs",
        )
        self.key = key


class VolumeError(AspenError):
    """The volume does not exist or its name is not valid."""


class StartupError(AspenError):
    """The command cannot do its work here. The message is one line: what, why, the cure."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        """Take the line to print and the exit code (docs/operations.md lists them)."""
        super().__init__(message)
        self.exit_code = exit_code


_ERRNO_BY_TYPE: tuple[tuple[type[Exception], int], ...] = (
    (ConflictError, errno.EBUSY),
    (LeaseLostError, errno.EIO),
    (CorruptRecordError, errno.EIO),
    (FormatVersionError, errno.EIO),
    (kv_errors.ClosedError, errno.EIO),
    (kv_errors.UnavailableError, errno.ETIMEDOUT),
    (kv_errors.OutcomeUnknownError, errno.EIO),
    (kv_errors.BusyError, errno.EAGAIN),
    (kv_errors.AccessDeniedError, errno.EROFS),
    (kv_errors.TicketError, errno.EACCES),
    (kv_errors.ServerKeyError, errno.EACCES),
    (kv_errors.ProtocolError, errno.EIO),
    (kv_errors.TooManyError, errno.EBUSY),
    (kv_errors.LeaseNotFoundError, errno.EIO),
    (kv_errors.EngineError, errno.EIO),
)


def errno_of(error: Exception) -> int | None:
    """Return the errno that a caller of the filesystem gets for ``error``; None: a bug of ours."""
    if isinstance(error, FilesystemError):
        return error.errno
    for kind, number in _ERRNO_BY_TYPE:
        if isinstance(error, kind):
            return number
    return None
