"""The server's end of connections: what clients are told that keep to the protocol."""

from __future__ import annotations

import logging
import re

import pytest
import trio

from aspenkv import limits
from aspenkv.access import Grant
from aspenkv.contract import Put, WatchEvent
from aspenkv.errors import (
    AccessDeniedError,
    BusyError,
    ClosedError,
    EngineError,
    InvalidRequestError,
    ProtocolVersionError,
    TicketRevokedError,
    UnavailableError,
    WatchGapError,
)
from aspenkv.protocol import (
    NO_REQUEST,
    VERSION,
    Bye,
    Commit,
    Get,
    Hello,
    ReadNewest,
    ReadRevision,
    ReadStatus,
    Sync,
    WatchOpened,
    WatchProgress,
    decode_reply,
    encode_request,
)
from aspenkv.quic import StreamResetError
from aspenkv.quic.errors import INTERNAL_ERROR, NO_ERROR
from tests.unit.aspenkv.ends import Host, RawClient

pytestmark = pytest.mark.usefixtures("virtual_time")

SESSION = b"S" * 16
VOLUME = Grant(b"fs:a:", can_write=True, is_admin=False)


class Stuck:
    """Stands in for a call of the service that does not return before it is let go."""

    def __init__(self) -> None:
        self.running = 0
        self.begun = trio.Event()
        self.let_go = trio.Event()

    async def __call__(self) -> None:
        self.running += 1
        self.begun.set()
        try:
            await self.let_go.wait()
        finally:
            self.running -= 1


@pytest.fixture
def stuck_sync(monkeypatch: pytest.MonkeyPatch) -> Stuck:
    stuck = Stuck()
    monkeypatch.setattr("aspenkv.remote.RemoteSession.sync", stuck)
    return stuck


def connections_of(host: Host) -> list[int]:
    return [session.connections for session in host.service._admission.sessions]


# --- hello ---------------------------------------------------------------------------------------


async def test_hello_says_what_the_ticket_opens(host: Host) -> None:
    await host.service.connect().commit([], [Put(b"key", b"")])
    ticket = await host.make_ticket(VOLUME)
    async with host.connect() as client, host.connect() as second:
        hello = await client.hello(ticket, SESSION, "a name")
        assert (hello.prefix, hello.can_write, hello.is_admin) == VOLUME
        assert (hello.version, hello.started_revision) == (VERSION, 0)
        assert (hello.slots_max, hello.requests_max) == (
            limits.SLOTS_MAX,
            limits.SESSION_REQUESTS_MAX,
        )
        assert hello.session_is_new
        again = await second.hello(ticket, SESSION, "a name")
        assert again == hello._replace(session_is_new=False)
        (session,) = (await client.ask(ReadStatus())).sessions
        assert (session.client, session.connections) == ("a name", 2)
    await trio.sleep(1)
    assert connections_of(host) == [0]


async def test_a_connection_that_shows_no_ticket_is_closed(host: Host) -> None:
    began_at = trio.current_time()
    async with host.connect() as client:
        await client.connection.closed.wait()
        assert 0 <= trio.current_time() - began_at - limits.HELLO_TIMEOUT_S < 1
    assert not host.server.connections


async def test_a_connection_that_showed_its_ticket_stays(host: Host) -> None:
    async with host.enter() as client:
        await trio.sleep(10 * limits.HELLO_TIMEOUT_S)
        await client.ask(ReadRevision())


@pytest.mark.parametrize("gives_up_by", ["connection", "stream"])
async def test_a_client_that_leaves_while_it_is_let_in_is_not_counted(
    host: Host, monkeypatch: pytest.MonkeyPatch, gives_up_by: str
) -> None:
    ticket = await host.make_ticket()
    attach, entered, may_enter = host.service.attach, trio.Event(), trio.Event()

    sessions: list[object] = []

    async def slow_attach(*arguments: object) -> object:
        entered.set()
        with trio.CancelScope(shield=True):  # as if it were past its last await
            await may_enter.wait()
            sessions.append(await attach(*arguments))  # type: ignore[arg-type]
        return sessions[0]

    monkeypatch.setattr(host.service, "attach", slow_attach)
    async with host.connect() as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.hello, ticket)
        await entered.wait()
        nursery.cancel_scope.cancel()
        if gives_up_by == "connection":
            client.connection.close()
    await trio.sleep(1)
    may_enter.set()
    await trio.sleep(1)
    await trio.sleep(1)
    assert connections_of(host) == [0]


