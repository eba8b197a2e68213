"""The server's end of every connection: hello, then requests handed to the client's session.

Nothing is served before a ticket was accepted. Each request runs in a task of its own, which ends
when its stream is reset, when its connection breaks, or at its deadline. One more task attends to
each connection, and hangs up on who shows no ticket and on whose session is over.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from aspenkv.access import Grant
from aspenkv.contract import Newest, Watch
from aspenkv.errors import (
    AccessDeniedError,
    AspenKvError,
    ClosedError,
    ConnectionLostError,
    EngineError,
    InvalidRequestError,
    ProtocolVersionError,
    UnavailableError,
)
from aspenkv.limits import (
    DRAIN_S,
    FAILURES_LOGGED_PER_S,
    HANG_UP_S,
    HELLO_BYTES_MAX,
    HELLO_TIMEOUT_S,
    SERVER_ID_BYTES,
    SESSION_REQUESTS_MAX,
    SLOTS_MAX,
    UNCOUNTED_REPLY_BYTES,
    WATCH_PROGRESS_S,
)
from aspenkv.protocol import (
    NO_REQUEST,
    VERSION,
    BadRequestError,
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
    Request,
    Revoke,
    RevokeTicket,
    Scan,
    Sync,
    WatchOpened,
    WatchProgress,
    decode_request,
    encode_error,
    encode_reply,
    encode_watch_message,
)
from aspenkv.quic import QuicConnection, QuicStream, StreamResetError
from aspenkv.quic.errors import MESSAGE_TOO_LARGE, NO_ERROR
from aspenkv.quic.rates import TokenBucket
from aspenkv.remote import RemoteSession
from aspenkv.service import Service
from aspenkv.tickets import Endpoint

log = logging.getLogger(__name__)

_MS_PER_S: Final = 1000

Answer = Callable[[RemoteSession, Any], Awaitable[Any]]


class _Peer:
    """What the listener keeps of one connection: its session, once a ticket was accepted.

    ``watches`` are those that are open, by the id of the request that opened each.
    """

    def __init__(self) -> None:
        self.session: RemoteSession | None = None
        self.watches: dict[int, Watch] = {}
        self.is_welcoming = False
        self.welcomed = trio.Event()
        self.attention = trio.CancelScope()


class Listener:
    """Answers the requests of all connections of one server; the QUIC driver calls its methods."""

    def __init__(self, service: Service) -> None:
        """Take the service behind it; :meth:`run` comes first."""
        self._service = service
        # Tells this process from the one before: each knows another ``started_revision``.
        self._server_id = secrets.token_bytes(SERVER_ID_BYTES)
        self._nursery: trio.Nursery | None = None
        self._requests = 0
        self._no_requests = trio.Event()
        self._is_draining = False
        self._failures = TokenBucket(FAILURES_LOGGED_PER_S, trio.current_time())
        self._unlogged = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Attend to connections until cancelled, which must not be before they are gone."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def connected(self, connection: QuicConnection) -> None:
        """Make room for what is kept of a connection."""
        assert self._nursery is not None, "run() comes first"
        connection.state = peer = _Peer()
        self._nursery.start_soon(_attend, connection, peer)

    def disconnected(self, connection: QuicConnection) -> None:
        """Tell the client's session that it has a connection less."""
        peer = _peer(connection)
        peer.attention.cancel()
        if peer.session is not None:
            peer.session.detach()

    async def handle(self, connection: QuicConnection, stream: QuicStream, frame: bytes) -> None:
        """Answer one request on the stream that it came by."""
        peer = _peer(connection)
        if peer.session is None and len(frame) > HELLO_BYTES_MAX:
            stream.reset(MESSAGE_TOO_LARGE)
            return
        try:
            request_id, deadline_ms, request = decode_request(frame)
        except BadRequestError as error:
            await stream.send(encode_error(error.request_id, error), end=True)
            return
        except ProtocolVersionError as error:
            await stream.send(encode_error(NO_REQUEST, error), end=True)
            return
        if isinstance(request, OpenWatch):
            await self._serve_watch(peer, stream, request_id, request)
            return
        self._requests += 1
        try:
            with trio.move_on_after(deadline_ms / _MS_PER_S) as patience:
                if isinstance(request, Hello):
                    await self._welcome(connection, peer, stream, request_id, request)
                else:
                    await self._answer(peer, stream, request_id, request, len(frame))
            if patience.cancelled_caught:
                stream.reset(NO_ERROR)
        finally:
            self._requests -= 1
            if not self._requests:
                self._no_requests.set()

    async def drain(self) -> None:
        """Refuse new requests, and return when those under way are answered, or after DRAIN_S.

        Watches end with their connections.
        """
        self._is_draining = True
        with trio.move_on_after(DRAIN_S):
            while self._requests:
                self._no_requests = trio.Event()
                await self._no_requests.wait()

    async def _answer(
        self, peer: _Peer, stream: QuicStream, request_id: int, request: Request, size_bytes: int
    ) -> None:
        try:
            session = self._session(peer)
            with session.request(size_bytes) as work:
                if isinstance(request, ReadNewest):
                    outcome = await _newest(peer, request)
                else:
                    outcome = await _CALLS[type(request)](session, request)
                reply = encode_reply(request_id, request, outcome)
                if len(reply) > UNCOUNTED_REPLY_BYTES:
                    work.add(len(reply))
                await stream.send(reply, end=True)
        except (ConnectionLostError, StreamResetError):
            raise
        except AspenKvError as error:
            if isinstance(error, EngineError):
                self._log(logging.WARNING, "a request failed: %s", error)
            await stream.send(encode_error(request_id, error), end=True)
        except Exception as error:  # noqa: BLE001 - it is logged, and all others go on
            name = type(request).__name__
            self._log(logging.ERROR, "a request of type %s failed", name, exc_info=error)
            failure = EngineError("internal error of the server: its log says more")
            await stream.send(encode_error(request_id, failure), end=True)

    def _log(
        self, level: int, text: str, *arguments: object, exc_info: Exception | None = None
    ) -> None:
        """Log a failure, of which a client may cause more than a log should hold."""
        if not self._failures.take(trio.current_time()):
            self._unlogged += 1
            return
        if self._unlogged:
            log.info("%d more failures were not logged", self._unlogged)
            self._unlogged = 0
        log.log(level, text, *arguments, exc_info=exc_info)

    def _session(self, peer: _Peer) -> RemoteSession:
        if self._is_draining:
            raise UnavailableError("the server is about to end: ask another, or later")
        if peer.session is None:
            raise AccessDeniedError("no ticket was shown on this connection")
        return peer.session

    async def _welcome(
        self,
        connection: QuicConnection,
        peer: _Peer,
        stream: QuicStream,
        request_id: int,
        hello: Hello,
    ) -> None:
        try:
            if self._is_draining:
                raise UnavailableError("the server is about to end: ask another, or later")
            if peer.session is not None or peer.is_welcoming:
                raise AccessDeniedError("a ticket was already shown on this connection")
            peer.is_welcoming = True
            grant = self._service.authenticate(hello.ticket_id, hello.secret)
            session = await self._service.attach(
                hello.session, hello.ticket_id, grant, hello.client, _address(connection)
            )
        except AspenKvError as error:
            self._log(logging.INFO, "refused a client at %s: %s", _address(connection), error)
            await stream.send(encode_error(request_id, error), end=True)
            return
        if connection.closed.is_set():  # meanwhile
            session.detach()
            return
        peer.session = session
        peer.welcomed.set()
        connection.admit()
        reply = HelloReply(
            server_id=self._server_id,
            version=VERSION,
            prefix=grant.prefix,
            can_write=grant.can_write,
            is_admin=grant.is_admin,
            session_is_new=session.is_new,
            started_revision=session.started_revision,
            slots_max=SLOTS_MAX,
            requests_max=SESSION_REQUESTS_MAX,
        )
        await stream.send(encode_reply(request_id, hello, reply), end=True)

    async def _serve_watch(
        self, peer: _Peer, stream: QuicStream, request_id: int, request: OpenWatch
    ) -> None:
        """Send events until the client resets the stream; the driver then cancels this task."""
        try:
            session = self._session(peer)
            if request_id in peer.watches:
                raise InvalidRequestError(f"request {request_id} has opened a watch already")
            async with session.watch(
                request.prefix,
                request.from_revision,
                values=request.values,
                skip_own=request.skip_own,
            ) as watch:
                peer.watches[request_id] = watch
                try:
                    await _send_events(watch, stream)
                finally:
                    del peer.watches[request_id]
        except (ConnectionLostError, StreamResetError):
            raise
        except AspenKvError as error:
            await stream.send(encode_watch_message(error), end=True)


