"""How the rocksdb engine lays out its one key space. Pure.

    ``k`` + key     revision (u64 big-endian) + value; or, with the top bit of the revision set,
                    revision + length (u32) + XXH3 checksum (u64), big-endian, of a large value
                    that lies apart
    ``b`` + key     a large value and nothing else, in a blob file
    ``s`` + name    a server record
    ``r``           the revision of the newest commit (u64 big-endian)
    ``v``           the version of this layout, in ASCII

Large values lie apart because rocksdb's iterators read every blob that they pass, even for keys
only: 50 us for 64 KiB. So scans, checks and range deletes touch small records only, and a large
value is stored and returned without a copy to add or cut a header.

The checksum is ours because rocksdb's own, CRC-32C, is computed without the processor's instruction
for it in the builds of rocksdict: 750 us a MiB where reading takes 110. It also tells a value that
was overwritten since its record was read.
"""

from __future__ import annotations

import struct
from typing import Final

from xxhash import xxh3_64_intdigest

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
_LARGE_RECORD: Final = struct.Struct(">QIQ")


def small_header(revision: int) -> bytes:
    """Return what stands before a small value in its record."""
    return revision.to_bytes(REVISION_BYTES, "big")


def large_record(revision: int, value: bytes) -> bytes:
    """Return the record of a key whose value lies apart."""
    return _LARGE_RECORD.pack(revision | _LARGE_FLAG, len(value), xxh3_64_intdigest(value))


def is_value_of(record: bytes, value: bytes) -> bool:
    """Tell whether a large value is the one that a record was written with."""
    _, length, checksum = _LARGE_RECORD.unpack(record)
    return len(value) == length and bool(xxh3_64_intdigest(value) == checksum)


def is_large(record: bytes) -> bool:
    """Tell whether the value of a record lies apart."""
    return record[0] >= _LARGE_FLAG_BYTE


def value_length(record: bytes) -> int:
    """Return the length of the value of a record, in bytes."""
    if is_large(record):
        length: int = _LARGE_RECORD.unpack(record)[1]
        return length
    return len(record) - REVISION_BYTES


def record_revision(record: bytes) -> int:
    """Return the revision that last wrote a record."""
    return int.from_bytes(record[:REVISION_BYTES], "big") & ~_LARGE_FLAG


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of all keys that start with ``prefix``, whose last byte is below 0xFF."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))
