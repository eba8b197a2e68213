"""What a peer that breaks the rules can do: end its own connection, and nothing else."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
from aioquic.quic.connection import QuicNetworkPath

from aspenkv.errors import ConnectionLostError, RemoteProtocolError, UnavailableError
from aspenkv.limits import (
    CONNECTION_REQUEST_BYTES_MAX,
    HANDSHAKE_TIMEOUT_S,
    REPLY_WINDOW_BYTES,
    REQUEST_BYTES_MAX,
    SEND_UNSENT_BYTES_MAX,
    STREAM_WINDOW_BYTES,
    STREAMS_MAX,
    STREAMS_UNADMITTED_MAX,
)
from aspenkv.quic import QuicConnection, QuicStream, ServerLimits, StreamResetError
from aspenkv.quic.core import Core
from aspenkv.quic.datagrams import Address
from aspenkv.quic.errors import MESSAGE_TOO_LARGE
from tests.faults.jumping import jumping_clock
from tests.unit.aspenkv.endpoints import HOST, PORT, Handler, Scene, open_scene
from tests.unit.aspenkv.network import MemoryNetwork

STRANGER = ("192.0.2.66", 6666)
SERVER = (HOST, PORT)


@asynccontextmanager
async def _beside_a_client(scene: Scene) -> AsyncIterator[None]:
    """Check that another client notices nothing."""
    async with scene.connect() as connection:
        await connection.exchange(b"before", reply_bytes_max=10)
        yield
        assert await connection.exchange(b"after", reply_bytes_max=10) == b"after"


async def _wait(_connection: QuicConnection, _stream: QuicStream, _request: bytes) -> None:
    await trio.sleep_forever()


# --- datagrams from anybody -----------------------------------------------------------------------


@jumping_clock
async def test_garbage_disturbs_nobody() -> None:
    chance = random.Random(5)
    async with open_scene() as scene, _beside_a_client(scene):
        for _ in range(2000):
            scene.network.inject(
                chance.randbytes(chance.choice([0, 1, 9, 40, 1200, 1500])), STRANGER, SERVER
            )
        await trio.sleep(1)
        statistics = scene.server.statistics()
        assert statistics.connections == 1
        assert statistics.handshakes_pending == 0


@jumping_clock
async def test_packets_that_were_changed_on_the_way_disturb_nobody() -> None:
    """Each packet also arrives with some bytes changed, and cut short, at both ends."""
    chance = random.Random(6)
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"x", reply_bytes_max=1)

        def spy(data: bytes, address: tuple[str, int]) -> bool:
            changed = bytearray(data)
            for _ in range(3):
                changed[chance.randrange(min(len(changed), 60))] ^= 1 << chance.randrange(8)
            source = SERVER if address != SERVER else ("198.51.100.7", 50_000)
            scene.network.inject(bytes(changed), source, address)
            scene.network.inject(data[: chance.randrange(len(data))], source, address)
            return True

        scene.network.spy = spy
        for size in range(0, 20_000, 500):
            request = chance.randbytes(size)
            assert await connection.exchange(request, reply_bytes_max=size) == request


@jumping_clock
async def test_answers_to_strangers_are_shorter_and_few() -> None:
    async with open_scene(limits=ServerLimits(stateless_resets_per_s=5.0)) as scene:
        stranger = scene.network.bind(*STRANGER)
        for _ in range(100):
            scene.network.inject(b"\x40" + os.urandom(99), STRANGER, SERVER)
        await trio.sleep(0.1)
        answers = stranger.receive()
        assert len(answers) == scene.server.statistics().stateless_resets == 5
        assert all(len(data) < 100 for data, _ in answers)


@jumping_clock
async def test_another_version_is_told_ours() -> None:
    async with open_scene() as scene:
        stranger = scene.network.bind(*STRANGER)
        initial = b"\xc0\x0a\x0a\x0a\x0a\x08" + bytes(8) + b"\x08" + bytes(8)
        scene.network.inject(initial.ljust(1200, b"\0"), STRANGER, SERVER)
        scene.network.inject(initial.ljust(1199, b"\0"), STRANGER, SERVER)
        await trio.sleep(0.1)
        [(answer, _)] = stranger.receive()
        assert answer[1:5] == bytes(4)
        assert answer.endswith(b"\0\0\0\x01")
        scene.network.inject(answer.ljust(1200, b"\0"), STRANGER, SERVER)
        await trio.sleep(0.1)
        assert not stranger.receive()


@jumping_clock
async def test_a_token_of_another_address_is_refused() -> None:
    async with open_scene() as scene:

        def spy(data: bytes, address: tuple[str, int]) -> bool:
            if address == SERVER and data[0] & 0xF0 == 0xC0 and data[23] != 0:
                scene.network.inject(data, STRANGER, SERVER)
                return False
            return True

        scene.network.spy = spy
        with pytest.raises(UnavailableError):
            async with scene.connect(connect_timeout_s=5):
                pytest.fail("connected with a stolen token")
        assert scene.server.statistics().refused > 0
        assert scene.server.statistics().handshakes_pending == 0


@jumping_clock
async def test_handshakes_that_never_end_are_few_and_short() -> None:
    async with open_scene(limits=ServerLimits(handshakes_pending_max=3)) as scene:

        def spy(data: bytes, address: tuple[str, int]) -> bool:
            is_retry = data[0] & 0xF0 == 0xF0
            return address == SERVER or is_retry  # the clients never get further

        scene.network.spy = spy
        async with trio.open_nursery() as nursery:

            async def connect() -> None:
                with pytest.raises(UnavailableError):
                    async with scene.connect(connect_timeout_s=5):
                        pytest.fail("connected without a handshake")

            for _ in range(6):
                nursery.start_soon(connect)
            await trio.sleep(1)
            assert scene.server.statistics().handshakes_pending == 3
            scene.network.is_parted = True  # and do not say that they give up
        assert scene.server.statistics().handshakes_pending == 3
        await trio.sleep(HANDSHAKE_TIMEOUT_S)
        assert scene.server.statistics().handshakes_pending == 0
        assert not scene.handler.connections
        assert not scene.handler.gone


@jumping_clock
@pytest.mark.parametrize("method", ["receive_datagram", "next_event"])
@pytest.mark.logs("the connection with .* broke")
async def test_a_bug_in_the_core_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    async with open_scene() as scene, _beside_a_client(scene), scene.connect() as connection:
        await connection.exchange(b"x", reply_bytes_max=1)
        at_server = scene.handler.connections[1]

        def fail(*_: object) -> None:
            raise IndexError

        monkeypatch.setattr(at_server._core, method, fail)
        with pytest.raises(ConnectionLostError):
            await connection.exchange(b"x", reply_bytes_max=1)
        assert at_server.closed.is_set()


@jumping_clock
@pytest.mark.logs("the connection with None broke")
async def test_a_bug_at_the_first_datagram_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_path = Core._find_network_path

    def fail_at_first(core: Core, address: Address) -> QuicNetworkPath:
        if core.peer_address is None:
            raise IndexError
        return find_path(core, address)

    async with open_scene() as scene, _beside_a_client(scene):
        monkeypatch.setattr(Core, "_find_network_path", fail_at_first)
        with pytest.raises(UnavailableError):
            async with scene.connect(connect_timeout_s=1):
                pytest.fail("connected to a core that is broken")


# --- a client that asks for too much --------------------------------------------------------------


@jumping_clock
async def test_a_client_that_is_not_known_has_few_streams() -> None:
    async with (
        open_scene(Handler(_wait, admits=False)) as scene,
        scene.connect() as connection,
        trio.open_nursery() as nursery,
    ):
        for _ in range(20):
            nursery.start_soon(_ignore_loss, connection, b"x")
        await trio.sleep(1)
        assert scene.handler.running == STREAMS_UNADMITTED_MAX
        scene.handler.connections[0].admit()
        await trio.sleep(1)
        assert scene.handler.running == 20
        nursery.cancel_scope.cancel()


async def _ignore_loss(connection: QuicConnection, request: bytes) -> None:
    await connection.exchange(request, reply_bytes_max=10)


@jumping_clock
async def test_a_client_that_is_not_known_sends_short_requests() -> None:
    async with open_scene(Handler(admits=False)) as scene, scene.connect() as connection:
        with trio.move_on_after(5) as patience:
            await connection.exchange(bytes(STREAM_WINDOW_BYTES + 1), reply_bytes_max=1 << 20)
        assert patience.cancelled_caught
        assert scene.handler.requests == 0
        request = bytes(STREAM_WINDOW_BYTES)
        assert await connection.exchange(request, reply_bytes_max=1 << 20) == request


@jumping_clock
async def test_calls_beyond_the_limit_wait_at_the_client() -> None:
    async with open_scene(Handler(_wait)) as scene, scene.connect() as connection:
        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS_MAX + 10):
                nursery.start_soon(_ignore_loss, connection, b"x")
            await trio.sleep(1)
            assert scene.handler.running == STREAMS_MAX
            nursery.cancel_scope.cancel()
        await trio.sleep(1)
        assert scene.handler.running == 0
        scene.handler.answer = Handler().answer
        assert await connection.exchange(b"next", reply_bytes_max=10) == b"next"


@jumping_clock
async def test_a_client_that_opens_too_many_streams_is_hung_up_on() -> None:
    async with open_scene(Handler(_wait)) as scene, _beside_a_client_of(scene):
        async with scene.connect() as connection:
            core = connection._core
            await trio.sleep(1)
            core._remote_max_streams_bidi = 1 << 40
            for _ in range(STREAMS_MAX + 10):
                stream_id = core.get_next_available_stream_id()
                core.send_stream_data(stream_id, b"x", end_stream=True)
            connection._wake()
            await connection.closed.wait()
        assert scene.handler.running_max <= STREAMS_MAX


@asynccontextmanager
async def _beside_a_client_of(scene: Scene) -> AsyncIterator[None]:
    """As _beside_a_client, for a server that never answers."""
    async with scene.connect() as connection:
        yield
        assert not connection.closed.is_set()


@jumping_clock
async def test_a_request_that_is_too_long_is_refused() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        with pytest.raises(StreamResetError) as caught:
            await connection.exchange(bytes(REQUEST_BYTES_MAX + 1), reply_bytes_max=1)
        assert caught.value.code == MESSAGE_TOO_LARGE
        assert scene.handler.requests == 0
        reply = await connection.exchange(
            bytes(REQUEST_BYTES_MAX), reply_bytes_max=REQUEST_BYTES_MAX
        )
        assert len(reply) == REQUEST_BYTES_MAX
        [at_server] = scene.handler.connections
        assert not at_server._growth._granted


@jumping_clock
async def test_what_still_comes_of_a_refused_request_is_ignored() -> None:
    """A client that does not care for limits sends on, and ends its half in the end."""
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"x", reply_bytes_max=1)
        [at_server] = scene.handler.connections
        core = connection._core
        stream_id = core.get_next_available_stream_id()
        core.send_stream_data(stream_id, b"first")
        connection._wake()
        await trio.sleep(1)
        at_server.abandon(stream_id, MESSAGE_TOO_LARGE)
        for piece in (b"second", b"third"):
            core._streams[stream_id].receiver.stop_pending = False
            core._streams[stream_id].sender.write(piece, end_stream=piece == b"third")
            connection._wake()
            await trio.lowlevel.checkpoint()
        await trio.sleep(1)
        assert scene.handler.requests == 1
        assert at_server.statistics().streams_open == 0
        assert await connection.exchange(b"x", reply_bytes_max=1) == b"x"


@jumping_clock
async def test_long_requests_are_taken_in_turn_and_all_are_answered() -> None:
    network = MemoryNetwork()
    network.mtu_bytes = 16_376
    seen = []

    async def answer(connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
        seen.append(len(connection._growth._granted))
        await stream.send(request[:4], end=True)

    async with open_scene(Handler(answer), network=network) as scene, scene.connect() as it:
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(_ignore_loss, it, bytes(REQUEST_BYTES_MAX))
        assert max(seen) <= CONNECTION_REQUEST_BYTES_MAX // REQUEST_BYTES_MAX
        assert len(seen) == 30


@jumping_clock
async def test_a_hole_in_a_request_costs_no_more_than_its_window() -> None:
    """The last byte that the window allows comes first: aioquic makes room for all before it."""
    async with open_scene() as scene, scene.connect() as connection:
        core = connection._core
        await trio.sleep(1)
        for _ in range(10):
            stream_id = core.get_next_available_stream_id()
            core.send_stream_data(stream_id, b"")
            sender = core._streams[stream_id].sender
            sender._buffer_start = sender._buffer_stop = STREAM_WINDOW_BYTES - 1
            sender.write(b"x")
        tracemalloc.start()
        connection._wake()
        await trio.sleep(30)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10 * STREAM_WINDOW_BYTES + 2_000_000
        [at_server] = scene.handler.connections
        for stream in at_server._core._streams.values():
            assert stream.max_stream_data_local == STREAM_WINDOW_BYTES


@jumping_clock
async def test_a_client_that_does_not_read_stops_the_server_not_its_memory() -> None:
    sent = 0

    async def pour(_connection: QuicConnection, stream: QuicStream, _request: bytes) -> None:
        nonlocal sent
        while True:
            await stream.send(bytes(100_000))
            sent += 100_000

    async with open_scene(Handler(pour)) as scene, scene.connect() as connection:
        stream = await connection.open_stream()
        await stream.send(b"x", end=True)
        await trio.sleep(8)
        assert sent <= REPLY_WINDOW_BYTES + SEND_UNSENT_BYTES_MAX + 200_000
        assert stream._connection.statistics().streams_open == 1
        read = 0
        while read < 5 * REPLY_WINDOW_BYTES:
            read += len(await stream.receive_some())
        stream.reset(0)
        await trio.sleep(1)
        assert scene.handler.running == 0


@jumping_clock
async def test_a_sender_that_is_stopped_can_be_cancelled() -> None:
    async def pour(_connection: QuicConnection, stream: QuicStream, _request: bytes) -> None:
        with trio.move_on_after(5):
            while True:
                await stream.send(bytes(100_000))

    async with open_scene(Handler(pour)) as scene, scene.connect() as connection:
        stream = await connection.open_stream()
        await stream.send(b"x", end=True)
        await trio.sleep(6)
        assert scene.handler.running == 0
        with pytest.raises(StreamResetError):
            await stream.receive_all(1 << 30)


# --- a server that breaks the rules ---------------------------------------------------------------


@jumping_clock
async def test_a_server_may_open_no_stream() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"x", reply_bytes_max=1)
        [at_server] = scene.handler.connections
        core = at_server._core
        core._remote_max_streams_bidi = 10
        core.send_stream_data(core.get_next_available_stream_id(), b"x")
        at_server._wake()
        await connection.closed.wait()
        assert "Too many streams" in str(connection.close_reason)


@jumping_clock
async def test_a_server_that_answers_too_much_is_not_listened_to() -> None:
    async def pour(_connection: QuicConnection, stream: QuicStream, _request: bytes) -> None:
        while True:
            await stream.send(bytes(100_000))

    async with open_scene(Handler(pour)) as scene, scene.connect() as connection:
        with pytest.raises(RemoteProtocolError):
            await connection.exchange(b"x", reply_bytes_max=3 * REPLY_WINDOW_BYTES)
        await trio.sleep(1)
        assert scene.handler.running == 0
