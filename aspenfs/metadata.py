"""The stored records of format v1 and their bytes. Pure.

docs/format.md is the normative text, with a worked example per record that the tests read. Every
decoder takes the key too, so that its error can name it.
"""

from __future__ import annotations

import stat
import struct
from typing import Final, NamedTuple

from aspenfs.errors import CorruptRecordError, FormatVersionError, UnknownFeaturesError
from aspenfs.types import ROOT_INO, Ino, SessionId
from aspenkv.limits import VALUE_BYTES_MAX

FORMAT_VERSION: Final = 1
FEATURES_KNOWN: Final = 0  # the bits of Superblock.features that this version understands
NS_PER_S: Final = 1_000_000_000

_I64_MIN: Final = -(2**63)
_I64_MAX: Final = 2**63 - 1


class Times(NamedTuple):
    """mtime and ctime in nanoseconds since the epoch; negative before 1970."""

    mtime_ns: int
    ctime_ns: int


class Inode(NamedTuple):
    """The inode record. mtime and ctime live apart from it, in :class:`Times`.

    ``allocated_bytes`` counts each present chunk up to the end of the file, and inline data;
    st_blocks is derived from it. ``parent`` is set for directories only. ``inline`` is the whole
    content of a small regular file, or None when the content is in chunks; ``target`` is a
    symlink's. Without ``has_xattrs`` the inode has no extended attribute for certain, with it it
    may have some: so the kernel's question for security.capability before every write costs no
    read.
    """

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    allocated_bytes: int
    rdev: int
    atime_ns: int
    btime_ns: int
    parent: Ino
    generation: int
    has_xattrs: bool
    target: bytes | None
    inline: bytes | None

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether this is a regular file."""
        return stat.S_ISREG(self.mode)


class Dentry(NamedTuple):
    """A directory entry's value; ``file_type`` is the S_IFMT part of the mode, as in readdir(3)."""

    ino: Ino
    file_type: int


class Superblock(NamedTuple):
    """What holds for the whole volume. ``features`` is a bit set, 0 in this version."""

    format_version: int
    uuid: bytes
    chunk_bytes: int
    features: int
    created_ns: int


# mtime s, mtime ns, ctime s, ctime ns
_TIMES = struct.Struct("<qqqq")
# record version, flags and tail kind, mode, uid, gid, nlink, size, allocated bytes, rdev,
# atime s, atime ns, btime s, btime ns, parent, generation
_INODE = struct.Struct("<BBIIIIQQQqIqIQI")
_DENTRY = struct.Struct("<QB")
# format version, uuid, chunk bytes, features, created s, created ns
_SUPERBLOCK = struct.Struct("<I16sIQqI")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")

_RECORD_VERSION: Final = 1
_TAIL_NONE: Final = 0
_TAIL_TARGET: Final = 1
_TAIL_INLINE: Final = 2
_TAIL_MASK: Final = 0x03
_HAS_XATTRS: Final = 0x04

_TIMES_NS_MIN: Final = _I64_MIN * NS_PER_S
_TIMES_NS_MAX: Final = _I64_MAX * NS_PER_S + NS_PER_S - 1


def encode_times(times: Times) -> bytes:
    """Return the 32-byte ``.meta`` record: little-endian i64 x 4, seconds and nanoseconds each.

    Nanoseconds are 0 to 999,999,999 also before 1970, as in struct timespec.
    """
    mtime_s, mtime_ns = divmod(times.mtime_ns, NS_PER_S)
    ctime_s, ctime_ns = divmod(times.ctime_ns, NS_PER_S)
    return _TIMES.pack(mtime_s, mtime_ns, ctime_s, ctime_ns)


def decode_times(key: bytes, value: bytes) -> Times:
    """Read a ``.meta`` record.

    Raises:
        CorruptRecordError: it is not 32 bytes, or a nanosecond field is out of range.
    """
    _require_size(key, value, _TIMES.size)
    mtime_s, mtime_ns, ctime_s, ctime_ns = _TIMES.unpack(value)
    if not (0 <= mtime_ns < NS_PER_S and 0 <= ctime_ns < NS_PER_S):
        raise CorruptRecordError(key, "nanoseconds out of range")
    return Times(mtime_s * NS_PER_S + mtime_ns, ctime_s * NS_PER_S + ctime_ns)


def encode_inode(inode: Inode) -> bytes:
    """Return the bytes of an inode record."""
    if inode.inline is not None:
        tail_kind, tail = _TAIL_INLINE, inode.inline
    elif inode.target is not None:
        tail_kind, tail = _TAIL_TARGET, inode.target
    else:
        tail_kind, tail = _TAIL_NONE, b""
    atime_s, atime_ns = divmod(inode.atime_ns, NS_PER_S)
    btime_s, btime_ns = divmod(inode.btime_ns, NS_PER_S)
    return (
        _INODE.pack(
            _RECORD_VERSION,
            tail_kind | _HAS_XATTRS if inode.has_xattrs else tail_kind,
            inode.mode,
            inode.uid,
            inode.gid,
            inode.nlink,
            inode.size,
            inode.allocated_bytes,
            inode.rdev,
            atime_s,
            atime_ns,
            btime_s,
            btime_ns,
            inode.parent,
            inode.generation,
        )
        + tail
    )


