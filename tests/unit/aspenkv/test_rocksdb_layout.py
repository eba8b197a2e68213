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
