"""Every request with a reply to it, and every watch message, for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from aspenkv.contract import (
    Add,
    Change,
    CommitResult,
    Copy,
    CreatedTicket,
    Delete,
    DeleteRange,
    Newest,
    Patch,
    Put,
    RangeEmpty,
    Record,
    RevisionIs,
    ScanPage,
    SessionStatus,
    SlotUse,
    Status,
    TicketInfo,
    Versioned,
    WatchEvent,
)
from aspenkv.limits import TEXT_BYTES_MAX
from aspenkv.protocol import (
    Bye,
    Commit,
    CreateTicket,
    Get,
    GrantLease,
    Hello,
    HelloReply,
    Keepalive,
    ListTickets,
    OpenWatch,
    ReadNewest,
    ReadRevision,
    ReadStatus,
    Revoke,
    RevokeTicket,
    Scan,
    Sync,
    WatchProgress,
)

U64 = st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
REAL = st.floats(allow_nan=False, allow_infinity=False)
SPANS = st.floats(0, allow_nan=False, allow_infinity=False)
BYTES = st.binary(max_size=300)
BYTES_16 = st.binary(min_size=16, max_size=16)
BYTES_32 = st.binary(min_size=32, max_size=32)
BOOLS = st.booleans()
TEXTS = st.text(max_size=TEXT_BYTES_MAX // 4).filter(str.isprintable)
SLOT_USES = st.builds(SlotUse, U64, U64)

CHECKS = st.builds(RevisionIs, BYTES, U64) | st.builds(RangeEmpty, BYTES, BYTES)
OPS = (
    st.builds(Put, BYTES, BYTES, U64)
    | st.builds(Delete, BYTES)
    | st.builds(DeleteRange, BYTES, BYTES)
    | st.builds(Patch, BYTES, U64, BYTES, st.none() | U64)
    | st.builds(Add, BYTES, I64)
    | st.builds(Copy, BYTES, BYTES)
)

VERSIONED = st.builds(Versioned, BYTES, st.integers(1, 2**64 - 1))
RECORDS = st.lists(st.builds(Record, BYTES, BYTES, U64), max_size=5)
TICKETS = st.builds(TicketInfo, BYTES_16, TEXTS, BYTES, BOOLS, BOOLS, U64, st.none() | U64)
STATUSES = st.builds(
    Status,
    engine=TEXTS,
    members=st.lists(TEXTS, max_size=3).map(tuple),
    revision=U64,
    used_bytes=U64,
    capacity_bytes=U64,
    available_bytes=U64,
    leases=U64,
    watches=U64,
    sessions=st.lists(st.builds(SessionStatus, TEXTS, TEXTS, U64, BOOLS), max_size=3).map(tuple),
)


@st.composite
def _hello(draw: st.DrawFn) -> tuple[Hello, HelloReply]:
    version = draw(st.integers(1, 9))
    hello = Hello(
        draw(BYTES_16),
        draw(BYTES_32),
        draw(BYTES_16),
        draw(TEXTS),
        version + draw(st.integers(0, 9)),
    )
    reply = HelloReply(
        draw(BYTES_16),
        version,
        draw(BYTES),
        draw(BOOLS),
        draw(BOOLS),
        draw(BOOLS),
        draw(U64),
        draw(U64),
        draw(U64),
    )
    return hello, reply


@st.composite
def _get(draw: st.DrawFn) -> tuple[Get, list[Versioned | None]]:
    keys = draw(st.lists(BYTES, max_size=5).map(tuple))
    count = len(keys)
    values = draw(st.lists(st.none() | VERSIONED, min_size=count, max_size=count))
    return Get(keys, draw(BOOLS)), values


@st.composite
def _commit(draw: st.DrawFn) -> tuple[Commit, CommitResult]:
    checks = draw(st.lists(CHECKS, max_size=4))
    commit = Commit(checks, draw(st.lists(OPS, max_size=4)), draw(st.none() | SLOT_USES))
    failed = st.integers(0, len(checks) - 1) if checks else st.none()
    return commit, CommitResult(draw(U64), draw(st.none() | failed))


_SCANS = st.builds(Scan, BYTES, BYTES, U64, BOOLS, BOOLS, st.none() | BYTES)
_CREATES = st.builds(CreateTicket, BYTES, BOOLS, BOOLS, st.none() | REAL, TEXTS)

CALLS: st.SearchStrategy[tuple[Any, Any]] = (
    _hello()
    | _get()
    | st.tuples(_SCANS, st.builds(ScanPage, RECORDS, st.none() | BYTES))
    | _commit()
    | st.tuples(st.builds(GrantLease, REAL), U64)
    | st.tuples(st.builds(Keepalive, U64), st.none())
    | st.tuples(st.builds(Revoke, U64), st.none())
    | st.tuples(st.just(ReadRevision()), U64)
    | st.tuples(st.just(Sync()), st.none())
    | st.tuples(st.just(ReadStatus()), STATUSES)
    | st.tuples(st.just(Bye()), st.none())
    | st.tuples(_CREATES, st.builds(CreatedTicket, BYTES_16, BYTES_32))
    | st.tuples(st.just(ListTickets()), st.lists(TICKETS, max_size=4))
    | st.tuples(st.builds(RevokeTicket, BYTES_16), st.none())
    | st.tuples(st.builds(ReadNewest, U64), st.builds(Newest, U64, SPANS))
)
"""A request that is answered by one frame, and a reply that it may get."""

REQUESTS: st.SearchStrategy[Any] = CALLS.map(lambda call: call[0]) | st.builds(
    OpenWatch, BYTES, st.none() | U64, BOOLS, BOOLS
)

CHANGES = st.lists(st.builds(Change, BYTES, st.none() | BYTES, st.none() | BYTES), max_size=3).map(
    tuple
)


@st.composite
def _followed(draw: st.DrawFn) -> list[Any]:
    revision = 0
    told: list[Any] = []
    for step in draw(st.lists(st.integers(0, 9), max_size=6)):
        revision += step
        told.append(WatchEvent(revision, draw(CHANGES)) if step else WatchProgress(revision))
    return told


FOLLOWED = _followed()
"""Events and progress of a watch that was opened at revision 0, in order."""
