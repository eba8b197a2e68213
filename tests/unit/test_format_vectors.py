"""The worked examples of docs/format.md: each is decoded, and encoded again, to the byte."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest

from aspenfs import metadata
from aspenfs.fsck.report import ProblemKind
from aspenfs.keys import Keys, ParsedKey
from aspenfs.lock_records import (
    FileLock,
    LockOwner,
    LockRecord,
    LockWaiter,
    decode_locks,
    encode_locks,
)
from aspenfs.metadata import Dentry, Inode, Superblock, Times
from aspenfs.types import SessionId

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
KEYS = Keys("default")


@dataclass(frozen=True)
class Vector:
    """One example: the bytes, and what the text says that they mean."""

    kind: str
    key: bytes
    key_fields: dict[str, Any]
    value: bytes
    value_fields: dict[str, Any]


def unhex(text: str) -> bytes:
    return bytes.fromhex(re.sub(r"#.*", "", text))


def fields_of(table: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a table, those that are bytes as bytes."""
    fields = {}
    for name, field in table.items():
        if name.endswith("_hex"):
            fields[name.removesuffix("_hex")] = unhex(field)
        elif name != "hex":
            fields[name] = field.encode() if isinstance(field, str) else field
    return fields


def vectors() -> list[Vector]:
    blocks = re.findall(r"^```toml\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    tables = [tomllib.loads(block) for block in blocks]
    return [
        Vector(
            table["kind"],
            unhex(table["key"]["hex"]),
            fields_of(table["key"]),
            unhex(table["value"]["hex"]),
            fields_of(table["value"]),
        )
        for table in tables
    ]


VECTORS = vectors()

# How each kind's key is made and parsed: the method or attribute of Keys, and the parsed kind.
KEY_KINDS: dict[str, tuple[Any, str]] = {
    "superblock": (KEYS.superblock, "S"),
    "next_ino": (KEYS.next_ino, "N"),
    "directory_moves": (KEYS.directory_moves, "R"),
    "inode": (KEYS.inode, "I"),
    "times": (KEYS.times, "I.meta"),
    "dentry": (KEYS.dentry, "D"),
    "chunk": (KEYS.chunk, "C"),
    "xattr": (KEYS.xattr, "X"),
    "orphan": (KEYS.orphan, "O"),
    "hold": (KEYS.hold, "O.hold"),
    "usage_bytes": (KEYS.usage_bytes, "U"),
    "usage_inodes": (KEYS.usage_inodes, "U"),
    "session": (KEYS.session, "M"),
    "locks": (KEYS.locks, "L"),
}


def as_is(_key: bytes, value: bytes) -> bytes:
    return value


def encode_counter(total: int) -> bytes:
    """Return what an Add operation makes of an absent key."""
    return total.to_bytes(8, "little", signed=True)


def decode_session(_key: bytes, value: bytes) -> bytes:
    host: str = msgpack.unpackb(value)["host"]
    return host.encode()


def encode_session(host: bytes) -> bytes:
    packed: bytes = msgpack.packb({"host": host.decode()})
    return packed


LOCKING_SESSION = SessionId(0x1122_3344_5566_7788)


def lock(is_write: bool, is_flock: bool, number: int, start: int, end: int, pid: int) -> FileLock:
    return FileLock(LockOwner(LOCKING_SESSION, is_flock, number), is_write, start, end, pid)


def whole_locks(held: list[list[Any]], waiters: list[list[Any]]) -> LockRecord:
    return LockRecord(
        tuple(lock(*fields) for fields in held),
        tuple(LockWaiter(lock(*fields), ticket) for *fields, ticket in waiters),
    )


def decode_session_locks(key: bytes, value: bytes) -> LockRecord:
    return decode_locks(key, value, LOCKING_SESSION)


def encode_lock_record(record: LockRecord) -> bytes:
    return encode_locks(record.held, record.waiters)


def whole_inode(**fields: Any) -> Inode:
    return Inode(**{"target": None, "inline": None, **fields})


def only_field(**fields: Any) -> Any:
    (field,) = fields.values()
    return field


# By kind: what the value's fields make, and how that is decoded and encoded.
CODECS: dict[str, tuple[Callable[..., Any], Callable[[bytes, bytes], Any], Callable[[Any], bytes]]]
CODECS = {
    "superblock": (Superblock, metadata.decode_superblock, metadata.encode_superblock),
    "inode": (whole_inode, metadata.decode_inode, metadata.encode_inode),
    "times": (Times, metadata.decode_times, metadata.encode_times),
    "dentry": (Dentry, metadata.decode_dentry, metadata.encode_dentry),
    "orphan": (only_field, metadata.decode_orphan, metadata.encode_orphan),
    "next_ino": (only_field, metadata.decode_next_ino, metadata.encode_next_ino),
    "usage_bytes": (only_field, metadata.decode_counter, encode_counter),
    "usage_inodes": (only_field, metadata.decode_counter, encode_counter),
    "session": (only_field, decode_session, encode_session),
    "chunk": (only_field, as_is, bytes),
    "xattr": (only_field, as_is, bytes),
    "locks": (whole_locks, decode_session_locks, encode_lock_record),
    "directory_moves": (only_field, as_is, bytes),
    "hold": (only_field, as_is, bytes),
}


def named(vector: Vector) -> str:
    return f"{vector.kind}-{vector.key.hex()}"


@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_the_key_is_made_and_parsed_as_documented(vector: Vector) -> None:
    made, parsed_kind = KEY_KINDS[vector.kind]
    assert (made(**vector.key_fields) if callable(made) else made) == vector.key
    parsed = KEYS.parse(vector.key)
    parts = list(vector.key_fields.values())
    number = parts[0] if parts else 0
    name = vector.key_fields.get("name", b"")
    if vector.kind.startswith("usage_"):
        name = vector.key[-1:]
    chunk_index = vector.key_fields.get("chunk_index", 0)
    has_holder = vector.kind in {"hold", "locks"}
    holder = SessionId(vector.key_fields["session"] if has_holder else 0)
    assert parsed == ParsedKey(parsed_kind, number, name, chunk_index, holder)


@pytest.mark.parametrize("vector", VECTORS, ids=named)
def test_the_value_is_decoded_and_encoded_as_documented(vector: Vector) -> None:
    make, decode, encode = CODECS[vector.kind]
    record = make(**vector.value_fields)
    assert decode(vector.key, vector.value) == record
    assert encode(record) == vector.value


def test_the_sizes_of_the_fields_add_up_to_the_record() -> None:
    for heading, kind in (("Superblock", "superblock"), ("Inode", "inode")):
        section = DOCUMENT.partition(f"## {heading}\n")[2]
        table = section.partition("```")[0]
        sizes = [int(size) for size in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
        without_tail = min(len(vector.value) for vector in VECTORS if vector.kind == kind)
        assert sum(sizes) == without_tail


def test_every_kind_of_key_has_an_example() -> None:
    assert {vector.kind for vector in VECTORS} == set(KEY_KINDS)


def test_the_document_states_the_rule_of_every_problem_that_fsck_finds() -> None:
    invariants = DOCUMENT.partition("## Invariants")[2]
    stated = set(re.findall(r"\[`([a-z-]+)`\]", invariants))
    assert stated == {kind.value for kind in ProblemKind}
