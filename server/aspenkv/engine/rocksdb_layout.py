"""How the rocksdb engine lays out its one key space. Pure.

    ``k`` + key     revision (u64 big-endian) + value; or, with the top bit of the revision set, the
                    revision alone: the value is large and lies under ``b`` + key
    ``b`` + key     a large value and nothing else, in a blob file
    ``s`` + name    a server record
    ``r``           the revision of the newest commit (u64 big-endian)
    ``v``           the version of this layout, in ASCII

Large values lie apart because rocksdb's iterators read every blob that they pass, even for keys only:
50 us for 64 KiB. So scans, checks and range deletes touch small records only, and a large value is
stored and returned without a copy to add or cut a header.
"""

from __future__ import annotations

from typing import Final

USER: Final = b"k"
LARGE: Final = b"b"
SERVER: Final = b"s"
REVISION: Final = b"r"
LAYOUT: Final = b"v"

LAYOUT_VERSION: Final = b"1"

REVISION_BYTES: Final = 8
LARGE_VALUE_BYTES_MIN: Final = 8192
"""From this size on a value goes to a blob file."""

_LARGE_FLAG: Final = 1 << 63
_LARGE_FLAG_BYTE: Final = 0x80


def small_header(revision: int) -> bytes:
    """Return what stands before a value in its record."""
    return revision.to_bytes(REVISION_BYTES, "big")


def large_record(revision: int) -> bytes:
    """Return the record of a key whose value lies apart."""
    return (revision | _LARGE_FLAG).to_bytes(REVISION_BYTES, "big")


def is_large(record: bytes) -> bool:
    """Tell whether the value of a record lies apart."""
    return record[0] >= _LARGE_FLAG_BYTE


def record_revision(record: bytes) -> int:
    """Return the revision that last wrote a record."""
    return int.from_bytes(record[:REVISION_BYTES], "big") & ~_LARGE_FLAG


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of all keys that start with ``prefix``, which ends below 0xFF."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))
