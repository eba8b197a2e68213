"""Turns rocksdb's collection of blob files on while enough of them is garbage, and off again.

Left on, each compaction would rewrite every live value that it meets in an older blob file, garbage
or not: writing 1 GiB in sequence then took twice the time, and more the larger the store.
"""

from __future__ import annotations

from typing import Final

from rocksdict import Rdict

from aspenkv.limits import BLOB_GARBAGE_LOOK_BYTES

_TOTAL: Final = "rocksdb.total-blob-file-size"
_GARBAGE: Final = "rocksdb.live-blob-file-garbage-size"
_SWITCH: Final = "enable_blob_garbage_collection"

_ON_FROM: Final = 0.3
_OFF_BELOW: Final = 0.1


class BlobGarbage:
    """Watches how much of one database's blob files is garbage."""

    __slots__ = ("_db", "_is_collecting", "_unlooked_bytes")

    def __init__(self, db: Rdict) -> None:
        """Take a database whose collection is off."""
        self._db = db
        self._is_collecting = False
        self._unlooked_bytes = 0

    @property
    def is_due(self) -> bool:
        """Whether enough was written that :meth:`look` is worth its time."""
        return self._unlooked_bytes >= BLOB_GARBAGE_LOOK_BYTES

    def note(self, written_bytes: int) -> None:
        """Count what a commit wrote."""
        self._unlooked_bytes += written_bytes

    def look(self) -> None:
        """Turn the collection on or off. Takes milliseconds where it does: call it in a thread."""
        self._unlooked_bytes = 0
        total = self._db.property_int_value(_TOTAL) or 0
        garbage = self._db.property_int_value(_GARBAGE) or 0
        bound = _OFF_BELOW if self._is_collecting else _ON_FROM
        wanted = garbage > total * bound
        if wanted != self._is_collecting:
            self._is_collecting = wanted
            self._db.set_options({_SWITCH: "true" if wanted else "false"})
