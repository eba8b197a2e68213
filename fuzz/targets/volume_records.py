"""A mount reads what a volume holds, perhaps by another's hand. The first byte chooses a record."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from aspenfs import acl
from aspenfs.errors import (
    CorruptRecordError,
    FilesystemError,
    FormatVersionError,
    VolumeError,
)
from aspenfs.keys import Keys, ParsedKey, volume_of_prefix
from aspenfs.metadata import (
    Dentry,
    Inode,
    Superblock,
    Times,
    decode_counter,
    decode_dentry,
    decode_inode,
    decode_next_ino,
    decode_orphan,
    decode_superblock,
    decode_times,
    encode_dentry,
    encode_inode,
    encode_next_ino,
    encode_orphan,
    encode_superblock,
    encode_times,
)
from aspenfs.types import ROOT_INO, Ino, SessionId

_KEY: Final = b"fs:a:key"
_KEYS: Final = Keys("a")


def _encode_counter(total: int) -> bytes:
    return total.to_bytes(8, "little", signed=True)


class _Record(NamedTuple):
    decode: Callable[[bytes, bytes], object]
    encode: Callable[..., bytes]
    example: object


_FILE: Final = Inode(
    stat.S_IFREG | 0o644, 0, 0, 1, 5, 5, 0, 0, -1, Ino(0), 1, False, None, b"hello"
)
_RECORDS: Final = (
    _Record(decode_times, encode_times, Times(-1, 2**40)),
    _Record(decode_inode, encode_inode, _FILE),
    _Record(decode_inode, encode_inode, _FILE._replace(target=b"where", inline=None)),
    _Record(decode_dentry, encode_dentry, Dentry(ROOT_INO, stat.S_IFDIR >> 12)),
    _Record(decode_superblock, encode_superblock, Superblock(1, bytes(16), 65_536, 0, 1)),
    _Record(decode_orphan, encode_orphan, SessionId(1)),
    _Record(decode_next_ino, encode_next_ino, Ino(2)),
    _Record(decode_counter, _encode_counter, -5),
)
_ACL: Final = (
    acl.Entry(acl.USER_OBJ, 6),
    acl.Entry(acl.USER, 4, 1000),
    acl.Entry(acl.GROUP_OBJ, 4),
    acl.Entry(acl.MASK, 6),
    acl.Entry(acl.OTHER, 0),
)
_KEY_EXAMPLES: Final = (
    _KEYS.superblock,
    _KEYS.inode(Ino(1)),
    _KEYS.times(Ino(1)),
    _KEYS.dentry(Ino(1), b"name"),
    _KEYS.chunk(Ino(2), 3),
    _KEYS.xattr(Ino(2), b"user.a"),
    _KEYS.orphan(Ino(2)),
    _KEYS.usage_bytes(SessionId(1)),
    _KEYS.session(SessionId(1)),
)
_ACL_CHOICE: Final = len(_RECORDS)
_KEY_CHOICE: Final = _ACL_CHOICE + 1
_PREFIX_CHOICE: Final = _KEY_CHOICE + 1

SEEDS: Final = [
    *(bytes((choice,)) + each.encode(each.example) for choice, each in enumerate(_RECORDS)),
    bytes((_ACL_CHOICE,)) + acl.encode(_ACL),
    *(bytes((_KEY_CHOICE,)) + key for key in _KEY_EXAMPLES),
    bytes((_PREFIX_CHOICE,)) + b"fs:a:",
]


def check(data: bytes) -> None:
    """Any bytes are refused by the errors that say so, or are written again as they were."""
    choice, content = data[0] if data else 0, data[1:]
    if choice == _ACL_CHOICE:
        _check_acl(content)
    elif choice == _KEY_CHOICE:
        _check_key(content)
    elif choice == _PREFIX_CHOICE:
        _check_prefix(content)
    else:
        _check_record(_RECORDS[choice % len(_RECORDS)], content)


def _check_record(record: _Record, content: bytes) -> None:
    try:
        found = record.decode(_KEY, content)
    except (CorruptRecordError, FormatVersionError) as error:
        assert error.key == _KEY
        return
    assert record.encode(found) == content


def _check_acl(content: bytes) -> None:
    try:
        found = acl.parse(content)
    except FilesystemError:
        return
    assert acl.parse(acl.encode(found)) == found
    if not found:
        return
    mode = acl.mode_from_acl(found, stat.S_IFREG)
    assert acl.mode_from_acl(acl.chmod(found, mode), stat.S_IFREG) == mode
    access, mode = acl.inherit(found, stat.S_IFREG | 0o777)
    assert access is None or acl.parse(acl.encode(access)) == access
    acl.equivalent_to_mode(found)


def _check_key(key: bytes) -> None:
    found = _KEYS.parse(key)
    assert found is None or _made_again(found) == key


def _made_again(found: ParsedKey) -> bytes:
    """Return the key of which something was parsed."""
    match found.kind:
        case "S" | "N" | "R":
            return _KEYS.prefix + found.kind.encode()
        case "I.meta":
            return _KEYS.times(found.ino)
        case "C":
            return _KEYS.chunk(found.ino, found.chunk_index)
        case kind:
            return _KEYS.prefix + kind.encode() + found.number.to_bytes(8, "big") + found.name


def _check_prefix(prefix: bytes) -> None:
    try:
        volume = volume_of_prefix(prefix)
    except VolumeError:
        return
    assert volume is None or Keys(volume).prefix == prefix
