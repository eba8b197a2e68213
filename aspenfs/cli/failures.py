"""Every failure becomes one line on standard error and a documented exit code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from aspenfs.config import ExitCode
from aspenfs.control import NotServedError
from aspenfs.errors import (
    AspenError,
    CorruptRecordError,
    FormatVersionError,
    StartupError,
    VolumeError,
)
from aspenkv.errors import (
    AccessDeniedError,
    AspenKvError,
    BusyError,
    DataCorruptError,
    DataDirectoryLockedError,
    ProtocolVersionError,
    ServerKeyError,
    TicketDamagedError,
    TicketError,
    TicketExpiredError,
    TicketRevokedError,
    UnavailableError,
)

_EXIT_CODES: Final[tuple[tuple[type[Exception], ExitCode], ...]] = (
    (FormatVersionError, ExitCode.DATA_NEWER_FORMAT),
    (CorruptRecordError, ExitCode.DATA_DAMAGED),
    (DataCorruptError, ExitCode.DATA_DAMAGED),
    (DataDirectoryLockedError, ExitCode.DATA_LOCKED),
    (VolumeError, ExitCode.DATA_MISSING),
    (NotServedError, ExitCode.NOT_MOUNTED),
    (UnavailableError, ExitCode.SERVER_UNREACHABLE),
    (BusyError, ExitCode.SERVER_UNREACHABLE),
    (ServerKeyError, ExitCode.SERVER_KEY_WRONG),
    (ProtocolVersionError, ExitCode.PROTOCOL_MISMATCH),
    (TicketDamagedError, ExitCode.TICKET_DAMAGED),
    (TicketExpiredError, ExitCode.TICKET_EXPIRED),
    (TicketRevokedError, ExitCode.TICKET_REVOKED),
    (TicketError, ExitCode.TICKET_UNKNOWN),
    (AccessDeniedError, ExitCode.TICKET_TOO_WEAK),
)


class Failure(NamedTuple):
    """What the user gets. ``is_bug``: nobody expected it, and a traceback belongs in a report."""

    line: str
    exit_code: int
    is_bug: bool


def failure_of(error: BaseException) -> Failure:
    """Say what an exception means to the user.

    Of a group (trio's nurseries raise them) a bug counts most, else the first error.
    """
    failures = [_failure_of_one(leaf) for leaf in _leaves(error)]
    return next((failure for failure in failures if failure.is_bug), failures[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _failure_of_one(error: BaseException) -> Failure:
    if isinstance(error, StartupError):
        return Failure(str(error), error.exit_code, is_bug=False)
    for kind, exit_code in _EXIT_CODES:
        if isinstance(error, kind):
            return Failure(str(error), exit_code, is_bug=False)
    if isinstance(error, (AspenError, AspenKvError, OSError)):
        return Failure(str(error), ExitCode.FAILURE, is_bug=False)
    return Failure(
        f"internal error ({type(error).__name__}: {error}): please report it, with what it "
        f"prints when ASPENFS_DEBUG=1 is set",
        ExitCode.INTERNAL,
        is_bug=True,
    )
