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
