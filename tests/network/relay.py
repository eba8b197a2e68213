"""A UDP relay between clients and one server that delays and loses datagrams, by seeded dice.

As a program it prints its port and is steered by lines on standard input: ``loss 0.05``,
``delay 0.05`` (seconds, each way), ``cut`` (lose everything), ``heal``. It ends with its input.
"""

from __future__ import annotations

import argparse
import random
import sys

import trio

Address = tuple[str, int]

_DATAGRAM_BYTES_MAX = 65535
_CLIENTS_MAX = 256
_QUEUED_MAX = 8192  # each way of each client; what comes to a full queue is lost, as in a router


class Relay:
    """Relays between the clients of one socket and a server, as lossy and slow as told."""

    def __init__(self, server: Address, *, loss: float, delay_s: float, seed: int) -> None:
        self.loss = loss
        self.delay_s = delay_s
        self.is_cut = False
        self._server = server
        self._dice = random.Random(seed)
        self._ways: dict[Address, trio.MemorySendChannel[tuple[float, bytes]]] = {}

    async def run(self, front: trio.socket.SocketType) -> None:
        """Relay for all who send to ``front``, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                data, client = await front.recvfrom(_DATAGRAM_BYTES_MAX)
                if client not in self._ways:
                    if len(self._ways) == _CLIENTS_MAX:
                        continue
                    back = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
                    await back.bind(("127.0.0.1", 0))
                    self._ways[client] = self._way(nursery, back, self._server)
                    answers = self._way(nursery, front, client)
                    nursery.start_soon(self._take, back, answers)
                self._put(self._ways[client], data)

    def _way(
        self, nursery: trio.Nursery, exit_: trio.socket.SocketType, to: Address
    ) -> trio.MemorySendChannel[tuple[float, bytes]]:
        entrance, queue = trio.open_memory_channel[tuple[float, bytes]](_QUEUED_MAX)
        nursery.start_soon(self._deliver, queue, exit_, to)
        return entrance

    async def _take(
        self, back: trio.socket.SocketType, way: trio.MemorySendChannel[tuple[float, bytes]]
    ) -> None:
        while True:
            data = await back.recv(_DATAGRAM_BYTES_MAX)
            self._put(way, data)

    def _put(self, way: trio.MemorySendChannel[tuple[float, bytes]], data: bytes) -> None:
        if self.is_cut or self._dice.random() < self.loss:
            return
        try:
            way.send_nowait((trio.current_time() + self.delay_s, data))
        except trio.WouldBlock:
            return

    @staticmethod
    async def _deliver(
        queue: trio.MemoryReceiveChannel[tuple[float, bytes]],
        exit_: trio.socket.SocketType,
        to: Address,
    ) -> None:
        async for due_s, data in queue:
            await trio.sleep_until(due_s)
            await exit_.sendto(data, to)


def obey(relay: Relay, line: str) -> None:
    """Do what one line of steering says."""
    match line.split():
        case ["loss", share]:
            relay.loss = float(share)
        case ["delay", seconds]:
            relay.delay_s = float(seconds)
        case ["cut"]:
            relay.is_cut = True
        case ["heal"]:
            relay.is_cut = False
        case _:
            raise ValueError(f"no order to a relay: {line!r}")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("server_port", type=int)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    relay = Relay(
        ("127.0.0.1", options.server_port),
        loss=options.loss,
        delay_s=options.delay,
        seed=options.seed,
    )
    front = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await front.bind(("127.0.0.1", options.port))
    sys.stdout.write(f"{front.getsockname()[1]}\n")
    sys.stdout.flush()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run, front)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            obey(relay, line)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