def decode_inode(key: bytes, value: bytes) -> Inode:
    """Read an inode record.

    Raises:
        FormatVersionError: a newer aspenfs wrote it.
        CorruptRecordError: it is short, its tail does not fit its size, or a field is out of
            range. Whether the fields fit each other is for fsck to say.
    """
    if not value:
        raise CorruptRecordError(key, "it is empty")
    if value[0] > _RECORD_VERSION:
        raise FormatVersionError(key, value[0], _RECORD_VERSION)
    if len(value) < _INODE.size:
        raise CorruptRecordError(key, f"{len(value)} bytes where at least {_INODE.size} are due")
    (
        version,
        flags,
        mode,
        uid,
        gid,
        nlink,
        size,
        allocated_bytes,
        rdev,
        atime_s,
        atime_ns,
        btime_s,
        btime_ns,
        parent,
        generation,
    ) = _INODE.unpack_from(value)
    tail = value[_INODE.size :]
    tail_kind = flags & _TAIL_MASK
    if version != _RECORD_VERSION:
        raise CorruptRecordError(key, f"record version {version}")
    if tail_kind > _TAIL_INLINE or flags & ~(_TAIL_MASK | _HAS_XATTRS):
        raise CorruptRecordError(key, f"unknown flags {flags:#04x}")
    if len(tail) != (0 if tail_kind == _TAIL_NONE else size):
        raise CorruptRecordError(key, f"a tail of {len(tail)} bytes does not fit size {size}")
    if atime_ns >= NS_PER_S or btime_ns >= NS_PER_S:
        raise CorruptRecordError(key, "nanoseconds out of range")
    return Inode(
        mode,
        uid,
        gid,
        nlink,
        size,
        allocated_bytes,
        rdev,
        atime_s * NS_PER_S + atime_ns,
        btime_s * NS_PER_S + btime_ns,
        Ino(parent),
        generation,
        bool(flags & _HAS_XATTRS),
        tail if tail_kind == _TAIL_TARGET else None,
        tail if tail_kind == _TAIL_INLINE else None,
    )


def encode_dentry(dentry: Dentry) -> bytes:
    """Return the bytes of a directory entry."""
    return _DENTRY.pack(dentry.ino, dentry.file_type)


def decode_dentry(key: bytes, value: bytes) -> Dentry:
    """Read a directory entry.

    Raises:
        CorruptRecordError: it is not 9 bytes, or names inode 0.
    """
    _require_size(key, value, _DENTRY.size)
    ino, file_type = _DENTRY.unpack(value)
    if ino == 0:
        raise CorruptRecordError(key, "it names inode 0")
    return Dentry(Ino(ino), file_type)


def encode_superblock(superblock: Superblock) -> bytes:
    """Return the bytes of the superblock."""
    created_s, created_ns = divmod(superblock.created_ns, NS_PER_S)
    return _SUPERBLOCK.pack(
        superblock.format_version,
        superblock.uuid,
        superblock.chunk_bytes,
        superblock.features,
        created_s,
        created_ns,
    )


def decode_superblock(key: bytes, value: bytes) -> Superblock:
    """Read the superblock.

    Raises:
        FormatVersionError: a newer aspenfs made the volume, or it uses features unknown here.
        CorruptRecordError: it is short or makes no sense.
    """
    if len(value) >= _U32.size:
        (version,) = _U32.unpack_from(value)  # stands first in every version, whatever follows
        if version > FORMAT_VERSION:
            raise FormatVersionError(key, version, FORMAT_VERSION)
    _require_size(key, value, _SUPERBLOCK.size)
    version, uuid, chunk_bytes, features, created_s, created_ns = _SUPERBLOCK.unpack(value)
    if version != FORMAT_VERSION:
        raise CorruptRecordError(key, f"format version {version}")
    if features & ~FEATURES_KNOWN:
        raise UnknownFeaturesError(key, features & ~FEATURES_KNOWN)
    if not 0 < chunk_bytes <= VALUE_BYTES_MAX:
        raise CorruptRecordError(key, f"chunk size {chunk_bytes}")
    if created_ns >= NS_PER_S:
        raise CorruptRecordError(key, "nanoseconds out of range")
    return Superblock(version, uuid, chunk_bytes, features, created_s * NS_PER_S + created_ns)


def encode_orphan(session: SessionId) -> bytes:
    """Return the bytes of an orphan record: which session had the inode open; 0 if none."""
    return _U64.pack(session)


def decode_orphan(key: bytes, value: bytes) -> SessionId:
    """Read an orphan record.

    Raises:
        CorruptRecordError: it is not 8 bytes.
    """
    _require_size(key, value, _U64.size)
    return SessionId(_U64.unpack(value)[0])


def encode_next_ino(ino: Ino) -> bytes:
    """Return the bytes of the next-inode record."""
    return _U64.pack(ino)


def decode_next_ino(key: bytes, value: bytes) -> Ino:
    """Read the next-inode record.

    Raises:
        CorruptRecordError: it is not 8 bytes, or not above the root's number.
    """
    _require_size(key, value, _U64.size)
    ino = Ino(_U64.unpack(value)[0])
    if ino <= ROOT_INO:
        raise CorruptRecordError(key, f"next inode {ino} would be the root's")
    return ino


def decode_counter(key: bytes, value: bytes) -> int:
    """Read a usage counter, which only ``Add`` operations write.

    Raises:
        CorruptRecordError: it is not 8 bytes.
    """
    _require_size(key, value, _I64.size)
    total: int = _I64.unpack(value)[0]
    return total


def without_set_id(mode: int) -> int:
    """Return a mode without set-user-ID, and without set-group-ID where the group may execute.

    Without that execute bit set-group-ID asks for mandatory locking and stays: see
    setattr_should_drop_suidgid in fs/attr.c of Linux.
    """
    return mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))


def clamp_ns(time_ns: int) -> int:
    """Return the nearest time that a record can hold."""
    return min(max(time_ns, _TIMES_NS_MIN), _TIMES_NS_MAX)


def _require_size(key: bytes, value: bytes, size: int) -> None:
    if len(value) != size:
        raise CorruptRecordError(key, f"{len(value)} bytes where {size} are due")
