"""Client sessions: one for each client, however many connections it has. Time is passed in.

A session that may write outlives its connections and the server's process. What it was told of
its commits is stored by the very commits that carried them out:

    ``C`` + session (16 bytes)                          ticket id (16 bytes)
    ``S`` + session (16 bytes) + slot (u16 big-endian)  sequence (u64), revision (u64), big-endian
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import trio

from aspenkv.access import Grant
from aspenkv.contract import SessionStatus, SlotUse
from aspenkv.errors import AspenKvError, BusyError, DataCorruptError
from aspenkv.limits import (
    SESSION_BYTES_MAX,
    SESSION_IDLE_S_MIN,
    SESSION_REQUESTS_MAX,
    SESSION_TTL_S,
    SESSIONS_MAX,
    SESSIONS_PER_TICKET_MAX,
)
from aspenkv.slots import SlotTable

SESSION_PREFIX: Final = b"C"
SLOT_PREFIX: Final = b"S"
SESSION_ID_BYTES: Final = 16

_SESSION_NAME: Final = struct.Struct(f">c{SESSION_ID_BYTES}s")
_SLOT_NAME: Final = struct.Struct(f">c{SESSION_ID_BYTES}sH")
_SLOT: Final = struct.Struct(">QQ")

Records = dict[bytes, bytes | None]


class Budget:
    """How much may be under way at once: requests, and bytes of their frames and replies."""

    __slots__ = ("bytes", "bytes_max", "requests", "requests_max")

    def __init__(self, requests_max: int, bytes_max: int) -> None:
        """Start with nothing under way."""
        self.requests_max: Final = requests_max
        self.bytes_max: Final = bytes_max
        self.requests = 0
        self.bytes = 0

    def check(self, requests: int, size_bytes: int) -> None:
        """Check that so much more may be under way.

        Raises:
            BusyError: it would be too much.
        """
        if self.requests + requests > self.requests_max or self.bytes + size_bytes > self.bytes_max:
            raise BusyError("too many requests are under way: try again later")

    def take(self, requests: int, size_bytes: int) -> None:
        """Count what begins, or with negative numbers what ended."""
        self.requests += requests
        self.bytes += size_bytes


class ClientSession:
    """One client as the server knows it.

    ``idle_since_s`` is when its last connection went. ``grant``, ``client`` and ``address`` are
    those of its newest connection. A session with a ``failure`` is over: ``ended`` is set, each
    call raises the failure, and its records only wait to be removed.
    """

    def __init__(self, session: bytes, ticket_id: bytes, *, now_s: float) -> None:
        """Begin a session without any connection."""
        self.id: Final = session
        self.ticket_id: Final = ticket_id
        self.grant: Grant | None = None
        self.client = ""
        self.address = ""
        self.connections = 0
        self.idle_since_s = now_s
        self.slots: Final = SlotTable()
        self.slot_freed: Final[dict[int, trio.Event]] = {}
        self.watches: Final[set[Callable[[AspenKvError], None]]] = set()
        self.budget: Final = Budget(SESSION_REQUESTS_MAX, SESSION_BYTES_MAX)
        self.failure: AspenKvError | None = None
        self.ended: Final = trio.Event()

    def check(self) -> None:
        """Check that the session goes on.

        Raises:
            AspenKvError: why it does not.
        """
        if self.failure is not None:
            raise type(self.failure)(*self.failure.args)

    def end(self, failure: AspenKvError) -> None:
        """Refuse all further calls, and end all watches, with ``failure``."""
        if self.failure is None:
            self.failure = failure
            self.ended.set()
            for fail_watch in self.watches:
                fail_watch(failure)

    def record(self) -> Records:
        """Return the server record that lets the session outlive the process."""
        return {_SESSION_NAME.pack(SESSION_PREFIX, self.id): self.ticket_id}

    def slot_record(self, use: SlotUse, revision: int) -> Records:
        """Return the server record that says which commit the slot carried out last."""
        name = _SLOT_NAME.pack(SLOT_PREFIX, self.id, use.slot)
        return {name: _SLOT.pack(use.sequence, revision)}

    def removal_records(self) -> Records:
        """Return the server records that remove the session and all of its slots."""
        records: Records = dict.fromkeys(self.record())
        records.update((_SLOT_NAME.pack(SLOT_PREFIX, self.id, slot), None) for slot in self.slots)
        return records


class SessionTable:
    """All sessions of a server, at most SESSIONS_MAX."""

    def __init__(self) -> None:
        """Start empty."""
        self._sessions: dict[bytes, ClientSession] = {}

    def __iter__(self) -> Iterator[ClientSession]:
        """Iterate over the sessions, the oldest first."""
        return iter(self._sessions.values())

    def load(
        self,
        sessions: Iterable[tuple[bytes, bytes]],
        slots: Iterable[tuple[bytes, bytes]],
        now_s: float,
    ) -> None:
        """Take over the server records of an earlier process; all are idle since now.

        Raises:
            DataCorruptError: a record cannot be read.
        """
        name = b""
        try:
            for name, ticket_id in sessions:
                _, session = _SESSION_NAME.unpack(name)
                self.insert(ClientSession(session, ticket_id, now_s=now_s))
            for name, content in slots:
                _, session, slot = _SLOT_NAME.unpack(name)
                sequence, revision = _SLOT.unpack(content)
                self._sessions[session].slots.load(SlotUse(slot, sequence), revision)
        except (struct.error, KeyError) as error:
            raise DataCorruptError(
                f"the session record {name!r} is damaged: restore the data directory from a backup"
            ) from error

    def get(self, session: bytes) -> ClientSession | None:
        """Return a session, None if there is none."""
        return self._sessions.get(session)

    def insert(self, session: ClientSession) -> None:
        """Add a session whose record is stored, or that needs none."""
        self._sessions[session.id] = session

    def remove(self, session: ClientSession) -> None:
        """Forget a session whose records are gone."""
        del self._sessions[session.id]

    def next_deadline_s(self) -> float:
        """Return when the next session is over; infinity if none will be."""
        return min(map(_deadline_s, self), default=float("inf"))

    def over(self, now_s: float) -> list[ClientSession]:
        """Return the sessions that ended, or were without a connection for SESSION_TTL_S."""
        return [session for session in self if _deadline_s(session) <= now_s]

    def to_evict(self, ticket_id: bytes, now_s: float) -> ClientSession | None:
        """Return the session that must go before a ticket has another; None while there is room.

        It is the ticket's own if that has SESSIONS_PER_TICKET_MAX, else of the ticket with the
        most: who opens many loses his own. Of those it is the longest idle one. One that only just
        lost its connections is about to come back, and stays.

        Raises:
            BusyError: all of them are in use.
        """
        per_ticket = Counter(session.ticket_id for session in self)
        is_greedy = per_ticket[ticket_id] >= SESSIONS_PER_TICKET_MAX
        if not is_greedy and len(self._sessions) < SESSIONS_MAX:
            return None
        idle = [
            session
            for session in self
            if not session.connections
            and session.idle_since_s + SESSION_IDLE_S_MIN <= now_s
            and (session.ticket_id == ticket_id or not is_greedy)
        ]
        if not idle:
            raise BusyError("too many clients are connected: try again later")
        return max(idle, key=lambda each: (per_ticket[each.ticket_id], -each.idle_since_s))

    def statuses(self, prefix: bytes) -> tuple[SessionStatus, ...]:
        """Return the clients that are connected with a ticket for keys below ``prefix``."""
        return tuple(
            SessionStatus(
                session.client, session.address, session.connections, session.grant.can_write
            )
            for session in self
            if session.connections
            and session.grant is not None
            and session.grant.prefix.startswith(prefix)
        )


def _deadline_s(session: ClientSession) -> float:
    if session.failure is not None:
        return float("-inf")
    if session.connections:
        return float("inf")
    return session.idle_since_s + SESSION_TTL_S
