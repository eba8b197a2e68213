"""The arithmetic of locks: what meets what, and what an owner has after a request. Pure.

The rules are those of fcntl(2), "Advisory record locking", as fs/locks.c of Linux has them: an
owner has at most one kind of lock on each byte, a new one takes the place of what it had there, and
what touches is one lock. A BSD lock is one on all bytes, of an owner that meets only its like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from aspenfs.lock_records import FileLock, LockOwner

N = TypeVar("N")


def conflict(one: FileLock, other: FileLock) -> bool:
    """Return whether two locks cannot be held at the same time."""
    return (
        (one.is_write or other.is_write)
        and one.owner != other.owner
        and one.owner.is_flock == other.owner.is_flock
        and _overlap(one, other.start, other.end)
    )


def in_the_way(locks: Iterable[FileLock], wanted: FileLock) -> list[FileLock]:
    """Return those of ``locks`` that cannot be held together with ``wanted``."""
    return [lock for lock in locks if conflict(lock, wanted)]


def locked(locks: Iterable[FileLock], wanted: FileLock) -> tuple[FileLock, ...]:
    """Return all locks after ``wanted`` was granted; those of other owners stay as they are."""
    others, own = _without(locks, wanted.owner, wanted.start, wanted.end)
    merged: list[FileLock] = []
    for lock in sorted([*own, wanted], key=_start):
        last = merged[-1] if merged else None
        if last is not None and last.is_write == lock.is_write and last.end + 1 == lock.start:
            merged[-1] = last._replace(end=lock.end)
        else:
            merged.append(lock)
    return (*others, *merged)


def unlocked(
    locks: Iterable[FileLock], owner: LockOwner, start: int, end: int
) -> tuple[FileLock, ...]:
    """Return all locks after an owner has given a range back."""
    others, own = _without(locks, owner, start, end)
    return (*others, *sorted(own, key=_start))


def clipped(
    locks: Iterable[FileLock], owner: LockOwner, start: int, end: int
) -> tuple[FileLock, ...]:
    """Return what an owner has within a range, cut to it."""
    return tuple(
        lock._replace(start=max(lock.start, start), end=min(lock.end, end))
        for lock in locks
        if lock.owner == owner and _overlap(lock, start, end)
    )


def weakens(locks: Iterable[FileLock], wanted: FileLock) -> bool:
    """Return whether ``wanted`` makes an exclusive lock of its owner a shared one anywhere."""
    had = clipped(locks, wanted.owner, wanted.start, wanted.end)
    return not wanted.is_write and any(lock.is_write for lock in had)


def strengthens(locks: Iterable[FileLock], wanted: FileLock) -> bool:
    """Return whether ``wanted`` gives its owner more than it has, on any byte."""
    had = clipped(locks, wanted.owner, wanted.start, wanted.end)
    enough = [lock for lock in had if lock.is_write or not wanted.is_write]
    held_bytes = sum(lock.end - lock.start + 1 for lock in enough)  # they never overlap
    return held_bytes < wanted.end - wanted.start + 1


def taken_back(
    locks: Iterable[FileLock], granted: FileLock, had: Iterable[FileLock]
) -> tuple[FileLock, ...]:
    """Return all locks after a grant was undone, without asking for more than there is now.

    Args:
        locks: what is held, ``granted`` included.
        granted: what its owner does not want any more.
        had: what its owner had in that range before. An exclusive lock that the grant made shared
            stays shared, since others may share it meanwhile.
    """
    after = unlocked(locks, granted.owner, granted.start, granted.end)
    for lock in had:
        after = locked(after, lock._replace(is_write=lock.is_write and granted.is_write))
    return after


def is_deadlock(waits_for: Callable[[N], Iterable[N]], start: N) -> bool:
    """Return whether ``start`` waits, through whomever, for itself."""
    seen: set[N] = set()
    ahead = list(waits_for(start))
    while ahead:
        node = ahead.pop()
        if node == start:
            return True
        if node not in seen:
            seen.add(node)
            ahead += waits_for(node)
    return False


def _without(
    locks: Iterable[FileLock], owner: LockOwner, start: int, end: int
) -> tuple[Sequence[FileLock], list[FileLock]]:
    """Return the locks of others, and what is left to the owner outside of a range."""
    others: list[FileLock] = []
    own: list[FileLock] = []
    for lock in locks:
        if lock.owner != owner:
            others.append(lock)
            continue
        if not _overlap(lock, start, end):
            own.append(lock)
            continue
        if lock.start < start:
            own.append(lock._replace(end=start - 1))
        if lock.end > end:
            own.append(lock._replace(start=end + 1))
    return others, own


def _overlap(lock: FileLock, start: int, end: int) -> bool:
    return lock.start <= end and start <= lock.end


def _start(lock: FileLock) -> int:
    return lock.start
