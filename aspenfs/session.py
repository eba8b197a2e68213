"""This mount's session: its lease, its inode numbers, its usage counters.

Lock: ``_ino_lock`` is held by the one task that takes a new range of inode numbers; it is freed
when that commit ends, however it ends.
"""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgpack
import trio

from aspenfs import limits
from aspenfs.errors import AspenError, LeaseLostError
from aspenfs.keys import Keys
from aspenfs.metadata import decode_counter, decode_next_ino, encode_next_ino
from aspenfs.scans import records_below
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import NO_SESSION, Ino, SessionId
from aspenkv.contract import ABSENT, NO_LEASE, KeyValue, Put, RevisionIs
from aspenkv.errors import AspenKvError, LeaseNotFoundError

log = logging.getLogger(__name__)


class Session:
    """A mount's identity in the volume. Made by :func:`open_session`."""

    def __init__(
        self,
        kv: KeyValue,
        keys: Keys,
        transactions: Transactions,
        session_id: SessionId,
        lease: int = NO_LEASE,
    ) -> None:
        """Take the identity that :func:`open_session` has registered, and its lease."""
        self._kv = kv
        self._keys = keys
        self._transactions = transactions
        self._ino_lock = trio.Lock()
        self._next_ino = 0
        self._end_ino = 0
        self._has_peers = True
        self._had_peers = False
        self._news_of_sessions = 0
        self.id = session_id
        self.lease = lease
        """What records hang on that vanish with this session."""
        self.lapses_at_s = float("inf")
        """When the lease lapses if it is not renewed before, by this machine's clock or earlier."""
        self._usage_bytes_key = keys.usage_bytes(session_id)
        self._usage_inodes_key = keys.usage_inodes(session_id)

    @property
    def is_live(self) -> bool:
        """Whether nobody can have taken the place of this mount: its lease has not lapsed.

        The clock of a suspended machine stands, so one that wakes up may believe so for too long:
        until the next keepalive or commit tells.
        """
        return trio.current_time() < self.lapses_at_s and not self._transactions.is_refused

    def count(self, txn: Transaction, *, allocated_bytes: int = 0, inodes: int = 0) -> None:
        """Let a transaction also move this session's usage counters."""
        txn.add(self._usage_bytes_key, allocated_bytes)
        txn.add(self._usage_inodes_key, inodes)

    async def new_ino(self) -> Ino:
        """Return an inode number that no mount has used or ever will."""
        if self._next_ino == self._end_ino:
            async with self._ino_lock:
                if self._next_ino == self._end_ino:
                    await self._take_range()
        ino = Ino(self._next_ino)
        self._next_ino += 1
        return ino

    async def _take_range(self) -> None:
        key = self._keys.next_ino

        async def attempt(txn: Transaction) -> int:
            (found,) = await self._kv.get((key,))
            first = 2 if found is None else decode_next_ino(key, found.value)
            txn.require(key, 0 if found is None else found.revision)
            txn.put(key, encode_next_ino(Ino(first + limits.INO_RANGE_COUNT)))
            return first

        first = await self._transactions.run(attempt)
        self._next_ino, self._end_ino = first, first + limits.INO_RANGE_COUNT

    async def fold(self, session: SessionId) -> None:
        """Move the counters of an ended session to the volume's own, each exactly once."""
        for key, total in (
            (self._keys.usage_bytes(session), self._keys.usage_bytes(NO_SESSION)),
            (self._keys.usage_inodes(session), self._keys.usage_inodes(NO_SESSION)),
        ):
            await self._fold_one(key, total)

    async def _fold_one(self, key: bytes, total: bytes) -> None:
        async def attempt(txn: Transaction) -> None:
            (found,) = await self._kv.get((key,))
            if found is not None:
                txn.require(key, found.revision)
                txn.add(total, decode_counter(key, found.value))
                txn.delete(key)

        await self._transactions.run(attempt)

    @property
    def has_peers(self) -> bool:
        """Whether other sessions use the volume, or may; no call.

        As :meth:`live_sessions` last found it, unless sessions have come or gone since.
        """
        return self._has_peers

    @property
    def had_peers(self) -> bool:
        """Whether there was another session when :meth:`live_sessions` looked, ever."""
        return self._had_peers

    def heard_of_sessions(self) -> None:
        """Take into account that a session has begun or ended, or may have."""
        self._news_of_sessions += 1
        self._has_peers = True

    async def live_sessions(self) -> set[SessionId]:
        """Return the sessions whose lease has not lapsed."""
        news = self._news_of_sessions
        found: set[SessionId] = set()
        async for record in records_below(self._kv, self._keys.sessions(), keys_only=True):
            parsed = self._keys.parse(record.key)
            if parsed is not None:
                found.add(parsed.session)
        peers = found - {self.id}
        self._had_peers |= bool(peers)
        if news == self._news_of_sessions:
            self._has_peers = bool(peers)
        return found


