"""When rocksdb is told to collect its blob files, and when to stop."""

from __future__ import annotations

from aspenkv.engine.rocksdb.blob_garbage import BlobGarbage
from aspenkv.limits import BLOB_GARBAGE_LOOK_BYTES


class Database:
    """Stands in for a database with 1,000 bytes in blob files."""

    def __init__(self) -> None:
        self.garbage = 0
        self.switched: list[str] = []

    def property_int_value(self, name: str) -> int | None:
        return self.garbage if name.endswith("garbage-size") else 1000

    def set_options(self, options: dict[str, str]) -> None:
        (switch,) = options.values()
        self.switched.append(switch)


def test_collection_goes_on_with_much_garbage_and_off_with_little() -> None:
    database = Database()
    garbage = BlobGarbage(database)  # type: ignore[arg-type]
    for database.garbage in (0, 300, 301, 900, 101, 100, 300, 301):
        garbage.look()
    assert database.switched == ["true", "false", "true"]


def test_garbage_is_looked_for_after_much_was_written() -> None:
    garbage = BlobGarbage(Database())  # type: ignore[arg-type]
    due: list[bool] = []
    garbage.note(BLOB_GARBAGE_LOOK_BYTES - 1)
    due.append(garbage.is_due)
    garbage.note(1)
    due.append(garbage.is_due)
    garbage.look()
    due.append(garbage.is_due)
    assert due == [False, True, False]
