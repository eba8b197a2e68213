"""Typed errors of the key-value contract. Pure: no I/O, no other module of the package."""


class AspenKvError(Exception):
    """Base of all errors that a key-value call raises on purpose."""


class InvalidRequestError(AspenKvError):
    """The request breaks the contract: too large, too many parts, or nonsense. Nothing was done."""


class KeyTooLargeError(InvalidRequestError):
    """A key is empty or longer than ``KEY_BYTES_MAX``."""


class ValueTooLargeError(InvalidRequestError):
    """A value is, or a patch would make it, longer than ``VALUE_BYTES_MAX``."""


class CommitTooLargeError(InvalidRequestError):
    """A commit has more checks, operations or bytes than the limits allow."""


class LeaseNotFoundError(AspenKvError):
    """The lease lapsed, was revoked, or never was."""


class WatchGapError(AspenKvError):
    """The watch cannot go on without a gap: history is gone, or the watcher fell too far behind."""


class TooManyError(AspenKvError):
    """A named limit of the server is reached: watches, leases."""


class EngineError(AspenKvError):
    """The storage under the engine failed; the message says what and the cure."""


class StorageFullError(EngineError):
    """No space is left for the engine's files."""


class DataDirectoryLockedError(EngineError):
    """Another process holds the data directory."""


class DataCorruptError(EngineError):
    """The stored data cannot be read back as what was written."""


class ClosedError(AspenKvError):
    """The engine or service was closed before or during the call. Nothing was sent."""


class UnavailableError(AspenKvError):
    """No server could be reached in time. Nothing was done."""


class ConnectionLostError(AspenKvError):
    """The connection broke during a call, which may have been carried out.

    Never leaves the carrier: it tries again, or says what became of the call.
    """


class OutcomeUnknownError(AspenKvError):
    """A commit was sent and no answer came: it may have been applied, or may still be."""


class StaleSequenceError(AspenKvError):
    """A commit came after a newer one had taken its slot. This call did nothing.

    Its client gave it up before, and whether it was carried out then is not remembered.
    """


class BusyError(AspenKvError):
    """The server has too much to do. Nothing was done; try again later."""


class AccessDeniedError(AspenKvError):
    """The ticket does not give the right to do this. Nothing was done."""


class TicketError(AspenKvError):
    """The server does not accept the ticket; the message says why."""


class TicketUnknownError(TicketError):
    """The server never made the ticket, or its secret is another."""


class TicketExpiredError(TicketError):
    """The time for which the ticket was made is over."""


class TicketRevokedError(TicketError):
    """An administrator took the ticket back."""


class TicketDamagedError(TicketError):
    """The text is no ticket, or not all of one."""


class ServerKeyError(AspenKvError):
    """Who answers is not the server that the ticket names."""


class ProtocolError(AspenKvError):
    """Base of breaches of the protocol."""


class LocalProtocolError(ProtocolError):
    """This end tried what the protocol does not allow: a bug of ours."""


class RemoteProtocolError(ProtocolError):
    """The other end sent what the protocol does not allow."""


class ProtocolVersionError(ProtocolError):
    """The other end does not speak our version of the protocol."""
