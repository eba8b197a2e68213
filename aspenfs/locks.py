"""File locks that hold across all mounts of a volume: POSIX byte ranges, OFD and BSD locks.

Each mount keeps one record for each inode on which it has locks, attached to the lease of its
session; so the locks of a dead mount vanish with its lease. A grant is one commit, which checks
that no other mount's records of the inode have changed since they were read (or that there are
none): two mounts never both get what only one may have. To give a lock back is one commit of this
mount's own record, which nothing but a lapsed session can make fail.

Locks: a :class:`LockedFile`'s ``lock`` is held by the one task that commits this mount's record of
it. It is freed when that task ends, however it ends; no task holds two.

What a mount holds is what it says here; the record follows. A request that ends in between (its
caller was signalled, the store went away, the answer was lost) is undone here at once, and
:meth:`Locks.run` brings the record in line, for as long as it takes. Until then others take the
lock for held.

The order: who waits is granted in the order of coming, over all mounts, see
:mod:`aspenfs.locked_file`; one that does not wait takes what is free, as it does on Linux. Waiters
look again when the feed of changes tells of a record of their inode; while there is no feed they
ask, at growing intervals up to LOCK_POLL_MAX_S. Who closes a circle of POSIX owners that wait for
each other, within this mount or on one file of several, is told EDEADLK. A circle through several
mounts and files is not seen, and lasts until one of them is signalled.
"""

from __future__ import annotations

import errno
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import trio

