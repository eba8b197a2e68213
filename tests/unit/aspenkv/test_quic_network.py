"""Two endpoints over a network in memory: every call is answered, however bad the network is."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from aioquic.tls import Epoch

from aspenkv.errors import (
    BusyError,
    ConnectionLostError,
    ProtocolVersionError,
    RemoteProtocolError,
    ServerKeyError,
    UnavailableError,
)
from aspenkv.identity import new_identity
from aspenkv.limits import DATAGRAM_BYTES_MIN, IDLE_TIMEOUT_S, KEEPALIVE_S, STREAMS_MAX
from aspenkv.quic import (
    ConnectionClosedError,
    QuicConnection,
    QuicStream,
    ServerLimits,
    StreamResetError,
)
from aspenkv.quic.datagrams import Datagram
from aspenkv.quic.errors import INTERNAL_ERROR, SHUTTING_DOWN
from tests.faults.jumping import jumping_clock
from tests.unit.aspenkv.endpoints import HOST, PORT, Handler, open_scene
from tests.unit.aspenkv.network import MemoryNetwork

REPLY_BYTES_MAX = 1 << 20


async def _call_many(connection: QuicConnection, sizes: list[int]) -> None:
    """Make calls at the same time, and check every answer."""
    chance = random.Random(1)

    async def call(size: int) -> None:
        request = chance.randbytes(size)
        assert await connection.exchange(request, reply_bytes_max=REPLY_BYTES_MAX) == request

    async with trio.open_nursery() as nursery:
        for size in sizes:
            nursery.start_soon(call, size)


@jumping_clock
async def test_a_call_is_answered() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        assert await connection.exchange(b"hello", reply_bytes_max=5) == b"hello"
        assert scene.server.statistics().connections == 1
    assert scene.handler.gone == scene.handler.connections


@jumping_clock
async def test_an_empty_call_is_answered() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        assert not await connection.exchange(b"", reply_bytes_max=0)


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("mtu_bytes", [1452, 8972, 16_376])
@jumping_clock
async def test_every_call_is_answered_in_spite_of_losses(loss: float, mtu_bytes: int) -> None:
    network = MemoryNetwork(seed=round(loss * 100) + mtu_bytes)
    network.loss = loss
    network.mtu_bytes = mtu_bytes
    async with open_scene(network=network) as scene, scene.connect() as connection:
        await _call_many(connection, [0, 1, 100, 5000, 300_000, 70_000, *range(40)])


@jumping_clock
async def test_every_call_is_answered_when_datagrams_overtake_each_other_and_come_twice() -> None:
    network = MemoryNetwork(seed=3)
    network.jitter_s = 0.02
    network.duplication = 0.3
    async with open_scene(network=network) as scene, scene.connect() as connection:
        await _call_many(connection, [100_000, 300_000, *range(30)])
        assert scene.handler.requests == 32


@jumping_clock
async def test_calls_go_on_after_a_partition() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"before", reply_bytes_max=10)
        async with trio.open_nursery() as nursery:
            scene.network.is_parted = True
            nursery.start_soon(_call_many, connection, [10, 200_000])
            await trio.sleep(IDLE_TIMEOUT_S * 0.8)
            scene.network.is_parted = False
        assert connection.statistics().packets_lost > 0


@jumping_clock
async def test_a_partition_that_lasts_ends_the_connection_at_both_ends() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"before", reply_bytes_max=10)
        scene.network.is_parted = True
        began_at = trio.current_time()
        with pytest.raises(ConnectionLostError, match="Idle timeout"):
            await connection.exchange(b"during", reply_bytes_max=10)
        assert trio.current_time() - began_at < IDLE_TIMEOUT_S + KEEPALIVE_S
        await scene.handler.ended.wait()
        assert scene.server.statistics().connections == 0


@jumping_clock
async def test_large_datagrams_that_vanish_are_given_up() -> None:
    network = MemoryNetwork()
    network.mtu_bytes = 8972
    network.carries_bytes = 1300
    async with open_scene(network=network) as scene, scene.connect() as connection:
        with trio.fail_after(10):
            await _call_many(connection, [300_000])
        assert connection.statistics().datagram_bytes == DATAGRAM_BYTES_MIN
        network.carries_bytes = 8972
        await trio.sleep(600)
        await _call_many(connection, [300_000])
        assert connection.statistics().datagram_bytes == 8972


@jumping_clock
async def test_a_path_that_shrinks_is_noticed_by_the_kernels_error() -> None:
    network = MemoryNetwork()
    network.mtu_bytes = 8972
    async with open_scene(network=network) as scene, scene.connect() as connection:
        await _call_many(connection, [100_000])
        network.mtu_bytes = 1452
        await _call_many(connection, [100_000])
        assert connection.statistics().datagram_bytes == 1452
        assert connection.statistics().socket_errors > 0


@jumping_clock
async def test_a_full_socket_is_waited_for() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"before", reply_bytes_max=10)
        scene.socket.room = 2
        with trio.move_on_after(1.0) as patience:
            await _call_many(connection, [50_000])
        assert patience.cancelled_caught
        scene.socket.make_room()
        await _call_many(connection, [50_000])


@jumping_clock
async def test_a_client_that_changes_its_address_keeps_its_connection() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"before", reply_bytes_max=10)
        client = connection._socket
        scene.network.move(client, ("192.0.2.99", 7))
        await _call_many(connection, [10, 100_000])
        [at_server] = scene.handler.connections
        assert at_server.peer_address == ("192.0.2.99", 7)
        assert not scene.handler.gone


@jumping_clock
async def test_a_client_may_use_each_connection_id_that_it_was_sent() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"before", reply_bytes_max=10)
        [at_server] = scene.handler.connections
        ids = {each.cid for each in at_server._core._host_cids}
        assert len(ids) > 1
        assert ids <= scene.server._ids[at_server]
        for _ in range(20):  # more than there are at a time
            connection._core.change_connection_id()
            await connection.exchange(b"more", reply_bytes_max=10)
        assert len(scene.server._ids[at_server]) <= 2 * len(ids)


@jumping_clock
async def test_keys_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aspenkv.quic.connection.KEY_UPDATE_PACKETS", 20)
    async with open_scene() as scene, scene.connect() as connection:
        await _call_many(connection, [50_000])
        keys = connection._core._cryptos[Epoch.ONE_RTT].send
        before = keys.secret
        await _call_many(connection, [50_000] * 5)
        assert keys.secret != before


@jumping_clock
async def test_an_idle_connection_stays() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await trio.sleep(IDLE_TIMEOUT_S * 10)
        assert await connection.exchange(b"after", reply_bytes_max=10) == b"after"
        assert scene.server.statistics().accepted == 1


@jumping_clock
async def test_an_idle_connection_sends_little() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"before", reply_bytes_max=10)
        sent = connection.statistics().datagrams_sent
        await trio.sleep(KEEPALIVE_S * 100)
        assert connection.statistics().datagrams_sent - sent < 250


# --- connecting -----------------------------------------------------------------------------------


@jumping_clock
async def test_the_address_of_a_client_is_proved_first() -> None:
    async with open_scene() as scene, scene.connect():
        assert scene.server.statistics().retries == 1


@jumping_clock
async def test_a_server_with_another_key_is_told_nothing() -> None:
    async with open_scene() as scene:
        with pytest.raises(ServerKeyError, match="another key"):
            async with scene.connect(fingerprint=new_identity().fingerprint):
                pytest.fail("connected to the wrong server")
        assert not scene.handler.requests


@jumping_clock
async def test_a_server_of_another_protocol_is_recognised() -> None:
    async with open_scene(alpn="other/9") as scene:
        with pytest.raises(ProtocolVersionError):
            async with scene.connect():
                pytest.fail("connected to a server of another protocol")


@jumping_clock
async def test_a_server_that_does_not_answer_is_given_up_in_time() -> None:
    async with open_scene() as scene:
        scene.network.is_parted = True
        began_at = trio.current_time()
        with pytest.raises(UnavailableError, match="did not answer in 5 s"):
            async with scene.connect(connect_timeout_s=5):
                pytest.fail("connected to nobody")
        assert trio.current_time() == pytest.approx(began_at + 5)


@pytest.mark.parametrize("host", ["", "unreachable"])
@jumping_clock
async def test_a_server_without_a_way_to_it_is_unavailable(host: str) -> None:
    async with open_scene() as scene:
        with pytest.raises(UnavailableError, match="cannot be reached"):
            async with scene.connect(host=host):
                pytest.fail("connected to nobody")


@jumping_clock
async def test_the_next_address_of_a_name_is_tried() -> None:
    async with open_scene() as scene, scene.connect(host=f"unreachable,192.0.2.1,{HOST}") as it:
        assert it.peer_address == (HOST, PORT)


@jumping_clock
async def test_a_full_server_is_busy() -> None:
    async with open_scene(limits=ServerLimits(connections_max=1)) as scene, scene.connect():
        with pytest.raises(BusyError):
            async with scene.connect():
                pytest.fail("connected to a full server")
        assert scene.server.statistics().refused == 1


@jumping_clock
async def test_handshakes_wait_for_their_turn() -> None:
    async with open_scene(limits=ServerLimits(handshakes_per_s=2.0)) as scene:
        began_at = trio.current_time()

        async def connect() -> None:
            async with scene.connect() as connection:
                await connection.exchange(b"x", reply_bytes_max=1)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(connect)
        assert trio.current_time() - began_at >= 3.0
        assert scene.server.statistics().accepted == 8


# --- ends -----------------------------------------------------------------------------------------


@jumping_clock
async def test_a_server_that_ends_says_so() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"x", reply_bytes_max=1)
        scene.server.close()
        await connection.closed.wait()
        reason = connection.close_reason
        assert isinstance(reason, ConnectionClosedError)
        assert reason.code == SHUTTING_DOWN
        assert reason.is_by_peer
        with pytest.raises(ConnectionLostError):
            await connection.exchange(b"x", reply_bytes_max=1)
        with pytest.raises(ConnectionLostError):
            await connection.open_stream()
        with pytest.raises(BusyError):
            async with scene.connect():
                pytest.fail("connected to a server that ends")


@jumping_clock
async def test_a_server_that_was_started_anew_ends_old_connections_at_once() -> None:
    network = MemoryNetwork()
    async with open_scene(network=network) as old, old.connect() as connection:
        await connection.exchange(b"x", reply_bytes_max=1)
        network.forget(old.socket)  # as if by kill -9: it says nothing any more
        async with open_scene(network=network) as new:
            began_at = trio.current_time()
            with pytest.raises(ConnectionLostError, match="does not know the connection"):
                await connection.exchange(b"x", reply_bytes_max=1)
            assert trio.current_time() - began_at < 0.1
            assert new.server.statistics().stateless_resets >= 1


@jumping_clock
async def test_nobody_at_the_port_ends_the_connection_at_once() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"x", reply_bytes_max=1)
        scene.network.forget(scene.socket)
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(ConnectionLostError, match="nobody listens"):
                    await connection.exchange(b"x", reply_bytes_max=1)

            nursery.start_soon(call)
            await trio.sleep(0.01)
            connection._socket.refuse()


@jumping_clock
async def test_the_error_of_a_block_leaves_as_it_is() -> None:
    async with open_scene() as scene:
        with pytest.raises(ZeroDivisionError):
            async with scene.connect():
                raise ZeroDivisionError


# --- streams --------------------------------------------------------------------------------------


async def _send_pieces(_connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
    for number in range(int(request)):
        await stream.send(bytes([number]) * 1000)
    await stream.send(b"", end=True)


@jumping_clock
async def test_a_reply_is_read_piece_by_piece() -> None:
    async with open_scene(Handler(_send_pieces)) as scene, scene.connect() as connection:
        stream = await connection.open_stream()
        await stream.send(b"200", end=True)
        reply = await stream.receive_all(200_000)
        assert reply == b"".join(bytes([number]) * 1000 for number in range(200))
        assert not await stream.receive_some()
        assert connection.statistics().streams_open == 0


@jumping_clock
async def test_a_reply_that_is_too_long_is_refused() -> None:
    async with open_scene(Handler(_send_pieces)) as scene, scene.connect() as connection:
        with pytest.raises(RemoteProtocolError, match="more than 5000 bytes"):
            await connection.exchange(b"9", reply_bytes_max=5000)
        stream = await connection.open_stream()
        await stream.send(b"9", end=True)
        with pytest.raises(RemoteProtocolError, match="more than 5000 bytes"):
            await stream.receive_all(5000)


@jumping_clock
async def test_a_cancelled_call_ends_at_the_server_and_others_go_on() -> None:
    async def answer(_connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
        if request == b"wait":
            await trio.sleep_forever()
        await stream.send(request, end=True)

    async with open_scene(Handler(answer)) as scene, scene.connect() as connection:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_call_many, connection, [100_000])
            with trio.move_on_after(0.5) as patience:
                await connection.exchange(b"wait", reply_bytes_max=10)
        assert patience.cancelled_caught
        assert await connection.exchange(b"next", reply_bytes_max=10) == b"next"
        assert scene.handler.running == 0
        [at_server] = scene.handler.connections
        await trio.sleep(1)
        assert at_server.statistics().streams_open == 0
        assert connection.statistics().streams_open == 0


@pytest.mark.parametrize("steps", range(0, 60, 3))
@jumping_clock
async def test_a_call_may_be_cancelled_at_any_time(steps: int) -> None:
    """Nothing is left of it, and the calls beside it are answered."""
    async with open_scene() as scene, scene.connect() as connection:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_call_many, connection, [1000])
            with trio.move_on_after(steps * 0.0005):
                await connection.exchange(bytes(150_000), reply_bytes_max=REPLY_BYTES_MAX)
        await _call_many(connection, [10])
        await trio.sleep(1)
        assert connection.statistics().streams_open == 0
        [at_server] = scene.handler.connections
        assert at_server.statistics().streams_open == 0
        assert scene.handler.running == 0


@jumping_clock
async def test_a_call_that_was_cancelled_before_sends_nothing() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.exchange(b"x", reply_bytes_max=1)
        await trio.sleep(1)
        assert scene.handler.requests == 0


@pytest.mark.logs("a request was not answered")
@jumping_clock
async def test_a_handler_that_fails_resets_its_stream_only() -> None:
    async def fail(_connection: QuicConnection, _stream: QuicStream, _request: bytes) -> None:
        raise ZeroDivisionError

    async with open_scene(Handler(fail)) as scene, scene.connect() as connection:
        with pytest.raises(StreamResetError) as caught:
            await connection.exchange(b"x", reply_bytes_max=1)
        assert caught.value.code == INTERNAL_ERROR
        scene.handler.answer = _send_pieces
        assert len(await connection.exchange(b"1", reply_bytes_max=1000)) == 1000


@jumping_clock
async def test_a_handler_may_leave_without_an_answer() -> None:
    async def leave(_connection: QuicConnection, stream: QuicStream, _request: bytes) -> None:
        stream.reset(7)

    async with open_scene(Handler(leave)) as scene, scene.connect() as connection:
        with pytest.raises(StreamResetError, match="code 7"):
            await connection.exchange(b"x", reply_bytes_max=1)


@jumping_clock
async def test_the_end_of_a_connection_ends_its_handlers() -> None:
    async def wait(_connection: QuicConnection, _stream: QuicStream, _request: bytes) -> None:
        await trio.sleep_forever()

    async with open_scene(Handler(wait)) as scene:
        async with scene.connect() as connection:
            with trio.move_on_after(1):
                stream = await connection.open_stream()
                await stream.send(b"x", end=True)
                await trio.sleep(0.1)
            assert scene.handler.running == 1
        await scene.handler.ended.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert scene.handler.running == 0


@jumping_clock
async def test_who_waits_to_call_learns_that_the_connection_is_gone() -> None:
    async def wait(_connection: QuicConnection, _stream: QuicStream, _request: bytes) -> None:
        await trio.sleep_forever()

    async with open_scene(Handler(wait)) as scene, scene.connect() as connection:
        lost = 0

        async def call() -> None:
            nonlocal lost
            with pytest.raises(ConnectionLostError):
                await connection.exchange(b"x", reply_bytes_max=1)
            lost += 1

        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS_MAX + 5):
                nursery.start_soon(call)
            await trio.sleep(1)
            connection.close()
            connection.close()
        assert lost == STREAMS_MAX + 5


@jumping_clock
async def test_an_icmp_message_that_may_pass_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_scene() as scene, scene.connect() as connection:
        client = connection._socket
        receive, fails = client.receive, [True, True]

        def fail_first() -> list[Datagram]:
            if fails and fails.pop():
                raise OSError(errno.EHOSTUNREACH, "No route to host")
            return list(receive())

        monkeypatch.setattr(client, "receive", fail_first)
        monkeypatch.setattr(scene.socket, "receive", scene.socket.receive)
        assert await connection.exchange(b"x", reply_bytes_max=1) == b"x"
        assert connection.statistics().socket_errors == 2


@jumping_clock
async def test_a_server_reads_on_after_an_error_of_its_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_scene() as scene, scene.connect() as connection:
        receive, send, fails = scene.socket.receive, scene.socket.send, [True]

        def fail_first() -> list[Datagram]:
            if fails and fails.pop():
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            return receive()

        def refuse(datagrams: Sequence[Datagram]) -> int:
            if len(datagrams[0][0]) < 50 and datagrams[0][1][0] == "192.0.2.66":
                raise OSError(errno.EPERM, "Operation not permitted")
            return send(datagrams)

        monkeypatch.setattr(scene.socket, "receive", fail_first)
        monkeypatch.setattr(scene.socket, "send", refuse)
        scene.network.inject(b"\x40" + bytes(60), ("192.0.2.66", 1), (HOST, PORT))
        assert await connection.exchange(b"x", reply_bytes_max=1) == b"x"


@jumping_clock
async def test_the_connections_of_a_server_can_be_listed() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"x", reply_bytes_max=1)
        assert scene.server.connections == scene.handler.connections
        scene.server.stop_accepting()
        assert await connection.exchange(b"x", reply_bytes_max=1) == b"x"
        with pytest.raises(BusyError):
            async with scene.connect():
                pytest.fail("connected to a server that does not accept")


@jumping_clock
async def test_a_stream_that_was_reset_here_fails_here() -> None:
    async with open_scene(Handler(_send_pieces)) as scene, scene.connect() as connection:
        stream = await connection.open_stream()
        stream.reset(0)
        stream.reset(0)
        with pytest.raises(StreamResetError):
            await stream.send(b"x")
        with pytest.raises(StreamResetError):
            await stream.receive_some()


@jumping_clock
async def test_a_connection_that_ends_with_much_to_send_ends() -> None:
    async with open_scene() as scene, scene.connect() as connection:
        await connection.exchange(b"x", reply_bytes_max=1)
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(ConnectionLostError):
                    await connection.exchange(bytes(1_000_000), reply_bytes_max=1_000_000)

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            connection._wake()
            connection._end(ConnectionLostError("as if by a datagram"))
