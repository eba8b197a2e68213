"""Numbers ↔ the typed errors that an answer can carry. Pure; docs/protocol.md lists them.

A number never changes its meaning. The types that are missing here are known to one end only.
"""

from __future__ import annotations

from typing import Final

from aspenkv.errors import (
    AccessDeniedError,
    AspenKvError,
    BusyError,
    ClosedError,
    CommitTooLargeError,
    DataCorruptError,
    DataDirectoryLockedError,
    EngineError,
    InvalidRequestError,
    KeyTooLargeError,
    LeaseNotFoundError,
    LocalProtocolError,
    OutcomeUnknownError,
    ProtocolVersionError,
    RemoteProtocolError,
    StaleSequenceError,
    StorageFullError,
    TicketError,
    TicketExpiredError,
    TicketRevokedError,
    TicketUnknownError,
    TooManyError,
    UnavailableError,
    ValueTooLargeError,
    WatchGapError,
)
from aspenkv.limits import ERROR_MESSAGE_BYTES_MAX

_OUTCOME_UNKNOWN: Final = 1

_CODES: Final[dict[type[AspenKvError], int]] = {
    OutcomeUnknownError: _OUTCOME_UNKNOWN,
    UnavailableError: 2,
    BusyError: 3,
    ClosedError: 4,
    InvalidRequestError: 10,
    KeyTooLargeError: 11,
    ValueTooLargeError: 12,
    CommitTooLargeError: 13,
    LeaseNotFoundError: 20,
    WatchGapError: 21,
    TooManyError: 22,
    StaleSequenceError: 23,
    EngineError: 30,
    StorageFullError: 31,
    DataDirectoryLockedError: 32,
    DataCorruptError: 33,
    AccessDeniedError: 40,
    TicketError: 41,
    TicketUnknownError: 42,
    TicketExpiredError: 43,
    TicketRevokedError: 44,
    RemoteProtocolError: 50,
    ProtocolVersionError: 51,
}

# What the server finds wrong with the client's frame is the fault of the client's own program.
_TYPES: Final[dict[int, type[AspenKvError]]] = {
    code: LocalProtocolError if kind is RemoteProtocolError else kind
    for kind, code in _CODES.items()
}


def code_of(error: AspenKvError) -> int:
    """Return the number of an error's type, or of the nearest type above it that has one.

    All others are sent as OutcomeUnknownError, which promises nothing.
    """
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), _OUTCOME_UNKNOWN)


def error_of(code: int, message: str) -> AspenKvError:
    """Return the error that an answer carries.

    A code that this version does not know becomes an OutcomeUnknownError. That is the one that
    claims least: not that nothing was done, so that nobody does it again on that ground.
    """
    return _TYPES.get(code, OutcomeUnknownError)(message)


def message_of(error: AspenKvError) -> str:
    """Return what an error says, cut to ERROR_MESSAGE_BYTES_MAX bytes of UTF-8."""
    encoded = str(error).encode("utf-8", "backslashreplace")
    return encoded[:ERROR_MESSAGE_BYTES_MAX].decode("utf-8", "ignore")
