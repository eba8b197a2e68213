from __future__ import annotations

import errno

import pytest

from aspenfs import errors
from aspenkv import errors as kv_errors


def test_a_filesystem_error_names_its_errno() -> None:
    error = errors.FilesystemError(errno.ENOENT, "no such name")
    assert error.errno == errno.ENOENT
    assert str(error) == "ENOENT: no such name"
    assert str(errors.FilesystemError(errno.EPERM)) == "EPERM"
    assert str(errors.FilesystemError(9999, "odd")) == "9999: odd"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.FilesystemError(errno.ENOTEMPTY), errno.ENOTEMPTY),
        (errors.ConflictError(), errno.EBUSY),
        (kv_errors.UnavailableError(), errno.ETIMEDOUT),
        (kv_errors.OutcomeUnknownError(), errno.EIO),
        (kv_errors.BusyError(), errno.EAGAIN),
        (kv_errors.AccessDeniedError(), errno.EROFS),
        (kv_errors.TicketError(), errno.EACCES),
        (kv_errors.ServerKeyError(), errno.EACCES),
        (kv_errors.RemoteProtocolError(), errno.EIO),
        (errors.LeaseLostError(), errno.EIO),
        (errors.CorruptRecordError(b"k", "short"), errno.EIO),
        (errors.FormatVersionError(b"k", 2, 1), errno.EIO),
        (errors.UnknownFeaturesError(b"k", 4), errno.EIO),
        (kv_errors.ClosedError(), errno.EIO),
        (kv_errors.TooManyError(), errno.EBUSY),
        (kv_errors.LeaseNotFoundError(), errno.EIO),
        (kv_errors.EngineError(), errno.EIO),
        (kv_errors.DataCorruptError(), errno.EIO),
    ],
)
def test_every_expected_error_has_an_errno(error: Exception, expected: int) -> None:
    assert errors.errno_of(error) == expected


@pytest.mark.parametrize(
    "error", [ValueError(), kv_errors.CommitTooLargeError(), errors.StartupError("x")]
)
def test_a_bug_has_no_errno(error: Exception) -> None:
    assert errors.errno_of(error) is None


def test_messages_name_the_key_and_the_cure() -> None:
    corrupt = errors.CorruptRecordError(b"fs:v:S", "it is empty")
    assert corrupt.key == b"fs:v:S"
    assert "b'fs:v:S'" in str(corrupt)
    assert "backup" in str(corrupt)
    newer = errors.FormatVersionError(b"fs:v:S", 7, 1)
    assert newer.key == b"fs:v:S"
    assert "7" in str(newer)
    assert "upgrade" in str(newer)
    unknown = errors.UnknownFeaturesError(b"fs:v:S", 0x10)
    assert unknown.key == b"fs:v:S"
    assert "0x10" in str(unknown)
    assert "upgrade" in str(unknown)
    assert isinstance(unknown, errors.FormatVersionError)


def test_a_startup_error_has_an_exit_code() -> None:
    assert errors.StartupError("no /dev/fuse").exit_code == 1
    assert errors.StartupError("no /dev/fuse", 3).exit_code == 3
