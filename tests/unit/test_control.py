from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from aspenfs import limits
from aspenfs.control import (
    SOCKET_NAME,
    ControlCallError,
    ControlClient,
    ControlProtocolError,
    Handlers,
    NotServedError,
    RemoteKeyValue,
    StreamHandler,
    change_handlers,
    connect,
    describe_inode,
    key_value_handlers,
    open_control,
    open_remote_changes,
    serve_control,
    serving_process,
)
from aspenfs.control import server as control_server
from aspenfs.control.address import Peer, socket_address
from aspenfs.errors import FilesystemError
from aspenfs.filesystem import open_filesystem
from aspenfs.keys import Keys
from aspenfs.types import Context, Ino
from aspenkv.contract import Add, Change, Delete, Patch, Put, RangeEmpty, RevisionIs
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import InvalidRequestError, WatchGapError
from aspenkv.service import Service


@asynccontextmanager
async def served(data_dir: Path, handlers: Handlers) -> AsyncIterator[None]:
    async with open_control(data_dir) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve_control, listener, lambda: handlers)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def served_store(
    data_dir: Path, *, read_only: bool = False
) -> AsyncIterator[tuple[RemoteKeyValue, Service]]:
    async with open_embedded(MemoryEngine()) as service:
        handlers = key_value_handlers(service.connect(), read_only=read_only)
        async with served(data_dir, handlers), connect(data_dir) as client:
            yield RemoteKeyValue(client), service


async def echo(args: Mapping[str, Any]) -> object:
    return dict(args)


async def test_a_call_carries_its_arguments_and_answer(tmp_path: Path) -> None:
    async with served(tmp_path, {"echo": echo}), connect(tmp_path) as client:
        for value in (b"\0\xff", "ä", 2**64 - 1, None, [1, {"a": b""}]):
            assert await client.call("echo", value=value) == {"value": value}


async def test_calls_of_two_tasks_do_not_mix(tmp_path: Path) -> None:
    answers = {}

    async def ask(client: ControlClient, number: int) -> None:
        answers[number] = await client.call("echo", number=number)

    async with (
        served(tmp_path, {"echo": echo}),
        connect(tmp_path) as client,
        trio.open_nursery() as nursery,
    ):
        for number in range(10):
            nursery.start_soon(ask, client, number)
    assert answers == {number: {"number": number} for number in range(10)}


async def test_the_peer_is_known(tmp_path: Path) -> None:
    assert serving_process(tmp_path) is None
    async with served(tmp_path, {}), connect(tmp_path) as client:
        assert client.peer == Peer(os.getpid(), os.geteuid(), os.getegid())
        assert serving_process(tmp_path) == os.getpid()
    assert serving_process(tmp_path) is None
    assert serving_process(tmp_path / "absent") is None


async def test_the_socket_is_private_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    async with served(tmp_path, {}):
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    assert serving_process(tmp_path) is None


async def test_a_socket_that_a_crash_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead, socket_address(tmp_path) as address:
        dead.bind(address)
    with pytest.raises(NotServedError):
        async with connect(tmp_path):
            pass
    async with served(tmp_path, {"echo": echo}), connect(tmp_path) as client:
        assert await client.call("echo") == {}


async def test_a_data_directory_may_have_a_long_path(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 200] * 3)
    deep.mkdir(parents=True)
    async with served(deep, {"echo": echo}), connect(deep) as client:
        assert await client.call("echo") == {}


async def test_errors_come_back_as_errors_and_the_connection_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(args: Mapping[str, Any]) -> object:
        raise FilesystemError(2, "it is gone") if args["known"] else KeyError("missing")

    async with served(tmp_path, {"fail": fail, "echo": echo}), connect(tmp_path) as client:
        with pytest.raises(ControlCallError, match="ENOENT: it is gone") as caught:
            await client.call("fail", known=True)
        assert caught.value.kind == "FilesystemError"
        with pytest.raises(ControlCallError, match="do not fit"):
            await client.call("fail", known=False)
        with pytest.raises(ControlCallError, match="no control call 'other'"):
            await client.call("other")
        assert await client.call("echo") == {}
    assert not caplog.records


