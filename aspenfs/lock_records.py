"""The record of file locks of format v1 and its bytes. Pure.

Each session has one record an inode, with all that it holds there and what it waits for. It hangs
on the session's lease. docs/format.md is the normative text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from aspenfs import limits
from aspenfs.errors import CorruptRecordError, FormatVersionError
from aspenfs.types import SessionId

OFFSET_MAX: Final = 2**63 - 1
"""The last byte of a range that reaches to the end of the file, wherever that is: OFF_T_MAX."""


class LockOwner(NamedTuple):
    """Who holds a lock, or waits for it.

    ``number`` is what the session's kernel calls it: a process's table of files for POSIX locks, an
    open file description for its own (F_OFD_SETLK) and for BSD locks, which ``is_flock`` tells
    apart since they never meet the others.
    """

    session: SessionId
    is_flock: bool
    number: int


class FileLock(NamedTuple):
    """A lock on the bytes from ``start`` to ``end``, both included; ``pid`` is for people to read.

    ``is_write``: exclusive; else shared.
    """

    owner: LockOwner
    is_write: bool
    start: int
    end: int
    pid: int


class LockWaiter(NamedTuple):
    """A request that waits, and its place in the queue of all sessions: the lowest is next."""

    wanted: FileLock
    ticket: int


class LockRecord(NamedTuple):
    """All that a session holds and waits for on one inode."""

    held: tuple[FileLock, ...] = ()
    waiters: tuple[LockWaiter, ...] = ()


# flags, owner, start, end, pid, ticket
_ENTRY: Final = struct.Struct("<BQQQIQ")
_RECORD_VERSION: Final = 1
_IS_WRITE: Final = 0x01
_IS_FLOCK: Final = 0x02
_HELD: Final = 0  # no waiter has this ticket

RECORD_BYTES_MAX: Final = 1 + limits.LOCK_ENTRIES_MAX * _ENTRY.size


def _entry(lock: FileLock, ticket: int) -> bytes:
    flags = (_IS_WRITE if lock.is_write else 0) | (_IS_FLOCK if lock.owner.is_flock else 0)
    return _ENTRY.pack(flags, lock.owner.number, lock.start, lock.end, lock.pid, ticket)


def encode_locks(held: Iterable[FileLock], waiters: Iterable[LockWaiter] = ()) -> bytes:
    """Return the bytes of one session's record of one inode."""
    entries = [_entry(lock, _HELD) for lock in held]
    entries += [_entry(waiter.wanted, waiter.ticket) for waiter in waiters]
    return bytes((_RECORD_VERSION,)) + b"".join(entries)


def decode_locks(key: bytes, value: bytes, session: SessionId) -> LockRecord:
    """Read a session's record of one inode.

    Raises:
        FormatVersionError: a newer aspenfs wrote it.
        CorruptRecordError: it is cut, or an entry is none.
    """
    if not value:
        raise CorruptRecordError(key, "it is empty")
    if value[0] > _RECORD_VERSION:
        raise FormatVersionError(key, value[0], _RECORD_VERSION)
    if value[0] != _RECORD_VERSION:
        raise CorruptRecordError(key, f"record version {value[0]}")
    if (len(value) - 1) % _ENTRY.size:
        raise CorruptRecordError(key, f"{len(value)} bytes are no whole number of entries")
    held: list[FileLock] = []
    waiters: list[LockWaiter] = []
    for flags, number, start, end, pid, ticket in _ENTRY.iter_unpack(value[1:]):
        if flags & ~(_IS_WRITE | _IS_FLOCK):
            raise CorruptRecordError(key, f"unknown flags {flags:#04x}")
        if not start <= end <= OFFSET_MAX:
            raise CorruptRecordError(key, f"a lock from {start} to {end}")
        owner = LockOwner(session, bool(flags & _IS_FLOCK), number)
        lock = FileLock(owner, bool(flags & _IS_WRITE), start, end, pid)
        if ticket == _HELD:
            held.append(lock)
        else:
            waiters.append(LockWaiter(lock, ticket))
    return LockRecord(tuple(held), tuple(waiters))