async def _send_events(watch: Watch, stream: QuicStream) -> None:
    """Send what a watch sees; where nothing comes for a while, how far it has seen."""
    told = watch.revision
    await stream.send(encode_watch_message(WatchOpened(told)))
    events = aiter(watch)
    patience_s = 0.0  # first what was missed, and at once how far that reaches
    while True:
        event = None
        with trio.move_on_after(patience_s):  # and no more: what was taken must be sent, and whole
            event = await anext(events)
        if event is not None:
            told = event.revision
            await stream.send(encode_watch_message(event))
            continue
        patience_s = WATCH_PROGRESS_S
        if watch.revision > told:
            told = watch.revision
            await stream.send(encode_watch_message(WatchProgress(told)))


async def _attend(connection: QuicConnection, peer: _Peer) -> None:
    """Hang up on a client that shows no ticket in time, or whose session is over."""
    with peer.attention:  # ends with the connection
        with trio.move_on_after(HELLO_TIMEOUT_S):
            await peer.welcomed.wait()
        if peer.session is None:
            connection.close(NO_ERROR, "no ticket was shown in time")
            return
        await peer.session.ended.wait()
        await trio.sleep(HANG_UP_S)  # every call is answered with the reason
        connection.close(NO_ERROR, str(peer.session.failure))


