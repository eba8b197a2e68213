"""A server answers whatever frames come. The first byte chooses the client's rights."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, NamedTuple

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenkv.access import Grant
from aspenkv.contract import CreatedTicket, Put, Versioned
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import (
    AspenKvError,
    EngineError,
    InvalidRequestError,
    ProtocolVersionError,
    RemoteProtocolError,
)
from aspenkv.limits import HELLO_BYTES_MAX, LEASE_TTL_S_MAX
from aspenkv.listen import Listener
from aspenkv.protocol import (
    NO_REQUEST,
    VERSION,
    BadRequestError,
    Get,
    GrantLease,
    Hello,
    OpenWatch,
    ReadRevision,
    Request,
    WatchDecoder,
    decode_reply,
    decode_request,
    encode_request,
)
from aspenkv.quic.errors import MESSAGE_TOO_LARGE
from fuzz.examples import examples
from fuzz.quiet import quiet_log
from fuzz.requests import Chooser
from fuzz.steps import STEPS_MAX, Source, Step, decode_steps, encode_steps
from fuzz.streams import Connection, Stream

_GRANTS: Final = (
    None,
    Grant(b"fs:a:", can_write=True, is_admin=False),
    Grant(b"fs:a:", can_write=False, is_admin=False),
    Grant(b"", can_write=True, is_admin=True),
)
_NEIGHBOUR: Final = Grant(b"fs:b:", can_write=True, is_admin=False)
_MINE: Final = b"fs:a:key"
_THEIRS: Final = b"fs:b:key"
_HIDDEN: Final = b"what no other volume may see"
_SESSION: Final = b"S" * 16
_DEADLINE_MS: Final = 10_000
_WAIT_S_MAX: Final = LEASE_TTL_S_MAX / STEPS_MAX  # so that the neighbour's lease goes on

_KINDS: Final = 7
_FRAME, _REQUEST, _REQUEST_BESIDE, _HELLO, _HELLO_BESIDE, _HANG_UP, _WAIT = range(_KINDS)
_ENTER: Final = [Step(_HELLO, b""), Step(_HELLO_BESIDE, b"")]
_DRAWN: Final = [bytes((kind, choice)) * 12 for kind in range(16) for choice in (4, 5)]

# As fuzz.requests reads them: kind, what belongs to it, deadline.
_PUT: Final = b"\x02\0\1\0\4\1v"
_FIRST: Final = _PUT + b"\0\1\0\1\5"  # without a lease; slot 0, sequence 1
_SECOND: Final = _PUT + b"\0\1\0\2\5"
_LEASE: Final = b"\x05\3\5"
_OTHERS: Final = b"\x0a"  # the lease of nobody, and one that the client was granted before
_OWN: Final = b"\x0b"
_RANGE: Final = b"\x02\0\1\2\3\6\0\5"
_WATCH: Final = b"\x03\0\3\1\0\5"
_NEWEST: Final = b"\x0a\1\5"  # of the watch that request 1 has opened

SEEDS: Final = [
    *(b"\0" + encode_steps([Step(_FRAME, frame)]) for frame in examples("request")),
    *(
        bytes((grant,)) + encode_steps([*_ENTER, Step(_FRAME, frame), Step(_REQUEST, drawn)])
        for grant in (1, 2, 3)
        for frame, drawn in zip(2 * examples("request"), _DRAWN, strict=False)
    ),
    *(
        b"\1" + encode_steps([*_ENTER, *(Step(_REQUEST_BESIDE, drawn) for drawn in row)])
        for row in (
            _DRAWN[:12],
            [_FIRST, _FIRST, _SECOND, _FIRST],
            [_WATCH, _FIRST, _NEWEST, _RANGE, _WATCH, _NEWEST],
            [_LEASE, _PUT + _OWN + b"\0\5", b"\x06" + _OWN + b"\5", _RANGE, b"\7" + _OWN + b"\5"],
            [_LEASE, _PUT + _OWN + b"\0\5", b"\7" + _OWN + b"\5"],
            [_PUT + _OTHERS + b"\0\5", b"\x06" + _OTHERS + b"\5", b"\7" + _OTHERS + b"\5"],
        )
    ),
    b"\1" + encode_steps([*_ENTER, *(Step(_REQUEST, drawn) for drawn in (_FIRST, _FIRST))]),
    b"\1" + encode_steps([*_ENTER, Step(_REQUEST, _DRAWN[6]), Step(_HANG_UP, b""), *_ENTER]),
    b"\3" + encode_steps([*_ENTER, Step(_REQUEST, _DRAWN[4]), Step(_WAIT, b"\x10")]),
]


def check(data: bytes) -> None:
    """Every frame is answered, by an error of the tree or within the ticket's rights.

    A ticket for one volume neither sees nor changes another, a reader changes nothing, and who has
    shown no ticket reaches nothing at all; nothing is logged, and the neighbour is served.
    """
    with quiet_log():
        trio.run(_serve, data, clock=MockClock(autojump_threshold=0))


async def _serve(data: bytes) -> None:
    engine = MemoryEngine()
    async with open_embedded(engine, now_ns=lambda: 10**18) as service, trio.open_nursery() as own:
        listener = Listener(service)
        await own.start(listener.run)
        kv = service.connect(process_bound=False)
        await kv.commit([], [Put(_MINE, b"mine"), Put(_THEIRS, _HIDDEN), Put(b"z", _HIDDEN)])
        lease = await kv.lease(LEASE_TTL_S_MAX)
        grant = _GRANTS[data[0] % len(_GRANTS)] if data else None
        ticket = None
        if grant is not None:
            ticket = await service.create_ticket(grant, label="hostile", expires_s=None)
        neighbour = await service.create_ticket(_NEIGHBOUR, label="other", expires_s=None)
        before = await _out_of_reach(engine, grant)
        records = await service.store.server_records(b"")
        client = _Client(listener, own, ticket, [lease])
        for step in decode_steps(data[1:]):
            await client.take(step)
        await _settle()
        is_admin = grant is not None and grant.is_admin
        client.check_replies(sees_all=is_admin)
        assert await _out_of_reach(engine, grant) == before
        if grant is None:
            assert await service.store.server_records(b"") == records
        if not is_admin:  # who may have taken the ticket back
            await _check_neighbour(listener, own, neighbour)
        await listener.drain()
        client.hang_up()
        await _settle()
        own.cancel_scope.cancel()


async def _settle() -> None:
    """Let every task run until it waits for time to pass."""
    await wait_all_tasks_blocked()


async def _out_of_reach(engine: MemoryEngine, grant: Grant | None) -> list[tuple[bytes, Versioned]]:
    """Return all records that a client with these rights may not change."""
    page = await engine.scan(b"", b"\xff" * 2000, limit=1000, keys_only=False, reverse=False)
    assert page.continuation is None, "an input writes few"
    return [
        (key, Versioned(value, revision))
        for key, value, revision in page.records
        if grant is None or not grant.can_write or not key.startswith(grant.prefix)
    ]


async def _check_neighbour(
    listener: Listener, nursery: trio.Nursery, ticket: CreatedTicket
) -> None:
    """Check that another client is served."""
    connection = Connection(listener, nursery)
    hello = Hello(*ticket, b"N" * 16, "neighbour", VERSION)
    get = Get((_THEIRS,), bulk=False)
    welcome = connection.ask(encode_request(1, _DEADLINE_MS, hello))
    await _settle()
    decode_reply(welcome.sent, 1, hello)
    found = connection.ask(encode_request(2, _DEADLINE_MS, get))
    await _settle()
    assert decode_reply(found.sent, 2, get) == [Versioned(_HIDDEN, 1)]
    connection.close()


class _Asked(NamedTuple):
    frame: bytes
    stream: Stream
    is_known: bool
    """Whether the connection had shown a ticket when the frame came."""


class _Client:
    """Two connections of one client session, which may show a ticket."""

    def __init__(
        self,
        listener: Listener,
        nursery: trio.Nursery,
        ticket: CreatedTicket | None,
        leases: list[int],
    ) -> None:
        self._listener = listener
        self._nursery = nursery
        self._ticket = ticket
        self._leases = leases
        self._connections = [Connection(listener, nursery), Connection(listener, nursery)]
        self._asked: list[_Asked] = []

    async def take(self, step: Step) -> None:
        """Do what a step says."""
        kind = step.kind % _KINDS
        if kind == _WAIT:
            await trio.sleep(sum(step.content) % _WAIT_S_MAX)
        elif kind == _HANG_UP:
            self._connections[len(step.content) % 2].close()
        elif kind in (_HELLO, _HELLO_BESIDE):
            self._show_ticket(kind - _HELLO)
        elif kind == _FRAME:
            self._ask(0, step.content)
        else:
            self._draw(kind - _REQUEST, Source(step.content))
        if kind != _REQUEST:  # several of these are under way at once
            await _settle()
            self._learn_leases()

    def hang_up(self) -> None:
        """Close both connections."""
        for connection in self._connections:
            connection.close()

    def check_replies(self, *, sees_all: bool) -> None:
        """Check what came back on every stream."""
        for asked in self._asked:
            assert sees_all or _HIDDEN not in asked.stream.sent
            _check_reply(asked)

    def _ask(self, index: int, frame: bytes) -> None:
        connection = self._connections[index]
        if connection.closed.is_set():
            connection = self._connections[index] = Connection(self._listener, self._nursery)
        is_known = connection.is_admitted
        self._asked.append(_Asked(frame, connection.ask(frame), is_known))

    def _show_ticket(self, index: int) -> None:
        if self._ticket is not None:
            hello = Hello(*self._ticket, _SESSION, "hostile", VERSION)
            self._ask(index, encode_request(1, _DEADLINE_MS, hello))

    def _draw(self, index: int, source: Source) -> None:
        ticket_ids = [] if self._ticket is None else [self._ticket.ticket_id]
        chooser = Chooser(source, self._leases, ticket_ids)
        request, deadline_ms = chooser.request(), chooser.number()
        try:
            frame = encode_request(1, deadline_ms, request)
        except InvalidRequestError:
            return
        self._ask(index, frame)

    def _learn_leases(self) -> None:
        """Know the leases that were granted, so that requests can name them."""
        frame, stream, _ = self._asked[-1] if self._asked else (b"", Stream(), False)
        with suppress(AspenKvError):
            request_id, _, request = decode_request(frame)
            if isinstance(request, GrantLease):
                lease = decode_reply(stream.sent, request_id, request)
                assert isinstance(lease, int)
                self._leases.append(lease)


def _check_reply(asked: _Asked) -> None:
    """Check that the reply is one, or an error that the client deserves."""
    frame, stream, is_known = asked
    if not is_known and len(frame) > HELLO_BYTES_MAX:
        assert stream.reset_code == MESSAGE_TOO_LARGE
        return
    request: Request = ReadRevision()
    try:
        request_id, _, request = decode_request(frame)
    except BadRequestError as error:
        request_id = error.request_id
    except ProtocolVersionError:
        request_id = NO_REQUEST
    if isinstance(request, OpenWatch):
        _check_watch(stream)
        return
    if stream.reset_code is not None:  # its time was over, or its connection
        return
    assert stream.is_ended, f"{request} was not answered"
    try:
        decode_reply(stream.sent, request_id, request)
    except (EngineError, RemoteProtocolError):
        raise
    except AspenKvError:
        pass  # what the server answered


def _check_watch(stream: Stream) -> None:
    if not stream.sent:
        assert stream.reset_code is not None, "a watch was not answered"
        return
    try:
        WatchDecoder().receive_data(stream.sent)
    except RemoteProtocolError:
        raise
    except AspenKvError:
        assert stream.is_ended