from aspenfs import limits
from aspenfs.errors import AspenError, FilesystemError, LeaseLostError
from aspenfs.keys import Keys, ParsedKey
from aspenfs.lock_ranges import (
    clipped,
    in_the_way,
    is_deadlock,
    locked,
    strengthens,
    taken_back,
    unlocked,
    weakens,
)
from aspenfs.lock_records import (
    OFFSET_MAX,
    FileLock,
    LockOwner,
    LockWaiter,
    decode_locks,
    encode_locks,
)
from aspenfs.locked_file import ABSENT, LockedFile, Obstacles, OtherRecord, Waiter
from aspenfs.scans import records_below
from aspenfs.session import Session
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import FileHandle, Ino
from aspenkv.contract import NO_LEASE, KeyValue
from aspenkv.errors import AspenKvError, ClosedError, LeaseNotFoundError, TooManyError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Locks:
    """The locks of one mount's processes.

    Args:
        kv: the store.
        keys: the volume's keys.
        transactions: commits.
        session: whose lease the records hang on.
        flush: commits what is dirty of an inode.
        freshen: lets all that others have committed of an inode be seen; False: the kernel's pages
            of it may be older and must be dropped.
        hears_of_changes: whether :meth:`changed_by_others` is told of every change now.
    """

    def __init__(
        self,
        kv: KeyValue,
        keys: Keys,
        transactions: Transactions,
        session: Session,
        *,
        flush: Callable[[Ino], Awaitable[None]],
        freshen: Callable[[Ino], Awaitable[bool]],
        hears_of_changes: Callable[[], bool],
    ) -> None:
        """Hold nothing yet."""
        self._kv = kv
        self._keys = keys
        self._transactions = transactions
        self._session = session
        self._flush = flush
        self._freshen = freshen
        self._hears_of_changes = hears_of_changes
        self._files: dict[Ino, LockedFile] = {}
        self._unsettled = trio.Event()

    def owner(self, number: int, *, is_flock: bool) -> LockOwner:
        """Return an owner of this mount, by the number that its kernel gave it."""
        return LockOwner(self._session.id, is_flock, number)

    # --- asking and taking ----------------------------------------------------------------------

    async def conflicting(self, ino: Ino, wanted: FileLock) -> FileLock | None:
        """Return a lock that keeps another from being granted now, the first by its range."""
        file = self._files.get(ino)
        found = [] if file is None else in_the_way(file.held, wanted)
        if not found:
            async for record in records_below(self._kv, self._keys.locks_of_all(ino)):
                parsed = self._keys.parse(record.key)
                if parsed is not None and parsed.holder != self._session.id:
                    other = decode_locks(record.key, record.value, parsed.holder)
                    found += in_the_way(other.held, wanted)
        return min(found, key=lambda lock: lock.start, default=None)

    async def lock(self, ino: Ino, fh: FileHandle, wanted: FileLock, *, wait: bool) -> bool:
        """Take a range, or change what its owner has there; then see what others wrote.

        Returns:
            False: what the kernel keeps of the file may be older, and must be dropped.

        Raises:
            FilesystemError: EAGAIN, it is not free and ``wait`` is false; EDEADLK; ENOLCK.
            LeaseLostError: the session of this mount lapsed.
            AspenKvError: the store failed; the lock is not held.
        """
        if self._session.lease == NO_LEASE:
            raise FilesystemError(errno.ENOLCK, "a read-only mount can record no locks")
        with self._using(ino) as file:
            if weakens(file.held, wanted):
                await self._flush(ino)  # others may read it then
            had = await self._acquire(file, wanted, wait=wait)
            file.handles.setdefault(fh, set()).add(wanted.owner)
            if not strengthens(had, wanted):
                return True
            try:
                return await self._freshen(ino)
            except BaseException:
                file.held = taken_back(file.held, wanted, had)
                self._settle_later(file)
                raise

    async def _acquire(
        self, file: LockedFile, wanted: FileLock, *, wait: bool
    ) -> tuple[FileLock, ...]:
        """Have a lock granted; return what its owner had in that range before."""
        waiter = Waiter(wanted)
        pause_s = limits.LOCK_POLL_FIRST_S
        try:
            while True:
                async with file.lock:
                    changes = file.changes
                    had = clipped(file.held, wanted.owner, wanted.start, wanted.end)
                    try:
                        obstacles = await self._attempt(file, waiter, wait=wait)
                    except FilesystemError as error:
                        if error.errno != errno.EBUSY:
                            raise
                        if not wait:
                            raise FilesystemError(errno.EAGAIN, str(error)) from error
                        continue
                if not obstacles:
                    return had
                if wanted.owner.is_flock and had:
                    # What is to be changed is given up first, as flock(2) says; it was shared.
                    file.held = unlocked(file.held, wanted.owner, 0, OFFSET_MAX)
                    file.wake()
                    await self._settle(file)
                    continue
                if not wait:
                    raise FilesystemError(errno.EAGAIN, "another has locked it")
                if file.changes != changes:
                    continue
                poll_s = float("inf") if self._hears_of_changes() else pause_s
                with trio.move_on_at(min(waiter.yields_until_s, trio.current_time() + poll_s)):
                    await file.moved.park()
                    continue
                file.is_outdated = True
                pause_s = min(2 * pause_s, limits.LOCK_POLL_MAX_S)
        finally:
            if waiter in file.waiters:
                file.waiters.remove(waiter)
                self._settle_later(file)

    async def _attempt(self, file: LockedFile, waiter: Waiter, *, wait: bool) -> Obstacles:
        """Grant a request in one commit, or tell what is in its way.

        One that waits for another mount gets its ticket in one commit.
        """
        wanted = waiter.wanted
        if not (strengthens(file.held, wanted) or weakens(file.held, wanted)):
            return _FREE
        ticket = 0

        async def build(txn: Transaction) -> tuple[Obstacles, bytes | None]:
            nonlocal ticket
            ticket = 0
            obstacles = await self._obstacles(file, waiter, wait=wait)
            tickets = file.tickets(without=waiter)
            if obstacles:
                if wait:
                    self._check_deadlock(file, waiter)
                if not wait or waiter.ticket or not obstacles.are_of_others:
                    return obstacles, None
                # Others' records may change meanwhile: with a check, who changes his all the time
                # would let nobody into the queue.
                ticket = file.next_ticket()
                held = file.held
                tickets.append(LockWaiter(wanted, ticket))
            else:
                held = locked(file.held, wanted)
                txn.checks += file.checks()
            _check_room(held, tickets)
            if len(file.others) > limits.LOCK_SESSIONS_MAX:
                raise FilesystemError(errno.ENOLCK, f"{len(file.others)} mounts lock one file")
            return obstacles, encode_locks(held, tickets)

        obstacles = await self._commit(file, build)
        if not obstacles:
            file.held = locked(file.held, wanted)
            if waiter in file.waiters:
                file.waiters.remove(waiter)
            file.wake()
        elif wait:
            waiter.ticket = waiter.ticket or ticket
            if waiter not in file.waiters:
                file.waiters.append(waiter)
        return obstacles

    async def _obstacles(self, file: LockedFile, waiter: Waiter, *, wait: bool) -> Obstacles:
        """Return what is in a request's way, as far as what was read of others is right.

        A commit finds out if it is not, or the feed tells who waits. But nobody is refused for what
        may have been given back since, or takes a ticket by those of long ago.
        """
        is_read = file.is_outdated
        if is_read:
            await self._read(file)
        now_s = trio.current_time()
        obstacles = file.obstacles(waiter, in_turn=wait, now_s=now_s)
        if obstacles.are_of_others and not (waiter.ticket or is_read):
            await self._read(file)
            obstacles = file.obstacles(waiter, in_turn=wait, now_s=now_s)
        return obstacles

    def _check_deadlock(self, file: LockedFile, waiter: Waiter) -> None:
        """Refuse a request that waits for one which, through whomever, waits for its owner.

        Of those in a circle the last one is refused. As on Linux, BSD locks are let alone.
        """
        wanted = waiter.wanted
        if wanted.owner.is_flock:
            return
        requests: defaultdict[LockOwner, list[tuple[LockedFile, FileLock]]] = defaultdict(list)
        requests[wanted.owner].append((file, wanted))
        for each in self._files.values():
            for own in each.waiters:
                requests[own.wanted.owner].append((each, own.wanted))
        for other in file.before(waiter):  # what is known of others on other files may be outdated
            requests[other.owner].append((file, other))

        def waits_for(owner: LockOwner) -> Iterator[LockOwner]:
            for each, request in requests.get(owner, ()):
                yield from (lock.owner for lock in each.holders_in_the_way(request))

        if is_deadlock(waits_for, wanted.owner):
            raise FilesystemError(errno.EDEADLK, "its owner would wait for itself")

    # --- giving back ----------------------------------------------------------------------------

    async def unlock(self, ino: Ino, owner: LockOwner, start: int, end: int) -> None:
        """Give a range back, after what was written under it is committed.

        Raises:
            FilesystemError: ENOLCK, too many locks would be left.
            AspenError, AspenKvError: something could not be committed. The lock is given back all
                the same, as soon as the store can be told.
        """
        file = self._files.get(ino)
        if file is None or not clipped(file.held, owner, start, end):
            return
        with self._using(ino):
            _check_room(unlocked(file.held, owner, start, end), file.tickets())
            try:
                await self._flush(ino)
            except BaseException:
                file.held = unlocked(file.held, owner, start, end)
                self._settle_later(file)
                raise
            file.held = unlocked(file.held, owner, start, end)
            file.wake()
            await self._settle(file)

    def close_owner(self, ino: Ino, number: int) -> None:
        """Give back the POSIX locks of a process that closes the file, through whatever handle."""
        self._drop(ino, {self.owner(number, is_flock=False)})

    def close_handle(self, ino: Ino, fh: FileHandle) -> None:
        """Give back what was locked through a handle that is closed for good.

        Its POSIX owners have closed it before. So what is left are the locks of the open file
        description itself, of which the kernel does not say at its close who owns them.
        """
        file = self._files.get(ino)
        if file is not None:
            self._drop(ino, file.handles.pop(fh, set()))

    def _drop(self, ino: Ino, owners: Collection[LockOwner]) -> None:
        file = self._files.get(ino)
        if file is None:
            return
        held = tuple(lock for lock in file.held if lock.owner not in owners)
        if held != file.held:
            file.held = held
            self._settle_later(file)

    async def settle(self, ino: Ino) -> None:
        """Let others know what was given back; :meth:`run` does it later if it cannot be now."""
        if ino not in self._files:
            return
        with self._using(ino) as file:
            if file.is_settled(trio.current_time()):
                return
            try:
                await self._settle(file)
            except (AspenError, AspenKvError) as error:
                log.info("a lock on inode %d will be given back later: %s", ino, error)

    # --- what the session and others do ---------------------------------------------------------

    def require_valid(self, ino: Ino) -> None:
        """Refuse I/O on a file that was locked here when the session lapsed, or may have.

        Another mount may hold the lock by now, and what is read or written is no longer what it
        guards.

        Raises:
            LeaseLostError: that is so.
        """
        if not self._files or self._session.is_live:
            return
        file = self._files.get(ino)
        if file is not None and file.held:
            raise LeaseLostError(f"inode {ino} was locked when this mount's session lapsed")

    def changed_by_others(self, key: ParsedKey | None) -> None:
        """Let waiters look again whose file's locks another mount has changed; None: all."""
        if key is None:
            for file in self._files.values():
                file.is_outdated = True
                file.wake()
        elif key.kind == "L" and key.holder != self._session.id:
            changed = self._files.get(key.ino)
            if changed is not None:
                changed.is_outdated = True
                changed.wake()

    # --- the record -----------------------------------------------------------------------------

    @contextmanager
    def _using(self, ino: Ino) -> Iterator[LockedFile]:
        file = self._files.get(ino)
        if file is None:
            if len(self._files) >= limits.LOCK_FILES_MAX:
                raise FilesystemError(errno.ENOLCK, f"{limits.LOCK_FILES_MAX} files are locked")
            file = self._files[ino] = LockedFile(self._keys, ino, self._session.id)
        file.users += 1
        try:
            yield file
        finally:
            file.users -= 1
            self._forget_if_unused(file)

    def _forget_if_unused(self, file: LockedFile) -> None:
        is_stored = file.stored != ABSENT and not self._transactions.is_refused
        if not (file.users or file.held or is_stored):
            self._files.pop(file.ino, None)

    def _settle_later(self, file: LockedFile) -> None:
        """Let waiters look again, and :meth:`run` see to the record."""
        file.wake()
        if not file.is_settled(trio.current_time()):
            self._unsettled.set()

    async def _read(self, file: LockedFile) -> None:
        """Read all records of an inode, this mount's own too."""
        file.is_outdated = False  # before: what changes meanwhile is told
        own = (0, ABSENT)
        others: dict[bytes, OtherRecord] = {}
        try:
            async for key, value, revision in records_below(self._kv, file.prefix):
                parsed = self._keys.parse(key)
                if key == file.key:
                    own = (revision, value)
                elif parsed is not None:
                    others[key] = OtherRecord(revision, decode_locks(key, value, parsed.holder))
        except BaseException:
            file.is_outdated = True
            raise
        file.note_read(*own)
        file.others = others

    async def _settle(self, file: LockedFile) -> None:
        """Bring this mount's record of an inode in line with what it holds."""

        async def build(_txn: Transaction) -> tuple[None, bytes | None]:
            due = file.due(trio.current_time())
            return None, None if due == file.stored else due

        try:
            async with file.lock:
                while not file.is_settled(trio.current_time()):
                    await self._commit(file, build)
        except BaseException:
            self._settle_later(file)
            raise

    async def _commit(
        self,
        file: LockedFile,
        build: Callable[[Transaction], Awaitable[tuple[T, bytes | None]]],
    ) -> T:
        """Write this mount's record of an inode; ``build`` returns it, or None for no change.

        If the outcome is not known, the next commit reads what has become of this one.
        """
        tried: Transaction | None = None
        value: bytes | None = None

        async def attempt(txn: Transaction) -> T:
            nonlocal tried, value
            tried = txn
            if txn.is_retry or file.stored is None:
                await self._read(file)
            result, value = await build(txn)
            if value is not None:
                txn.require(file.key, file.revision)
                if value == ABSENT:
                    txn.delete(file.key)
                else:
                    txn.put(file.key, value, self._session.lease)
            return result

        try:
            result = await self._transactions.run(attempt)
        except LeaseNotFoundError:  # told before the checks are looked at, which would say the same
            self._transactions.refuse_from_now()
            raise LeaseLostError("the session of this mount lapsed; mount again") from None
        except TooManyError as error:
            raise FilesystemError(errno.ENOLCK, str(error)) from error
        except BaseException:
            if tried is not None and tried.is_in_doubt:
                file.note_doubt(trio.current_time())
            self._settle_later(file)
            raise
        if value is not None and tried is not None:
            file.note_stored(value, tried.revision)
        return result

    async def run(self) -> None:
        """Give back what could not be given back at once, while the session lives."""
        pause_s = limits.LOCK_RETRY_FIRST_S
        while True:
            now_s = trio.current_time()
            ends_s = [file.kept_until_s for file in self._files.values()]
            with trio.move_on_at(min((end for end in ends_s if end > now_s), default=float("inf"))):
                await self._unsettled.wait()
            self._unsettled = trio.Event()
            is_settled = True
            for file in list(self._files.values()):
                try:
                    await self._settle_in_background(file)
                except (LeaseLostError, ClosedError):
                    return  # the locks are gone with the session, or will be
                except (AspenError, AspenKvError) as error:
                    log.info("locks could not be given back: %s; trying again", error)
                    is_settled = False
            if is_settled:
                pause_s = limits.LOCK_RETRY_FIRST_S
            else:
                self._unsettled.set()
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, limits.LOCK_RETRY_MAX_S)

    async def _settle_in_background(self, file: LockedFile) -> None:
        if file.is_settled(trio.current_time()):
            return
        with self._using(file.ino):
            try:
                await self._flush(file.ino)  # before others may read it
            except FilesystemError as error:  # no retry helps; the bytes' own error says so
                log.info("inode %d is unlocked without all its data: %s", file.ino, error)
            await self._settle(file)


_FREE: Final = Obstacles([], [], are_of_others=False)


def _check_room(held: Sequence[FileLock], tickets: Sequence[LockWaiter]) -> None:
    """Refuse more locks on a file than this mount's record of it can hold.

    Raises:
        FilesystemError: ENOLCK.
    """
    if len(held) + len(tickets) > limits.LOCK_ENTRIES_MAX:
        raise FilesystemError(errno.ENOLCK, f"{limits.LOCK_ENTRIES_MAX} locks on one file")
