"""The driver over real UDP sockets on this machine."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from aspenkv.errors import ConnectionLostError, UnavailableError
from aspenkv.limits import DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN, PEER_MTUS_MAX
from aspenkv.quic import UdpSocket, bind_sockets, connect_quic, serve_quic
from aspenkv.quic.datagrams import Path
from aspenkv.quic.udp import UDP
from tests.unit.aspenkv.endpoints import Handler, identity

PATIENCE_S = 20
HOSTS = ("127.0.0.1", "::1")


@asynccontextmanager
async def _serving(host: str, handler: Handler) -> AsyncIterator[int]:
    with bind_sockets(host, 0) as sockets:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_quic, sockets, identity(), handler))
            yield sockets[0].getsockname()[1]
            nursery.cancel_scope.cancel()


def _pair(host: str) -> tuple[UdpSocket, UdpSocket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = UdpSocket(family)
    server.bind((host, 0))
    client = UDP.connect(Path(family, server.getsockname()))
    return server, client


async def _receive(receiver: UdpSocket, count: int) -> list[bytes]:
    received: list[bytes] = []
    with trio.fail_after(PATIENCE_S):
        while len(received) < count:
            await receiver.wait_readable()
            received += [data for data, _ in receiver.receive()]
    return received


@pytest.mark.parametrize("host", HOSTS)
async def test_calls_are_answered(host: str) -> None:
    handler = Handler()
    request = os.urandom(1_000_000)
    with trio.fail_after(PATIENCE_S):
        async with (
            _serving(host, handler) as port,
            connect_quic(
                host, port, fingerprint=identity().fingerprint, connect_timeout_s=PATIENCE_S
            ) as connection,
        ):
            reply = await connection.exchange(request, reply_bytes_max=len(request))
            assert reply == request
            assert connection.statistics().datagram_bytes == DATAGRAM_BYTES_MAX
            [at_server] = handler.connections
            assert at_server.statistics().datagram_bytes == DATAGRAM_BYTES_MAX


async def test_nobody_at_the_port_is_noticed_at_once() -> None:
    with bind_sockets("127.0.0.1", 0) as sockets:
        port = sockets[0].getsockname()[1]
    with trio.fail_after(PATIENCE_S), pytest.raises(UnavailableError, match="nobody listens"):
        async with connect_quic(
            "127.0.0.1", port, fingerprint=b"", connect_timeout_s=10 * PATIENCE_S
        ):
            pytest.fail("connected to nobody")


async def test_a_name_that_nobody_has_is_unavailable() -> None:
    with trio.fail_after(PATIENCE_S), pytest.raises(UnavailableError, match="cannot be reached"):
        async with connect_quic("no.such.invalid", 1, fingerprint=b"", connect_timeout_s=10):
            pytest.fail("connected to nobody")


async def test_a_server_that_dies_is_noticed_at_once() -> None:
    handler = Handler()
    alive = trio.CancelScope()
    dead = trio.Event()

    async def serve(task_status: trio.TaskStatus[int]) -> None:
        with alive:
            async with _serving("127.0.0.1", handler) as port:
                task_status.started(port)
                await trio.sleep_forever()
        dead.set()

    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve)
        with trio.fail_after(PATIENCE_S):
            async with connect_quic(
                "127.0.0.1", port, fingerprint=identity().fingerprint, connect_timeout_s=PATIENCE_S
            ) as connection:
                await connection.exchange(b"x", reply_bytes_max=1)
                # As if by kill -9: it does not say that it ends.
                handler.connections[0]._core.close = lambda **_: None  # type: ignore[method-assign]
                alive.cancel()
                await dead.wait()
                with pytest.raises(ConnectionLostError, match="nobody listens"):
                    await connection.exchange(b"x", reply_bytes_max=1)


@pytest.mark.parametrize("host", HOSTS)
async def test_datagrams_of_any_sizes_arrive_as_they_were(host: str) -> None:
    server, client = _pair(host)
    sizes = [1200, 1200, 1200, 500, 1300, 1200, 16_376, 16_376, 16_376, 16_376, 16_376, 1, 1200]
    contents = [bytes([number]) * size for number, size in enumerate(sizes)]
    assert client.send([(content, ()) for content in contents]) == len(contents)
    assert await _receive(server, len(contents)) == contents
    server.close()
    client.close()


async def test_a_server_answers_each_peer() -> None:
    server, client = _pair("127.0.0.1")
    other = UDP.connect(Path(socket.AF_INET, server.getsockname()))
    answers = [(b"one" * 400, client.getsockname())] * 3 + [(b"two" * 400, other.getsockname())]
    assert server.send(answers) == 4
    assert await _receive(client, 3) == [b"one" * 400] * 3
    assert await _receive(other, 1) == [b"two" * 400]
    for each in (server, client, other):
        each.close()


async def test_without_help_of_the_kernel_each_datagram_is_sent_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, client = _pair("127.0.0.1")
    send_run = client._send_run
    runs = []

    def refuse(contents: list[bytes], address: object) -> None:
        runs.append(len(contents))
        if len(contents) > 1:
            raise OSError(errno.EIO, "no checksum offload")
        send_run(contents, address)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "_send_run", refuse)
    client._can_segment = True
    contents = [bytes([number]) * 1200 for number in range(5)]
    assert client.send([(content, ()) for content in contents]) == 5
    assert runs == [5, 1, 1, 1, 1, 1]
    assert await _receive(server, 5) == contents
    server.close()
    client.close()


async def test_a_full_socket_takes_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = _pair("127.0.0.1")
    left = 2

    def fill(_contents: list[bytes], _address: object) -> None:
        nonlocal left
        if not left:
            raise BlockingIOError
        left -= 1

    monkeypatch.setattr(client, "_send_run", fill)
    client._can_segment = False
    assert client.send([(b"x", ())] * 5) == 2
    await client.wait_writable()
    server.close()
    client.close()


async def test_what_is_too_large_is_refused() -> None:
    server, client = _pair("127.0.0.1")
    with pytest.raises(OSError, match=r"[Mm]essage too long"):
        client.send([(bytes(65_530), ())])
    server.close()
    client.close()


@pytest.mark.parametrize("host", HOSTS)
async def test_the_mtu_is_the_kernels(host: str) -> None:
    server, client = _pair(host)
    assert client.datagram_bytes_max(server.getsockname()) == DATAGRAM_BYTES_MAX
    for _ in range(2):
        assert server.datagram_bytes_max(client.getsockname()) == DATAGRAM_BYTES_MAX
    assert len(server._mtus) == 1
    server.close()
    client.close()


async def test_the_mtu_of_few_peers_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = _pair("127.0.0.1")
    asked = []

    def ask(address: tuple[str, int]) -> int:
        asked.append(address)
        return 1452

    monkeypatch.setattr(server, "_ask_mtu", ask)
    for number in range(PEER_MTUS_MAX + 10):
        assert server.datagram_bytes_max((f"host{number}", 1)) == 1452
    assert len(server._mtus) == PEER_MTUS_MAX
    assert len(asked) == PEER_MTUS_MAX + 10
    server.close()
    client.close()


async def test_the_mtu_towards_nowhere_is_the_smallest() -> None:
    server, client = _pair("127.0.0.1")
    assert server.datagram_bytes_max(("255.255.255.255", 1)) == DATAGRAM_BYTES_MIN
    server.close()
    client.close()


def test_a_port_is_taken_once() -> None:
    with bind_sockets("127.0.0.1", 0) as sockets:
        port = sockets[0].getsockname()[1]
        with pytest.raises(OSError, match="in use"), bind_sockets("127.0.0.1", port):
            pytest.fail("two servers on one port")
    with bind_sockets("127.0.0.1", port):
        pass


def test_closing_twice_is_harmless() -> None:
    opened = UdpSocket(socket.AF_INET)

    async def close() -> None:
        opened.close()
        opened.close()

    trio.run(close)


def test_a_socket_that_cannot_connect_is_closed() -> None:
    with pytest.raises(OSError, match="family"):
        UDP.connect(Path(socket.AF_INET, ("::1", 1)))
