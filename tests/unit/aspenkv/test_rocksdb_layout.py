"""The records of the rocksdb engine, byte for byte."""

from __future__ import annotations

from aspenkv.engine.rocksdb import layout


def test_a_small_record_is_revision_and_value() -> None:
    record = layout.small_header(0x0102) + b"value"
    assert record == bytes.fromhex("0000000000000102") + b"value"
    assert not layout.is_large(record)
    assert layout.record_revision(record) == 0x0102
    assert layout.value_length(record) == 5


def test_a_large_record_is_flagged_revision_length_and_checksum() -> None:
    value = bytes(65536)
    record = layout.large_record(0x0102, value)
    assert record == bytes.fromhex("8000000000000102 00010000 33b202d302b65caa")
    assert layout.is_value_of(record, value)
    assert not layout.is_value_of(record, value[1:])
    assert not layout.is_value_of(record, b"\x01" + value[1:])
    assert layout.is_large(record)
    assert layout.record_revision(record) == 0x0102
    assert layout.value_length(record) == 65536


def test_prefix_end_is_above_every_key_with_the_prefix() -> None:
    assert layout.prefix_end(b"sL") == b"sM"
    assert layout.prefix_end(b"sL") > b"sL" + b"\xff" * 100


def test_a_copied_record_has_a_revision_of_its_own_and_names_the_place() -> None:
    record = layout.large_record(0x0102, bytes(65536))
    assert layout.place_of(b"key", record) == b"bkey"
    assert not layout.names_place(record)
    copied = layout.copied_record(0x0103, record) + b"bkey"
    assert copied == bytes.fromhex("8000000000000103 00010000 33b202d302b65caa") + b"bkey"
    assert layout.place_of(b"other", copied) == b"bkey"
    assert layout.names_place(copied)
    assert layout.record_revision(copied) == 0x0103
    assert layout.is_value_of(copied, bytes(65536))
    assert layout.copied_record(0x0104, copied) == layout.large_record(0x0104, bytes(65536))


def test_places_that_are_no_keys() -> None:
    assert layout.unnamed_place(0x0102, 3) == b"x" + bytes.fromhex("0000000000000102 00000003")
