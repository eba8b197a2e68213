"""Checks a request against the limits before anything is done. Pure.

Both carriers go through here, so that no engine ever sees a request that breaks the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from aspenkv.contract import (
    NO_LEASE,
    Add,
    Check,
    Copy,
    Delete,
    DeleteRange,
    Op,
    Patch,
    Put,
    RangeEmpty,
    RevisionIs,
)
from aspenkv.errors import (
    CommitTooLargeError,
    InvalidRequestError,
    KeyTooLargeError,
    ValueTooLargeError,
)
from aspenkv.limits import (
    COMMIT_BYTES_MAX,
    COMMIT_CHECKS_MAX,
    COMMIT_OPS_MAX,
    COUNTER_MAX,
    COUNTER_MIN,
    GET_KEYS_MAX,
    KEY_BYTES_MAX,
    LEASE_TTL_S_MAX,
    LEASE_TTL_S_MIN,
    RANGE_BOUND_BYTES_MAX,
    VALUE_BYTES_MAX,
)


class CommitShape(NamedTuple):
    """What the service must know of a valid commit: its bytes, and whether a put names a lease."""

    size_bytes: int
    names_lease: bool


def check_key(key: bytes) -> int:
    """Return the length of a key in bytes.

    Raises:
        KeyTooLargeError: it is empty or longer than KEY_BYTES_MAX.
    """
    size = len(key)
    if not 0 < size <= KEY_BYTES_MAX:
        raise KeyTooLargeError(f"a key of {size} bytes: use 1 to {KEY_BYTES_MAX}")
    return size


def check_keys(keys: Sequence[bytes]) -> None:
    """Check the keys of one get.

    Raises:
        KeyTooLargeError: a key is empty or too long.
        InvalidRequestError: there are more than GET_KEYS_MAX.
    """
    if len(keys) > GET_KEYS_MAX:
        raise InvalidRequestError(f"a get of {len(keys)} keys: use at most {GET_KEYS_MAX}")
    for key in keys:
        if not 0 < len(key) <= KEY_BYTES_MAX:
            check_key(key)


def check_range(start: bytes, end: bytes) -> int:
    """Return the bytes of both bounds of a range, which may be one byte longer than a key.

    Raises:
        KeyTooLargeError: a bound is longer than RANGE_BOUND_BYTES_MAX.
        InvalidRequestError: it ends before it starts.
    """
    if len(start) > RANGE_BOUND_BYTES_MAX or len(end) > RANGE_BOUND_BYTES_MAX:
        raise KeyTooLargeError(
            f"a range bound of {max(len(start), len(end))} bytes: use at most "
            f"{RANGE_BOUND_BYTES_MAX}"
        )
    if start > end:
        raise InvalidRequestError("a range ends before it starts: swap its bounds")
    return len(start) + len(end)


def check_scan(start: bytes, end: bytes, limit: int, continuation: bytes | None) -> None:
    """Check the arguments of a scan.

    Raises:
        KeyTooLargeError: a bound is too long.
        InvalidRequestError: the limit is below 1, or the continuation is of another scan.
    """
    check_range(start, end)
    if limit < 1:
        raise InvalidRequestError(f"a scan with limit {limit}: use 1 or more")
    if continuation is not None and not start <= continuation <= end:
        raise InvalidRequestError("the continuation is of another scan: start that scan anew")


def check_ttl(ttl_s: float) -> None:
    """Check the time to live of a lease, in seconds.

    Raises:
        InvalidRequestError: it is out of bounds, or not a number.
    """
    if not LEASE_TTL_S_MIN <= ttl_s <= LEASE_TTL_S_MAX:
        raise InvalidRequestError(
            f"a lease of {ttl_s} s: use {LEASE_TTL_S_MIN} to {LEASE_TTL_S_MAX}"
        )


def check_commit(checks: Sequence[Check], ops: Sequence[Op]) -> CommitShape:
    """Check a commit, each part in order.

    Raises:
        CommitTooLargeError: too many checks, operations or bytes.
        KeyTooLargeError: a key or bound is empty or too long.
        ValueTooLargeError: a value is, or a patch would make it, too long.
        InvalidRequestError: a part is nonsense.
    """
    if len(checks) > COMMIT_CHECKS_MAX or len(ops) > COMMIT_OPS_MAX:
        raise CommitTooLargeError(
            f"a commit of {len(checks)} checks and {len(ops)} operations: use at most "
            f"{COMMIT_CHECKS_MAX} and {COMMIT_OPS_MAX}"
        )
    size_bytes = 0
    names_lease = False
    for check in checks:
        size_bytes += _checker(_OF_CHECKS, check)(check)
    for op in ops:
        if isinstance(op, Put):  # most operations; worth a branch of its own
            size_bytes += _put_bytes(op)
            if op.lease != NO_LEASE:
                names_lease = True
        else:
            size_bytes += _checker(_OF_OPS, op)(op)
    if size_bytes > COMMIT_BYTES_MAX:
        raise CommitTooLargeError(f"a commit of {size_bytes} bytes: use at most {COMMIT_BYTES_MAX}")
    return CommitShape(size_bytes, names_lease)


def _put_bytes(op: Put) -> int:
    key_bytes, value_bytes = len(op.key), len(op.value)
    if not 0 < key_bytes <= KEY_BYTES_MAX:
        check_key(op.key)
    if value_bytes > VALUE_BYTES_MAX:
        raise ValueTooLargeError(f"a value of {value_bytes} bytes: use at most {VALUE_BYTES_MAX}")
    return key_bytes + value_bytes


def _patch_bytes(op: Patch) -> int:
    size = len(op.data)
    if op.offset < 0 or (op.truncate_to is not None and op.truncate_to < 0):
        raise InvalidRequestError("a patch with a negative offset or length")
    if op.offset + size > VALUE_BYTES_MAX:
        raise ValueTooLargeError(
            f"a patch up to byte {op.offset + size}: use at most {VALUE_BYTES_MAX}"
        )
    return check_key(op.key) + size


def _add_bytes(op: Add) -> int:
    if not COUNTER_MIN <= op.delta <= COUNTER_MAX:
        raise InvalidRequestError(f"a delta of {op.delta} does not fit a 64-bit counter")
    return check_key(op.key)


def _copy_bytes(op: Copy) -> int:
    return check_key(op.key) + check_key(op.source)


def _key_bytes(part: RevisionIs | Delete) -> int:
    return check_key(part.key)


def _range_bytes(part: RangeEmpty | DeleteRange) -> int:
    return check_range(part.start, part.end)


_Checker = Callable[[Any], int]

_OF_CHECKS: Final[dict[type, _Checker]] = {RevisionIs: _key_bytes, RangeEmpty: _range_bytes}

_OF_OPS: Final[dict[type, _Checker]] = {
    Put: _put_bytes,
    Delete: _key_bytes,
    DeleteRange: _range_bytes,
    Patch: _patch_bytes,
    Add: _add_bytes,
    Copy: _copy_bytes,
}


def _checker(kinds: dict[type, _Checker], part: object) -> _Checker:
    checker = kinds.get(type(part))
    if checker is None:
        raise InvalidRequestError(
            f"{type(part).__name__} stands where one of "
            f"{', '.join(kind.__name__ for kind in kinds)} must"
        )
    return checker