async def test_another_version_is_told_so(host: Host) -> None:
    async with host.connect() as client:
        frame = encode_request(1, 1000, ReadRevision())
        assert frame[1] == VERSION
        for version in (0, VERSION + 1):
            reply = await client.send(frame[:1] + bytes((version,)) + frame[2:])
            with pytest.raises(ProtocolVersionError):
                decode_reply(reply, NO_REQUEST, ReadRevision())


# --- requests ------------------------------------------------------------------------------------


async def test_a_reply_that_is_too_large_is_an_error_of_its_own(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.service.connect().commit([], [Put(b"key", bytes(10_000))])
    monkeypatch.setattr("aspenkv.protocol.replies.REPLY_BYTES_MAX", 9_000)
    async with host.enter() as client:
        with pytest.raises(InvalidRequestError):
            await client.ask(Get((b"key",), bulk=False))
        assert (await client.ask(Get((b"absent",), bulk=False))) == [None]


async def test_a_request_ends_at_its_deadline(host: Host, stuck_sync: Stuck) -> None:
    async with host.enter() as client:
        began_at = trio.current_time()
        with pytest.raises(StreamResetError) as caught:
            await client.ask(Sync(), deadline_ms=2_500)
        assert caught.value.code == NO_ERROR
        assert 2.4 < trio.current_time() - began_at < 2.6
        assert not stuck_sync.running
        await client.ask(ReadRevision())


async def test_a_request_ends_when_its_client_gives_it_up(host: Host, stuck_sync: Stuck) -> None:
    async with host.enter() as client:
        with trio.move_on_after(1):
            await client.ask(Sync())
        await trio.sleep(1)
        assert stuck_sync.begun.is_set()
        assert not stuck_sync.running
        await client.ask(ReadRevision())


async def test_requests_end_with_their_connection(host: Host, stuck_sync: Stuck) -> None:
    async with host.enter() as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.ask, Sync())
        watch = await client.watch()
        await watch.read(1)
        await stuck_sync.begun.wait()
        nursery.cancel_scope.cancel()
        client.connection.close()
    await trio.sleep(1)
    assert not stuck_sync.running
    status = host.service.status()
    assert (status.watches, status.sessions) == (0, ())


async def test_more_than_a_session_may_have_under_way_is_too_busy(
    host: Host, monkeypatch: pytest.MonkeyPatch, stuck_sync: Stuck
) -> None:
    monkeypatch.setattr("aspenkv.sessions.SESSION_REQUESTS_MAX", 2)
    async with host.enter() as client, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(client.ask, Sync())
        await trio.sleep(1)
        with pytest.raises(BusyError):
            await client.ask(ReadRevision())
        stuck_sync.let_go.set()
        await trio.sleep(1)
        await client.ask(ReadRevision())


