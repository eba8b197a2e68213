"""How the rocksdb engine lays out its one key space. Pure.

    ``k`` + key     revision (u64 big-endian) + value; or, with the top bit of the revision set,
                    revision + length (u32) + XXH3 checksum (u64), big-endian, of a large value
                    that lies apart; then its place, if that is not ``b`` + key
    ``b`` + key     a large value and nothing else, in a blob file
    ``x`` + number  the same, where ``b`` + key was taken by a copy of an older value
    ``c`` + place   how many records use the value there (u32 big-endian), once it was copied
    ``f`` + key     nothing; the key's record names a place
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
UNNAMED: Final = b"x"
USER_COUNT: Final = b"c"
BORROWER: Final = b"f"
SERVER: Final = b"s"
REVISION: Final = b"r"
LAYOUT: Final = b"v"

LAYOUT_VERSION: Final = b"1"
LAYOUT_VERSION_SHARING: Final = b"2"
"""From the first copy of a large value on, so that older programs keep away from it."""
LAYOUT_VERSIONS: Final = frozenset({LAYOUT_VERSION, LAYOUT_VERSION_SHARING})

REVISION_BYTES: Final = 8
USER_COUNT_BYTES: Final = 4
LARGE_VALUE_BYTES_MIN: Final = 8192
"""From this size on a value goes to a blob file."""

_LARGE_FLAG: Final = 1 << 63
_LARGE_FLAG_BYTE: Final = 0x80
_LARGE_RECORD: Final = struct.Struct(">QIQ")
_UNNAMED_PLACE: Final = struct.Struct(">QI")


def small_header(revision: int) -> bytes:
    """Return what stands before a small value in its record."""
    return revision.to_bytes(REVISION_BYTES, "big")


def large_record(revision: int, value: bytes) -> bytes:
    """Return the record of a key whose value lies apart."""
    return _LARGE_RECORD.pack(revision | _LARGE_FLAG, len(value), xxh3_64_intdigest(value))


def copied_record(revision: int, record: bytes) -> bytes:
    """Return the record of a key that gets the large value of another, but for its place."""
    return (revision | _LARGE_FLAG).to_bytes(REVISION_BYTES, "big") + record[
        REVISION_BYTES : _LARGE_RECORD.size
    ]


def place_of(key: bytes, record: bytes) -> bytes:
    """Return where the large value lies that a key's record tells of."""
    return record[_LARGE_RECORD.size :] or LARGE + key


def names_place(record: bytes) -> bool:
    """Tell whether the value of a large record does not lie at its own key's place."""
    return len(record) > _LARGE_RECORD.size


def unnamed_place(revision: int, number: int) -> bytes:
    """Return a place that no key has; ``number`` tells those of one commit apart."""
    return UNNAMED + _UNNAMED_PLACE.pack(revision, number)


def is_value_of(record: bytes, value: bytes) -> bool:
    """Tell whether a large value is the one that a record was written with."""
    _, length, checksum = _LARGE_RECORD.unpack_from(record)
    return len(value) == length and bool(xxh3_64_intdigest(value) == checksum)


def is_large(record: bytes) -> bool:
    """Tell whether the value of a record lies apart."""
    return record[0] >= _LARGE_FLAG_BYTE


def value_length(record: bytes) -> int:
    """Return the length of the value of a record, in bytes."""
    if is_large(record):
        length: int = _LARGE_RECORD.unpack_from(record)[1]
        return length
    return len(record) - REVISION_BYTES


def record_revision(record: bytes) -> int:
    """Return the revision that last wrote a record."""
    return int.from_bytes(record[:REVISION_BYTES], "big") & ~_LARGE_FLAG


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of all keys that start with ``prefix``, whose last byte is below 0xFF."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))