@pytest.mark.logs("control call 'crash' failed")
async def test_a_bug_in_a_call_is_logged_and_ends_nothing(tmp_path: Path) -> None:
    async def crash(_args: Mapping[str, Any]) -> object:
        raise ZeroDivisionError

    async with served(tmp_path, {"crash": crash, "echo": echo}), connect(tmp_path) as client:
        with pytest.raises(ControlCallError, match="ZeroDivisionError"):
            await client.call("crash")
        assert await client.call("echo") == {}


async def test_an_answer_that_fits_no_frame_is_an_error(tmp_path: Path) -> None:
    async def much(_args: Mapping[str, Any]) -> object:
        return bytes(limits.CONTROL_FRAME_BYTES_MAX)

    async with served(tmp_path, {"much": much}), connect(tmp_path) as client:
        with pytest.raises(ControlCallError, match="fit a frame"):
            await client.call("much")


async def raw_connection(data_dir: Path) -> trio.SocketStream:
    with socket_address(data_dir) as address:
        return trio.SocketStream(await _connected(address))


async def _connected(address: str) -> trio.socket.SocketType:
    connection = trio.socket.socket(socket.AF_UNIX)
    await connection.connect(address)
    return connection


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 2**32 - 1),
        struct.pack(">I", 1) + b"\xc1",
        struct.pack(">I", 5) + b"ab",
    ],
)
async def test_garbage_ends_its_own_connection_only(tmp_path: Path, garbage: bytes) -> None:
    async with served(tmp_path, {"echo": echo}), connect(tmp_path) as client:
        async with await raw_connection(tmp_path) as stream:
            await stream.send_all(garbage)
            await stream.send_eof()
            assert await stream.receive_some() == b""
        assert await client.call("echo") == {}


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTROL_CONNECTIONS_MAX", 1)
    async with served(tmp_path, {"echo": echo}), connect(tmp_path) as first:
        assert await first.call("echo") == {}
        async with connect(tmp_path) as second:
            with pytest.raises((ControlCallError, ControlProtocolError)):
                await second.call("echo")
        assert await first.call("echo") == {}


async def test_an_idle_connection_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTROL_IDLE_S", 0.01)
    async with served(tmp_path, {}), await raw_connection(tmp_path) as stream:
        assert await stream.receive_some() == b""


async def test_another_user_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "peer_of", lambda _stream: Peer(1, 12345, 12345))
    async with served(tmp_path, {"echo": echo}), connect(tmp_path) as client:
        with pytest.raises((ControlCallError, ControlProtocolError)):
            await client.call("echo")


async def test_a_server_that_ends_is_noticed(tmp_path: Path) -> None:
    reached = trio.Event()

    async def never(_args: Mapping[str, Any]) -> object:
        reached.set()
        await trio.sleep_forever()

    async with open_control(tmp_path) as listener, trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve() -> None:
            with scope:
                await serve_control(listener, lambda: {"never": never})

        async def end() -> None:
            await reached.wait()
            scope.cancel()

        nursery.start_soon(serve)
        nursery.start_soon(end)
        async with connect(tmp_path) as client:
            with pytest.raises(ControlProtocolError):
                await client.call("never")


# --- streams ------------------------------------------------------------------------------------


class Numbers:
    """Iterates over the numbers below ``end``, -1 for all; then it stops, or fails."""

    def __init__(self, end: int, failure: Exception | None = None) -> None:
        self._end = end
        self._failure = failure
        self._next = 0

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        await trio.lowlevel.checkpoint()
        if self._next == self._end:
            raise self._failure or StopAsyncIteration
        self._next += 1
        return self._next - 1


@asynccontextmanager
async def counting(args: Mapping[str, Any]) -> AsyncIterator[Numbers]:
    yield Numbers(args["end"])


async def test_a_stream_carries_items_until_there_are_no_more(tmp_path: Path) -> None:
    handlers: Handlers = {"count": StreamHandler(counting), "echo": echo}
    async with served(tmp_path, handlers), connect(tmp_path) as client:
        assert await client.call("echo") == {}
        async with client.stream("count", end=1000) as items:
            for number in range(1000):
                assert await anext(items) == number
            with pytest.raises(ControlCallError, match="has no more") as caught:
                await anext(items)
        assert caught.value.kind == "ended"