@asynccontextmanager
async def open_session(
    kv: KeyValue, keys: Keys, transactions: Transactions, *, read_only: bool
) -> AsyncIterator[Session]:
    """Register a session, keep its lease alive, and on exit fold its counters and end it.

    From then on every transaction is fenced by the session: if its lease lapses, they fail.

    A read-only mount owns nothing, so it has no lease and the session number 0.
    """
    if read_only:
        yield Session(kv, keys, transactions, NO_SESSION)
        return
    asked_at_s = trio.current_time()
    lease = await kv.lease(limits.SESSION_TTL_S)
    session_id, revision = await _register(kv, keys, lease)
    transactions.fence(keys.session(session_id), revision)
    session = Session(kv, keys, transactions, session_id, lease)
    session.lapses_at_s = asked_at_s + limits.SESSION_TTL_S
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_alive, kv, transactions, session)
        try:
            # A power cut must not take the session from a mount that outlives it.
            await kv.sync()
            yield session
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.move_on_after(limits.SESSION_CALL_S):
                await _end(kv, session, lease)


async def _register(kv: KeyValue, keys: Keys, lease: int) -> tuple[SessionId, int]:
    """Write the record of a new session; return its number and the revision of the record."""
    record = msgpack.packb({"host": socket.gethostname()})
    while True:
        session_id = SessionId(secrets.randbits(63) or 1)
        key = keys.session(session_id)
        committed = await kv.commit([RevisionIs(key, ABSENT)], [Put(key, record, lease)])
        if committed.failed_check is None:
            return session_id, committed.revision


async def _keep_alive(kv: KeyValue, transactions: Transactions, session: Session) -> None:
    """Renew the lease until it lapses; an outage gets one line in the log, not one a try."""
    is_renewed = True
    while True:
        await trio.sleep(limits.SESSION_KEEPALIVE_S if is_renewed else limits.SESSION_RETRY_S)
        asked_at_s = trio.current_time()
        try:
            with trio.fail_after(limits.SESSION_CALL_S):  # the carrier alone might take the TTL
                await kv.keepalive(session.lease)
        except LeaseNotFoundError:
            transactions.refuse_from_now()
            return
        except (AspenKvError, trio.TooSlowError) as error:
            if is_renewed:
                reason = str(error) or "no answer"
                log.warning("the session could not be renewed: %s; trying again", reason)
            is_renewed = False
        else:
            session.lapses_at_s = asked_at_s + limits.SESSION_TTL_S
            is_renewed = True


async def _end(kv: KeyValue, session: Session, lease: int) -> None:
    try:
        await session.fold(session.id)
        await kv.revoke(lease)
    except LeaseLostError:
        return  # it has ended already, and others fold the counters
    # Then the lease lapses by itself and the next mount folds the counters.
    except (AspenError, AspenKvError) as error:
        log.warning("the session could not be ended: %s; its lease will lapse", error)
    except Exception:
        log.exception("the session could not be ended; its lease will lapse")
