"""The key codec of format v1: every key below ``fs:<volume>:``. Pure.

Integers are big-endian u64, so that scans are in numeric order. docs/format.md is the normative
text.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from aspenfs.errors import VolumeError
from aspenfs.types import NO_SESSION, Ino, SessionId

VOLUMES_PREFIX = b"fs:"
"""What every key of every volume starts with."""

_U64 = struct.Struct(">Q")
_TWO_U64 = struct.Struct(">QQ")
_VOLUME_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_META_SUFFIX = b".meta"
_SINGLE_KINDS = frozenset("SNR")
_NUMBERED_KINDS = frozenset("IDCXOUML")


def range_end(prefix: bytes) -> bytes:
    """Return the smallest key above every key that starts with ``prefix``.

    ``prefix`` must hold a byte other than 0xFF; every prefix made here does.
    """
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,))


def volume_of_prefix(prefix: bytes) -> str | None:
    """Return the volume whose keys are those below ``prefix``; None if all volumes' are.

    Raises:
        VolumeError: it is the prefix of something else.
    """
    if VOLUMES_PREFIX.startswith(prefix):
        return None
    name = prefix.removeprefix(VOLUMES_PREFIX).removesuffix(b":").decode("ascii", "replace")
    if Keys(name).prefix != prefix:
        raise VolumeError(f"the keys below {prefix!r} are those of no volume")
    return name


class ParsedKey(NamedTuple):
    """What a key is about. Fields that do not apply to its kind are empty.

    ``kind`` is the key's letter, ``I.meta``, or ``O.hold``. ``name`` is a directory entry's or an
    attribute's; for a usage counter it says which: ``b`` bytes, ``i`` inodes. ``holder`` is the
    session of a hold, or whose locks a record holds.
    """

    kind: str
    number: int = 0
    name: bytes = b""
    chunk_index: int = 0
    holder: SessionId = NO_SESSION

    @property
    def ino(self) -> Ino:
        """The inode; of a directory entry, the directory. Not for the kinds U and M."""
        return Ino(self.number)

    @property
    def session(self) -> SessionId:
        """The session, for the kinds U and M."""
        return SessionId(self.number)


class Keys:
    """Makes and parses the keys of one volume.

    Args:
        volume: 1 to 64 of a-z, 0-9, ``.``, ``_`` and ``-``, first a letter or digit.

    Raises:
        VolumeError: the name is not of that form.
    """

    def __init__(self, volume: str) -> None:
        """Check the name and derive the prefixes."""
        if not _VOLUME_NAME.fullmatch(volume):
            raise VolumeError(
                f"volume name {volume!r} is not valid: use 1 to 64 of a-z, 0-9, '.', '_', '-', "
                f"first a letter or digit"
            )
        self.volume = volume
        self.prefix = VOLUMES_PREFIX + volume.encode() + b":"
        self.superblock = self.prefix + b"S"
        self.next_ino = self.prefix + b"N"
        self.directory_moves = self.prefix + b"R"
        self._inode = self.prefix + b"I"
        self._times_key_bytes = len(self._inode) + _U64.size + len(_META_SUFFIX)
        self._dentry = self.prefix + b"D"
        self._chunk = self.prefix + b"C"
        self._xattr = self.prefix + b"X"
        self._orphan = self.prefix + b"O"
        self._usage = self.prefix + b"U"
        self._session = self.prefix + b"M"
        self._lock = self.prefix + b"L"

    def inode(self, ino: Ino) -> bytes:
        """Return the key of the inode record."""
        return self._inode + _U64.pack(ino)

    def times(self, ino: Ino) -> bytes:
        """Return the ``.meta`` companion key: the 32-byte mtime and ctime record."""
        return self._inode + _U64.pack(ino) + _META_SUFFIX

    def inode_of_times(self, key: bytes) -> bytes:
        """Return the inode's key for a ``.meta`` companion key, and any other key as it is."""
        if len(key) == self._times_key_bytes and key.startswith(self._inode):
            return key[: -len(_META_SUFFIX)]
        return key

    def dentry(self, parent: Ino, name: bytes) -> bytes:
        """Return the key of a directory entry."""
        return self._dentry + _U64.pack(parent) + name

    def dentries(self, parent: Ino) -> bytes:
        """Return the prefix of all entries of a directory."""
        return self._dentry + _U64.pack(parent)

    def chunk(self, ino: Ino, chunk_index: int) -> bytes:
        """Return the key of a chunk."""
        return self._chunk + _TWO_U64.pack(ino, chunk_index)

    def chunks(self, ino: Ino) -> bytes:
        """Return the prefix of all chunks of a file."""
        return self._chunk + _U64.pack(ino)

    def xattr(self, ino: Ino, name: bytes) -> bytes:
        """Return the key of an extended attribute."""
        return self._xattr + _U64.pack(ino) + name

    def xattrs(self, ino: Ino) -> bytes:
        """Return the prefix of all extended attributes of an inode."""
        return self._xattr + _U64.pack(ino)

    def orphan(self, ino: Ino) -> bytes:
        """Return the key of an orphan record."""
        return self._orphan + _U64.pack(ino)

    def hold(self, ino: Ino, session: SessionId) -> bytes:
        """Return the key of a session's hold on an orphan; it hangs on the session's lease."""
        return self._orphan + _TWO_U64.pack(ino, session)

    def holds(self, ino: Ino) -> tuple[bytes, bytes]:
        """Return the range of all holds on an orphan; its own record lies before it."""
        orphan = self.orphan(ino)
        return orphan + b"\x00", range_end(orphan)

    def orphans(self) -> bytes:
        """Return the prefix of all orphan records, and of the holds on them."""
        return self._orphan

    def usage_bytes(self, session: SessionId) -> bytes:
        """Return the key of a session's counter of allocated bytes."""
        return self._usage + _U64.pack(session) + b"b"

    def usage_inodes(self, session: SessionId) -> bytes:
        """Return the key of a session's counter of inodes."""
        return self._usage + _U64.pack(session) + b"i"

    def usages(self) -> bytes:
        """Return the prefix of all usage counters."""
        return self._usage

    def session(self, session: SessionId) -> bytes:
        """Return the key of a session record; it is attached to the session's lease."""
        return self._session + _U64.pack(session)

    def sessions(self) -> bytes:
        """Return the prefix of all session records."""
        return self._session

    def locks(self, ino: Ino, session: SessionId) -> bytes:
        """Return the key of a session's locks on an inode; it is attached to its lease."""
        return self._lock + _TWO_U64.pack(ino, session)

    def locks_of_all(self, ino: Ino) -> bytes:
        """Return the prefix of all sessions' locks on an inode."""
        return self._lock + _U64.pack(ino)

    def inodes(self) -> bytes:
        """Return the prefix of all inode and ``.meta`` records."""
        return self._inode

    def parse(self, key: bytes) -> ParsedKey | None:
        """Take a key apart; None if it is not a key of this volume's format."""
        if not key.startswith(self.prefix):
            return None
        kind_at = len(self.prefix)
        kind, rest = key[kind_at : kind_at + 1].decode("latin-1"), key[kind_at + 1 :]
        if kind in _SINGLE_KINDS:
            return None if rest else ParsedKey(kind)
        if kind not in _NUMBERED_KINDS or len(rest) < _U64.size:
            return None
        return _parse_tail(kind, _U64.unpack_from(rest)[0], rest[_U64.size :])


def _parse_tail(kind: str, number: int, tail: bytes) -> ParsedKey | None:
    """Take apart what follows the number of a key of one of _NUMBERED_KINDS."""
    match kind, tail:
        case "I", b".meta":
            return ParsedKey("I.meta", number)
        case "I" | "O" | "M", b"":
            return ParsedKey(kind, number)
        case "D" | "X", bytes() if tail:
            return ParsedKey(kind, number, tail)
        case "U", b"b" | b"i":
            return ParsedKey(kind, number, tail)
        case "C" | "O" | "L", bytes() if len(tail) == _U64.size:
            return _parse_second(kind, number, _U64.unpack(tail)[0])
    return None


def _parse_second(kind: str, number: int, second: int) -> ParsedKey:
    """Return what a key with two numbers is about."""
    if kind == "C":
        return ParsedKey(kind, number, chunk_index=second)
    return ParsedKey("O.hold" if kind == "O" else kind, number, holder=SessionId(second))