async def test_a_stream_ends_when_its_client_hangs_up(tmp_path: Path) -> None:
    closed = trio.Event()

    @asynccontextmanager
    async def silent(_args: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[Any]]:
        sending, receiving = trio.open_memory_channel[Any](0)
        with sending, receiving:
            try:
                yield aiter(receiving)
            finally:
                closed.set()

    async with served(tmp_path, {"silent": StreamHandler(silent)}):
        async with connect(tmp_path) as client, client.stream("silent"):
            assert not closed.is_set()
        await closed.wait()


async def test_a_stream_that_fails_says_why(tmp_path: Path) -> None:
    @asynccontextmanager
    async def failing(args: Mapping[str, Any]) -> AsyncIterator[Numbers]:
        if not args["end"]:
            raise FilesystemError(2, "it is gone")
        yield Numbers(args["end"], WatchGapError("too slow"))

    async with served(tmp_path, {"fail": StreamHandler(failing)}):
        async with connect(tmp_path) as client:
            with pytest.raises(ControlCallError, match="ENOENT"):
                await client.stream("fail", end=0).__aenter__()
        async with connect(tmp_path) as client, client.stream("fail", end=1) as items:
            assert await anext(items) == 0
            with pytest.raises(ControlCallError, match="too slow") as caught:
                await anext(items)
            assert caught.value.kind == "WatchGapError"


async def read_all(items: AsyncIterator[Any]) -> None:
    async for _ in items:
        pass


async def test_a_client_that_takes_nothing_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONTROL_SEND_S", 0.01)
    closed = trio.Event()

    @asynccontextmanager
    async def endless(_args: Mapping[str, Any]) -> AsyncIterator[Numbers]:
        try:
            yield Numbers(-1)
        finally:
            closed.set()

    async with (
        served(tmp_path, {"count": StreamHandler(endless)}),
        connect(tmp_path) as client,
        client.stream("count") as items,
    ):
        await closed.wait()
        with pytest.raises(ControlProtocolError):
            await read_all(items)


async def test_streams_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTROL_STREAMS_MAX", 1)
    async with (
        served(tmp_path, {"count": StreamHandler(counting), "echo": echo}),
        connect(tmp_path) as first,
        first.stream("count", end=-1),
        connect(tmp_path) as second,
    ):
        with pytest.raises(ControlCallError, match="end one") as caught:
            await second.stream("count", end=1).__aenter__()
        assert caught.value.kind == "busy"
        async with connect(tmp_path) as third:
            assert await third.call("echo") == {}


