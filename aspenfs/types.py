"""The numbers and small records that every layer speaks in. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple, NewType

Ino = NewType("Ino", int)
"""Inode number; 1 is the root directory, 0 is none."""

SessionId = NewType("SessionId", int)
"""A mount's identity, for as long as it lives; 0 is none."""

FileHandle = NewType("FileHandle", int)
"""An open file or directory of this mount."""

ROOT_INO = Ino(1)
NO_INO = Ino(0)
NO_SESSION = SessionId(0)


class CoherenceLevel(enum.StrEnum):
    """What a mount promises of changes by others; see docs/consistency.md."""

    DEFAULT = "default"
    """open sees what was closed before; attributes are as fresh as the feed."""
    STRICT = "strict"
    """Every lookup and stat sees what was done before."""
    TTL = "ttl"
    """Nobody follows what others do: each cached answer is right for its time to live."""


class Clock(NamedTuple):
    """Where time comes from: seconds that only grow, and nanoseconds since the epoch."""

    monotonic: Callable[[], float]
    now_ns: Callable[[], int]


class Context(NamedTuple):
    """Who makes a request. ``umask`` applies to modes where no default ACL stands in its place."""

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0


class Attributes(NamedTuple):
    """What stat(2) shows of an inode. Times in nanoseconds since the epoch, sizes in bytes."""

    ino: Ino
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    allocated_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    generation: int


class AttributeChanges(NamedTuple):
    """What setattr is to change; None leaves a field as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None

    def under(self, newer: AttributeChanges) -> AttributeChanges:
        """Return what these changes and then ``newer`` ones come to, where both are times."""
        pairs = zip(self, newer, strict=True)
        return AttributeChanges(*(old if new is None else new for old, new in pairs))


class DirectoryEntry(NamedTuple):
    """One entry of a listing; pass ``next_offset`` to readdir to go on after it."""

    name: bytes
    attributes: Attributes
    next_offset: int


class StatFs(NamedTuple):
    """What statvfs(3) shows of the volume. Blocks of ``block_bytes`` bytes."""

    block_bytes: int
    blocks_total: int
    blocks_free: int
    inodes_used: int
    inodes_free: int
    name_bytes_max: int
