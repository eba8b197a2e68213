from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenfs.errors import CorruptRecordError, FormatVersionError
from aspenfs.limits import LOCK_ENTRIES_MAX
from aspenfs.lock_records import (
    OFFSET_MAX,
    RECORD_BYTES_MAX,
    FileLock,
    LockOwner,
    LockRecord,
    LockWaiter,
    decode_locks,
    encode_locks,
)
from aspenfs.types import SessionId
from aspenkv.limits import COMMIT_BYTES_MAX

SESSION = SessionId(7)
LOCK = FileLock(LockOwner(SESSION, False, 8), True, 1, 2, 3)
OFFSETS = st.integers(0, OFFSET_MAX)


@st.composite
def locks(draw: st.DrawFn) -> FileLock:
    start, end = sorted(draw(st.tuples(OFFSETS, OFFSETS)))
    owner = LockOwner(SESSION, draw(st.booleans()), draw(st.integers(0, 2**64 - 1)))
    return FileLock(owner, draw(st.booleans()), start, end, draw(st.integers(0, 2**32 - 1)))


@given(
    held=st.lists(locks(), max_size=5),
    waiters=st.lists(st.builds(LockWaiter, locks(), st.integers(1, 2**64 - 1)), max_size=5),
)
def test_a_record_is_read_as_it_was_written(
    held: list[FileLock], waiters: list[LockWaiter]
) -> None:
    value = encode_locks(held, waiters)
    assert decode_locks(b"key", value, SESSION) == LockRecord(tuple(held), tuple(waiters))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x00",
        b"\x01" + bytes(36),
        encode_locks([LOCK])[:-1],
        encode_locks([LOCK._replace(start=3)]),
        encode_locks([LOCK._replace(end=2**63)]),
        b"\x01\x04" + encode_locks([LOCK])[2:],
    ],
)
def test_what_is_no_record_is_refused(value: bytes) -> None:
    with pytest.raises(CorruptRecordError, match="damaged record at key b'key'"):
        decode_locks(b"key", value, SESSION)


def test_a_record_of_a_newer_version_is_refused() -> None:
    with pytest.raises(FormatVersionError):
        decode_locks(b"key", b"\x02", SESSION)


@given(st.binary(max_size=120))
def test_any_bytes_are_read_or_refused(value: bytes) -> None:
    with contextlib.suppress(CorruptRecordError, FormatVersionError):
        decode_locks(b"key", value, SESSION)


def test_the_largest_record_fits_a_commit() -> None:
    assert len(encode_locks([LOCK] * LOCK_ENTRIES_MAX)) == RECORD_BYTES_MAX < COMMIT_BYTES_MAX // 2
