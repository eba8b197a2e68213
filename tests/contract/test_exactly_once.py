"""A client over a network that loses, repeats and delays, to a server that dies now and then.

Each commit adds 1 to a counter of its own, so that doing it twice shows.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aspenkv.contract import ABSENT, Add, Check, CommitResult, Delete, Op, Put, RevisionIs, SlotUse
from aspenkv.embedded import open_embedded
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.errors import LeaseNotFoundError, StaleSequenceError
from aspenkv.service import RemoteSession, Service
from tests.contract.clients import enter, make_ticket
from tests.contract.directories import new_directory
from tests.model.portal import Portal

SLOTS = 3
CONNECTIONS = 2
ID = b"N" * 16
SWITCH = b"fs:a:switch"
NO_LEASE_OF_OURS = 4711

Answer = CommitResult | type[LeaseNotFoundError]


class Request(NamedTuple):
    """A commit: ``kind`` says what it depends on, ``size`` whether the engine uses a thread."""

    use: SlotUse
    number: int
    kind: str
    size: int

    @property
    def key(self) -> bytes:
        return b"fs:a:%d" % self.number

    def parts(self) -> tuple[list[Check], list[Op]]:
        checks: list[Check] = [RevisionIs(SWITCH, ABSENT)] if self.kind == "switch" else []
        ops: list[Op] = [Add(self.key, 1), Put(b"fs:a:value", bytes(self.size))]
        if self.kind == "lease":
            ops.append(Put(b"fs:a:leased", b"", NO_LEASE_OF_OURS))
        return checks, ops


class Arrival(NamedTuple):
    """How a request reaches the server, and whether its answer reaches the client."""

    pick: int
    connection: int
    cancelled_after: int | None
    is_answered: bool


arrivals = st.builds(
    Arrival,
    st.integers(0, 1000),
    st.integers(0, CONNECTIONS - 1),
    st.one_of(st.none(), st.integers(0, 4)),
    st.booleans(),
)


@asynccontextmanager
async def serve(directory: Any) -> AsyncIterator[Service]:
    async with RocksdbEngine.open(directory / "data") as engine, open_embedded(engine) as service:
        yield service


class ExactlyOnce(RuleBasedStateMachine):
    """Whatever happens, a commit is done at most once, and as its client was told."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = new_directory()
        self.portal = Portal()
        self.newest: dict[int, Request] = {}
        self.requests: list[Request] = []
        self.under_way: list[Request] = []
        self.answers: dict[int, Answer] = {}
        self.settled: dict[int, int] = {}
        self.open()
        self.ticket = self.portal.run(make_ticket(self.service))
        self.connect()
        assert self.connections[0].is_new

    def open(self) -> None:
        self.service, self.hosted = self.portal.enter(serve(self.directory))

    def connect(self) -> None:
        self.connections: list[RemoteSession] = [
            self.portal.run(enter(self.service, self.ticket, ID)) for _ in range(CONNECTIONS)
        ]

    def is_open(self, request: Request) -> bool:
        """Tell whether the client still waits for the answer to a request."""
        return self.newest[request.use.slot] == request and request.number not in self.answers

    @rule(
        slot=st.integers(0, SLOTS - 1),
        kind=st.sampled_from(["plain", "plain", "switch", "lease"]),
        size=st.sampled_from([0, 0, 200_000]),
    )
    def send(self, slot: int, kind: str, size: int) -> None:
        """Use a slot anew, giving up what it carried if that was not answered."""
        last = self.newest.get(slot)
        sequence = 1 if last is None else last.use.sequence + 1
        request = Request(SlotUse(slot, sequence), len(self.requests), kind, size)
        self.requests.append(request)
        self.newest[slot] = request
        self.under_way.append(request)

    @precondition(lambda self: self.under_way)
    @rule(some=st.lists(arrivals, min_size=1, max_size=4))
    def arrive(self, some: list[Arrival]) -> None:
        """Let requests that were sent, some of them before, reach the server at once."""
        self.portal.run(self.arrive_together(some))

    async def arrive_together(self, some: list[Arrival]) -> None:
        async with trio.open_nursery() as nursery:
            for each in some:
                request = self.under_way[each.pick % len(self.under_way)]
                nursery.start_soon(self.arrive_one, request, each)

    async def arrive_one(self, request: Request, arrival: Arrival) -> None:
        answer: Answer | None = None
        async with trio.open_nursery() as nursery:

            async def serve_one() -> None:
                nonlocal answer
                session = self.connections[arrival.connection]
                try:
                    answer = await session.commit(*request.parts(), request.use)
                except LeaseNotFoundError:
                    answer = LeaseNotFoundError
                except StaleSequenceError:
                    newest = self.newest[request.use.slot]
                    assert newest.use.sequence > request.use.sequence

            nursery.start_soon(serve_one)
            if arrival.cancelled_after is not None:
                for _ in range(arrival.cancelled_after):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        if answer is not None:
            if request.number in self.answers:
                assert self.answers[request.number] == answer
            elif arrival.is_answered and self.newest[request.use.slot] == request:
                self.answers[request.number] = answer

    @rule()
    def turn_the_switch(self) -> None:
        """Make checks fail that held, or hold that failed."""

        async def turn() -> None:
            kv = self.service.connect()
            (found,) = await kv.get([SWITCH])
            await kv.commit([], [Put(SWITCH, b"") if found is None else Delete(SWITCH)])

        self.portal.run(turn())

    @rule()
    def restart_the_server(self) -> None:
        """With its connections goes what was under way; the client repeats what it waits for."""
        self.portal.exit(self.hosted)
        self.open()
        self.connect()
        assert not self.connections[0].is_new
        self.under_way = [each for each in self.newest.values() if self.is_open(each)]

    @invariant()
    def done_at_most_once_and_as_told(self) -> None:
        found = self.portal.run(
            self.service.connect().get([request.key for request in self.requests])
        )
        for request, value in zip(self.requests, found, strict=True):
            times = 0 if value is None else int.from_bytes(value.value, "little")
            assert times <= 1
            answer = self.answers.get(request.number)
            if isinstance(answer, CommitResult) and answer.failed_check is None:
                assert value is not None
                assert value.revision == answer.revision
            elif answer is not None:
                assert times == 0
            newest = self.newest[request.use.slot]
            if newest != request and newest.number in self.answers:
                # It was given up, and the slot has moved on: nothing may become of it any more.
                assert self.settled.setdefault(request.number, times) == times

    def teardown(self) -> None:
        try:
            self.portal.exit(self.hosted)
        finally:
            self.portal.close()
            shutil.rmtree(self.directory)


TestExactlyOnce = ExactlyOnce.TestCase