async def test_a_reply_for_which_there_is_no_room_is_too_busy(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenkv.sessions.SESSION_BYTES_MAX", 20_000)
    await host.service.connect().commit([], [Put(b"key", bytes(30_000)), Put(b"small", b"")])
    async with host.enter() as client:
        with pytest.raises(BusyError):
            await client.ask(Get((b"key",), bulk=False))
        assert await client.ask(Get((b"small",), bulk=False)) == [(b"", 1)]


@pytest.mark.logs("a request of type ReadRevision failed")
async def test_a_bug_ends_one_request(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise LookupError("a bug with a secret in its message")

    async with host.enter() as client:
        with monkeypatch.context() as patch:
            patch.setattr(host.service.store, "revision", fail)
            with pytest.raises(EngineError, match="internal error") as caught:
                await client.ask(ReadRevision())
        assert "secret" not in str(caught.value)
        await client.ask(ReadRevision())


@pytest.mark.logs("a request failed: the disk is gone")
async def test_a_failure_of_the_engine_is_logged_and_told(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_session: object) -> None:
        raise EngineError("the disk is gone")

    monkeypatch.setattr("aspenkv.remote.RemoteSession.sync", fail)
    async with host.enter() as client:
        with pytest.raises(EngineError, match="the disk is gone"):
            await client.ask(Sync())


@pytest.mark.logs("a request failed: the disk is full")
async def test_the_log_does_not_grow_with_every_failure(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_session: object) -> None:
        raise EngineError("the disk is full")

    caplog.set_level(logging.INFO, logger="aspenkv.listen")
    monkeypatch.setattr("aspenkv.remote.RemoteSession.sync", fail)
    async with host.enter() as client:
        for calls, logged in ((100, limits.FAILURES_LOGGED_PER_S), (1, 2)):
            caplog.clear()
            for _ in range(calls):
                with pytest.raises(EngineError):
                    await client.ask(Sync())
            assert len(caplog.messages) <= logged + 2
            await trio.sleep(1)
    first, second = caplog.messages
    assert re.fullmatch("[0-9]{2} more failures were not logged", first)
    assert second == "a request failed: the disk is full"


# --- the end of sessions -------------------------------------------------------------------------


async def test_bye_is_answered_before_the_server_hangs_up(host: Host) -> None:
    ticket = await host.make_ticket()
    async with host.connect() as client, host.connect() as second:
        await client.hello(ticket, SESSION)
        await second.hello(ticket, SESSION)
        await client.ask(Bye())
        with pytest.raises(ClosedError):
            await second.ask(ReadRevision())
        with trio.fail_after(2 * limits.HANG_UP_S):
            await client.connection.closed.wait()
            await second.connection.closed.wait()
        assert connections_of(host) == []


async def test_a_revoked_ticket_ends_calls_and_watches_and_says_so(host: Host) -> None:
    ticket = await host.make_ticket(VOLUME)
    async with host.connect() as client:
        await client.hello(ticket)
        watch = await client.watch(b"fs:a:")
        await watch.read(1)
        await host.service.revoke_ticket(ticket.ticket_id)
        with pytest.raises(TicketRevokedError):
            await client.ask(ReadRevision())
        with pytest.raises(TicketRevokedError):
            await watch.read(1)
        with trio.fail_after(2 * limits.HANG_UP_S):
            await client.connection.closed.wait()
        assert "revoked" in str(client.connection.close_reason)


# --- watches -------------------------------------------------------------------------------------


async def test_a_watch_is_told_at_once_how_far_what_it_missed_reaches(host: Host) -> None:
    kv = host.service.connect()
    await kv.commit([], [Put(b"fs:a:1", b"")])
    await kv.commit([], [Put(b"elsewhere", b"")])
    async with host.enter() as client:
        began_at = trio.current_time()
        watch = await client.watch(b"fs:a:", 0)
        opened, event, progress = await watch.read(3)
        assert (opened, progress) == (WatchOpened(0), WatchProgress(2))
        assert event.revision == 1
        assert trio.current_time() - began_at < 0.1


async def test_a_watch_without_events_is_told_of_progress_now_and_then(host: Host) -> None:
    async with host.enter() as client:
        watch = await client.watch(b"fs:a:")
        assert await watch.read(1) == [WatchOpened(0)]
        for _ in range(10):
            await client.ask(Commit((), (Put(b"elsewhere", b""),), None))
        assert await watch.read(1) == [WatchProgress(10)]
        with trio.move_on_after(10 * limits.WATCH_PROGRESS_S):
            pytest.fail(f"unexpected {await watch.read(1)}")


async def test_no_event_is_lost_while_the_client_reads_nothing(host: Host) -> None:
    """The sending of one message takes longer than the time between two reports of progress."""
    size, count = 1_000_000, 8
    async with host.enter() as client:
        watch = await client.watch(values=True)
        await watch.read(1)
        kv = host.service.connect()
        for revision in range(1, count + 1):
            await kv.commit([], [Put(b"key", bytes((revision,)) * size)])
            await trio.sleep(2 * limits.WATCH_PROGRESS_S)
        events = [each for each in await watch.read(count) if isinstance(each, WatchEvent)]
        assert [each.revision for each in events] == list(range(1, count + 1))
        assert all(each.changes[0].value == bytes((each.revision,)) * size for each in events)


async def test_a_watch_that_is_refused_says_why(host: Host) -> None:
    async with host.enter(VOLUME) as client:
        for prefix, error in (
            (b"", AccessDeniedError),
            (b"fs:a:" + b"k" * limits.KEY_BYTES_MAX, InvalidRequestError),
        ):
            with pytest.raises(error):
                await (await client.watch(prefix)).read(1)
        with pytest.raises(WatchGapError):
            await (await client.watch(b"fs:a:", 99)).read(1)


async def test_the_newest_commit_is_that_of_the_watch_asked_about(host: Host) -> None:
    kv = host.service.connect()
    async with host.enter() as client, host.enter() as stranger:
        a, b = await client.watch(b"fs:a:"), await client.watch(b"fs:b:")
        await a.read(1)
        await b.read(1)
        await kv.commit([], [Put(b"fs:a:1", b"")])
        await kv.commit([], [Put(b"fs:b:1", b"")])
        assert (await client.ask(ReadNewest(a.request_id))).revision == 1
        assert (await client.ask(ReadNewest(b.request_id))).revision == 2
        for asking, number in ((client, 99), (stranger, a.request_id)):
            with pytest.raises(ClosedError, match="no such watch"):
                await asking.ask(ReadNewest(number))
        a.stream.reset(NO_ERROR)
        await trio.sleep(1)
        with pytest.raises(ClosedError, match="no such watch"):
            await client.ask(ReadNewest(a.request_id))


async def test_two_watches_of_one_number_cannot_be_told_apart(host: Host) -> None:
    async with host.enter() as client:
        first = await client.watch(b"fs:a:")
        await first.read(1)
        with pytest.raises(InvalidRequestError, match="has opened a watch"):
            await (await client.watch(b"fs:b:", request_id=first.request_id)).read(1)
        assert (await client.ask(ReadNewest(first.request_id))).revision == 0


@pytest.mark.logs("a request was not answered")
async def test_a_bug_in_a_watch_ends_that_watch(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host.enter() as client:
        with monkeypatch.context() as patch:
            patch.delattr("aspenkv.remote.RemoteSession.watch")
            with pytest.raises(StreamResetError) as caught:
                await (await client.watch()).read(1)
        assert caught.value.code == INTERNAL_ERROR
        await (await client.watch()).read(1)


# --- the end of the server -----------------------------------------------------------------------


async def test_draining_answers_what_is_under_way_and_refuses_the_rest(
    host: Host, stuck_sync: Stuck
) -> None:
    ticket = await host.make_ticket()
    drained = trio.Event()

    async def drain() -> None:
        await host.listener.drain()
        drained.set()

    async with host.enter() as client, host.connect() as late, trio.open_nursery() as nursery:
        watch = await client.watch()
        await watch.read(1)
        nursery.start_soon(client.ask, Sync())
        await stuck_sync.begun.wait()
        nursery.start_soon(drain)
        await trio.sleep(0.1)
        refused: tuple[tuple[RawClient, object], ...] = (
            (client, ReadRevision()),
            (late, Hello(*ticket, SESSION, "", VERSION)),
        )
        for asking, request in refused:
            with pytest.raises(UnavailableError):
                await asking.ask(request)  # type: ignore[arg-type]
        with pytest.raises(UnavailableError):
            await (await client.watch()).read(1)
        assert not drained.is_set()
        stuck_sync.let_go.set()
        await drained.wait()
        await host.service.connect().commit([], [Put(b"seen", b"")])
        await watch.read(1)


async def test_draining_nothing_takes_no_time(host: Host) -> None:
    began_at = trio.current_time()
    await host.listener.drain()
    assert trio.current_time() == began_at


async def test_draining_is_bounded(host: Host, stuck_sync: Stuck) -> None:
    async with host.enter() as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.ask, Sync())
        await stuck_sync.begun.wait()
        began_at = trio.current_time()
        await host.listener.drain()
        assert trio.current_time() - began_at == pytest.approx(limits.DRAIN_S)
        nursery.cancel_scope.cancel()


async def test_clients_learn_that_the_service_was_closed(host: Host) -> None:
    async with host.enter() as client:
        watch = await client.watch()
        await watch.read(1)
        host.service.close()
        with pytest.raises(ClosedError):
            await watch.read(1)
        with pytest.raises(ClosedError):
            await client.ask(ReadRevision())
