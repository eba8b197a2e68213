"""What operations do to a value, and bounds on values themselves: for all engines. Pure."""

from __future__ import annotations

import struct
from typing import Final

from aspenkv.contract import Patch
from aspenkv.errors import CommitTooLargeError, InvalidRequestError
from aspenkv.limits import COMMIT_COPIED_BYTES_MAX, COUNTER_MAX, COUNTER_MIN

_COUNTER: Final = struct.Struct("<q")


def check_size(size_bytes: int, bytes_max: int | None) -> None:
    """Check that what a get would return is not more than was asked for.

    Raises:
        InvalidRequestError: it is.
    """
    if bytes_max is not None and size_bytes > bytes_max:
        raise InvalidRequestError(
            f"{size_bytes} bytes of values in one get, and {bytes_max} are the most: ask for fewer"
        )


def check_copied(size_bytes: int) -> None:
    """Check how much the copies of one commit take together.

    Raises:
        CommitTooLargeError: more than COMMIT_COPIED_BYTES_MAX.
    """
    if size_bytes > COMMIT_COPIED_BYTES_MAX:
        raise CommitTooLargeError(
            f"copies of {size_bytes} bytes in one commit: use at most {COMMIT_COPIED_BYTES_MAX}"
        )


def patched(value: bytes, patch: Patch) -> bytes:
    """Return ``value`` with the patch applied, in at most one copy.

    Data replaces what lies under it, behind a gap of zeros if the value is shorter than the offset;
    no data, no gap. The result is then cut to ``truncate_to`` bytes.
    """
    offset, data, cut = patch.offset, patch.data, patch.truncate_to
    size = len(data)
    if not size:
        return value if cut is None else value[:cut]
    if not offset and size >= len(value):
        return bytes(data) if cut is None else bytes(data[:cut])
    old = memoryview(value)
    gap = bytes(offset - len(value)) if offset > len(value) else b""
    new = b"".join((old[:offset], gap, data, old[offset + size :]))
    return new if cut is None else new[:cut]


def added(key: bytes, value: bytes | None, delta: int) -> bytes:
    """Return the counter ``value`` (little-endian i64, None counts as 0) plus ``delta``.

    Raises:
        InvalidRequestError: the value is no counter, or the sum does not fit one.
    """
    if value is None:
        return _COUNTER.pack(delta)
    if len(value) != _COUNTER.size:
        raise InvalidRequestError(f"add to {key!r}: its {len(value)} bytes are not a counter of 8")
    total = _COUNTER.unpack(value)[0] + delta
    if not COUNTER_MIN <= total <= COUNTER_MAX:
        raise InvalidRequestError(f"add to {key!r}: the sum does not fit a 64-bit counter")
    return _COUNTER.pack(total)
