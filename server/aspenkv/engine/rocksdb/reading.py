"""Reads values whose records are in one key range and whose bytes may lie in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rocksdict import Rdict, ReadOptions, Snapshot

from aspenkv.contract import Versioned
from aspenkv.engine.mutations import check_size
from aspenkv.engine.rocksdb.errors import damaged_value_error
from aspenkv.engine.rocksdb.layout import (
    REVISION_BYTES,
    USER,
    is_large,
    is_value_of,
    place_of,
    record_revision,
    value_length,
)
from aspenkv.limits import READ_ATTEMPTS_MAX


def _large_read_options() -> ReadOptions:
    options = ReadOptions()
    options.set_verify_checksums(False)  # each value is held to the checksum in its record
    return options


_LARGE_READ: Final = _large_read_options()


def read_records(db: Rdict, keys: Sequence[bytes]) -> list[bytes | None]:
    """Return the records of keys, all from one state of the database."""
    records: list[bytes | None] = db.get([USER + key for key in keys])  # type: ignore[assignment]
    return records


def read_large(db: Rdict, place: bytes) -> bytes | None:
    """Return the bytes that lie at a place, which may be newer than a record read before."""
    value: bytes | None = db.get(place, None, _LARGE_READ)
    return value


def read_large_of(snapshot: Snapshot, place: bytes) -> bytes | None:
    """Return the bytes that lie at a place in a snapshot.

    By an iterator: ``snapshot[...]`` takes no options, and has a bare exception for an absent key.
    """
    rows = snapshot.iter(_LARGE_READ)
    rows.seek(place)
    value: bytes | None = rows.value() if rows.valid() and rows.key() == place else None
    return value


def read_values(db: Rdict, keys: Sequence[bytes], bytes_max: int | None) -> list[Versioned | None]:
    """Return values of any size, all from one state of the database, while others may commit.

    Large values are read after their records, one by one. If each is the one that its record tells
    of, all were current when the records were read.

    Raises:
        DataCorruptError: a value is not what was written, and no commit explains it.
        InvalidRequestError: they have more than ``bytes_max`` bytes.
    """
    records = read_records(db, keys)
    for _ in range(READ_ATTEMPTS_MAX):
        check_size(sum(value_length(each) for each in records if each is not None), bytes_max)
        found: list[Versioned | None] = []
        for key, record in zip(keys, records, strict=True):
            if record is None:
                found.append(None)
                continue
            value = _value_of(db, key, record)
            if value is None:
                break
            found.append(Versioned(value, record_revision(record)))
        else:
            return found
        newer = read_records(db, keys)
        if newer == records:
            raise damaged_value_error(db.path(), key)
        records = newer
    raise damaged_value_error(db.path(), keys[0])


def _value_of(db: Rdict, key: bytes, record: bytes) -> bytes | None:
    """Return the value that a record tells of; None if what is stored by now is another one."""
    if not is_large(record):
        return record[REVISION_BYTES:]
    value = read_large(db, place_of(key, record))
    return value if value is not None and is_value_of(record, value) else None