async def test_a_stream_ends_with_its_server(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        stop = trio.Event()

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            async with served(tmp_path, {"count": StreamHandler(counting)}):
                task_status.started()
                await stop.wait()

        await nursery.start(serve)
        async with connect(tmp_path) as client, client.stream("count", end=-1) as items:
            stop.set()
            with pytest.raises(ControlProtocolError):
                await read_all(items)


async def test_changes_of_a_volume_are_streamed(tmp_path: Path) -> None:
    keys = Keys("test")
    async with open_embedded(MemoryEngine()) as service:
        kv = service.connect()
        async with (
            served(tmp_path, change_handlers(kv, keys)),
            connect(tmp_path) as client,
        ):
            assert await client.call("volume") == "test"
            async with open_remote_changes(client) as changes:
                entry, chunk = keys.dentry(Ino(1), b"\xff"), keys.chunk(Ino(2), 0)
                committed = await kv.commit((), (Put(entry, b"v"), Put(chunk, b"w")))
                event = await anext(aiter(changes))
                assert event.revision == committed.revision
                assert set(event.changes) == {
                    Change(entry, None, b"v"),
                    Change(chunk, None, None),
                }


# --- the store ----------------------------------------------------------------------------------


async def test_the_store_behind_a_mount(tmp_path: Path) -> None:
    async with served_store(tmp_path) as (kv, service):
        first = await kv.commit((), (Put(b"a", b"\0\xff"), Put(b"b", b"")))
        assert first.failed_check is None
        assert await kv.get((b"a", b"absent", b"b")) == [
            (b"\0\xff", first.revision),
            None,
            (b"", first.revision),
        ]
        failed = await kv.commit((RevisionIs(b"a", 999),), (Delete(b"a"),))
        assert failed.failed_check == 0
        page = await kv.scan(b"a", b"z", limit=1)
        assert [record.key for record in page.records] == [b"a"]
        assert page.continuation is not None
        rest = await kv.scan(b"a", b"z", limit=9, continuation=page.continuation, keys_only=True)
        assert [tuple(record) for record in rest.records] == [(b"b", b"", first.revision)]
        assert rest.continuation is None
        backwards = await kv.scan(b"a", b"z", limit=9, reverse=True)
        assert [record.key for record in backwards.records] == [b"b", b"a"]
        await kv.commit((), (Delete(b"a"),))
        assert await kv.revision() == first.revision + 1
        await kv.sync()
        assert await kv.status() == await service.connect().status()


async def test_a_commit_from_outside_reaches_the_mounts_watch(tmp_path: Path) -> None:
    async with (
        served_store(tmp_path) as (kv, service),
        service.connect().watch(b"a", skip_own=True) as watch,
    ):
        committed = await kv.commit((), (Put(b"a", b"1"),))
        async for event in watch:
            assert event.revision == committed.revision
            break


async def test_a_read_only_mount_refuses_commits(tmp_path: Path) -> None:
    async with served_store(tmp_path, read_only=True) as (kv, _service):
        with pytest.raises(ControlCallError, match="EROFS"):
            await kv.commit((), (Put(b"a", b"1"),))
        assert await kv.get((b"a",)) == [None]


async def test_what_only_mounts_do_is_refused_here(tmp_path: Path) -> None:
    async with served_store(tmp_path) as (kv, _service):
        for ops in (Patch(b"a", 0, b"x"), Add(b"a", 1), Put(b"a", b"x", lease=1)):
            with pytest.raises(InvalidRequestError):
                await kv.commit((), (ops,))
        with pytest.raises(InvalidRequestError):
            await kv.commit((RangeEmpty(b"a", b"b"),), ())
        with pytest.raises(InvalidRequestError):
            kv.watch(b"")
        for call in (kv.lease(9.0), kv.keepalive(1), kv.revoke(1)):
            with pytest.raises(InvalidRequestError):
                await call


async def test_an_inode_is_described_from_the_store() -> None:
    me = Context(os.geteuid(), os.getegid())
    async with open_embedded(MemoryEngine()) as service:  # noqa: SIM117 - the next needs its client
        async with open_filesystem(kv := service.connect()) as filesystem:
            fh, small = await filesystem.create(Ino(1), b"small", 0o644, os.O_RDWR, me)
            await filesystem.write(fh, 0, b"x")
            await filesystem.release(fh)
            await filesystem.setxattr(small.ino, b"user.a", b"value")
            fh, large = await filesystem.create(Ino(1), b"large", 0o644, os.O_RDWR, me)
            await filesystem.write(fh, limits.CHUNK_BYTES, bytes(limits.CHUNK_BYTES + 1))
            await filesystem.release(fh)
            link = await filesystem.symlink(Ino(1), b"link", b"target", me)
            keys = filesystem.keys

            described = await describe_inode(kv, keys, small.ino)
            assert (described["content"], described["chunk_count"]) == ("inline", 0)
            assert described["xattrs"] == {b"user.a": 5}
            assert [stored["key"] for stored in described["keys"]] == [
                keys.inode(small.ino),
                keys.times(small.ino),
                keys.xattr(small.ino, b"user.a"),
            ]
            found = await kv.get([stored["key"] for stored in described["keys"]])
            assert [row.revision for row in found if row is not None] == [
                stored["revision"] for stored in described["keys"]
            ]

            described = await describe_inode(kv, keys, large.ino)
            assert (described["content"], described["chunk_count"]) == ("chunks", 2)
            assert described["record"]["size"] == 2 * limits.CHUNK_BYTES + 1
            assert (await describe_inode(kv, keys, link.ino))["content"] == "symlink target"
            assert (await describe_inode(kv, keys, Ino(1)))["content"] == "none"
            with pytest.raises(FilesystemError, match="ENOENT"):
                await describe_inode(kv, keys, Ino(999))