def _peer(connection: QuicConnection) -> _Peer:
    peer = connection.state
    assert isinstance(peer, _Peer), "connected() comes first"
    return peer


def _address(connection: QuicConnection) -> str:
    host, port = connection.peer_address[:2]
    return str(Endpoint(host, port))


async def _newest(peer: _Peer, request: ReadNewest) -> Newest:
    watch = peer.watches.get(request.watch)
    if watch is None:
        raise ClosedError("no such watch is open on this connection: it has ended")
    return await watch.newest()


async def _get(session: RemoteSession, request: Get) -> object:
    return await session.get(request.keys, bulk=request.bulk)


async def _scan(session: RemoteSession, request: Scan) -> object:
    return await session.scan(
        request.start,
        request.end,
        limit=request.limit,
        keys_only=request.keys_only,
        reverse=request.reverse,
        continuation=request.continuation,
    )


async def _commit(session: RemoteSession, request: Commit) -> object:
    return await session.commit(request.checks, request.ops, request.slot)


async def _lease(session: RemoteSession, request: GrantLease) -> object:
    return await session.lease(request.ttl_s)


async def _keepalive(session: RemoteSession, request: Keepalive) -> None:
    await session.keepalive(request.lease)


async def _revoke(session: RemoteSession, request: Revoke) -> None:
    await session.revoke(request.lease)


async def _revision(session: RemoteSession, _request: ReadRevision) -> object:
    return await session.revision()


async def _sync(session: RemoteSession, _request: Sync) -> None:
    await session.sync()


async def _status(session: RemoteSession, _request: ReadStatus) -> object:
    return await session.status()


async def _bye(session: RemoteSession, _request: Bye) -> None:
    await session.end()


async def _create_ticket(session: RemoteSession, request: CreateTicket) -> object:
    grant = Grant(request.prefix, can_write=request.can_write, is_admin=request.is_admin)
    return await session.create_ticket(grant, label=request.label, expires_s=request.expires_s)


async def _list_tickets(session: RemoteSession, _request: ListTickets) -> object:
    return await session.list_tickets()


async def _revoke_ticket(session: RemoteSession, request: RevokeTicket) -> None:
    await session.revoke_ticket(request.ticket_id)


_CALLS: Final[dict[type, Answer]] = {
    Get: _get,
    Scan: _scan,
    Commit: _commit,
    GrantLease: _lease,
    Keepalive: _keepalive,
    Revoke: _revoke,
    ReadRevision: _revision,
    Sync: _sync,
    ReadStatus: _status,
    Bye: _bye,
    CreateTicket: _create_ticket,
    ListTickets: _list_tickets,
    RevokeTicket: _revoke_ticket,
}
