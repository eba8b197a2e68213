"""A network in memory, as good or bad as a test wants it, on trio's clock."""

from __future__ import annotations

import errno
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from aspenkv.quic.datagrams import Address, Datagram, Path

LOOPBACK_DELAY_S = 0.001


class MemoryNetwork:
    """Carries datagrams between its sockets; the attributes may change at any time.

    Attributes:
        delay_s: from one end to the other.
        jitter_s: at most so much more, so that datagrams overtake each other.
        loss: the share of datagrams that vanish.
        duplication: the share that arrive twice.
        mtu_bytes: the largest datagram, as the kernels of both ends believe.
        carries_bytes: the largest datagram that really arrives; larger ones vanish.
        is_parted: nothing arrives at all.
        spy: called with each datagram that is sent; where it goes; returns whether it may pass.
    """

    def __init__(self, seed: int = 0) -> None:
        self.delay_s = LOOPBACK_DELAY_S
        self.jitter_s = 0.0
        self.loss = 0.0
        self.duplication = 0.0
        self.mtu_bytes = 1452
        self.carries_bytes = 65_507
        self.is_parted = False
        self.spy: Callable[[bytes, Address], bool] | None = None
        self.delivered = 0
        self._random = random.Random(seed)
        self._sockets: dict[Address, MemorySocket] = {}
        self._ports = itertools.count(50_000)
        self._order = itertools.count()
        self._under_way: list[tuple[float, int, Address, Datagram]] = []
        self._sent = trio.Event()

    async def run(self) -> None:
        """Deliver, until cancelled."""
        while True:
            if not self._under_way:
                self._sent = trio.Event()
                await self._sent.wait()
                continue
            at = self._under_way[0][0]
            if trio.current_time() < at:
                self._sent = trio.Event()
                with trio.move_on_at(at):
                    await self._sent.wait()
                continue
            _, _, destination, datagram = heapq.heappop(self._under_way)
            receiver = self._sockets.get(destination)
            if receiver is not None and not self.is_parted:
                self.delivered += 1
                receiver.deliver(datagram)

    def bind(self, host: str, port: int = 4433) -> MemorySocket:
        """Open the socket of a server."""
        return self._open((host, port), None)

    async def resolve(self, host: str, port: int) -> list[Path]:
        """Names separated by commas are the addresses of one server."""
        if not host:
            raise OSError(errno.EHOSTUNREACH, "no such name")
        return [Path(0, (each, port)) for each in host.split(",")]

    def connect(self, path: Path) -> MemorySocket:
        """Open the socket of a client."""
        if path.address[0] == "unreachable":
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return self._open((("198.51.100.7"), next(self._ports)), path.address)

    def _open(self, address: Address, peer: Address | None) -> MemorySocket:
        opened = self._sockets[address] = MemorySocket(self, address, peer)
        return opened

    def move(self, opened: MemorySocket, address: Address) -> None:
        """Give a socket another address, as a NAT does that has forgotten the first."""
        del self._sockets[opened.address]
        opened.address = address
        self._sockets[address] = opened

    def forget(self, opened: MemorySocket) -> None:
        """Deliver no more to a socket."""
        self._sockets.pop(opened.address, None)

    def inject(self, content: bytes, source: Address, destination: Address) -> None:
        """Deliver a datagram that nobody sent."""
        self._post(content, source, destination, 0.0)

    def send(self, content: bytes, source: Address, destination: Address) -> None:
        """Take a datagram, and perhaps deliver it."""
        if self.spy is not None and not self.spy(content, destination):
            return
        if len(content) > self.carries_bytes:
            return
        if self._random.random() < self.loss:
            return
        copies = 2 if self._random.random() < self.duplication else 1
        for _ in range(copies):
            self._post(
                content, source, destination, self.delay_s + self._random.random() * self.jitter_s
            )

    def _post(self, content: bytes, source: Address, destination: Address, delay_s: float) -> None:
        at = trio.current_time() + delay_s
        item = (at, next(self._order), destination, (content, source))
        heapq.heappush(self._under_way, item)
        self._sent.set()


class MemorySocket:
    """One end; see :class:`aspenkv.quic.datagrams.DatagramSocket`.

    Attributes:
        room: how many datagrams fit before the socket is full; None for any number.
        refuses: the next call finds that nobody listens at the other end.
    """

    def __init__(self, network: MemoryNetwork, address: Address, peer: Address | None) -> None:
        self.address = address
        self.peer = peer
        self.room: int | None = None
        self.refuses = False
        self.is_closed = False
        self._network = network
        self._inbox: list[Datagram] = []
        self._readable = trio.Event()
        self._writable = trio.Event()

    def deliver(self, datagram: Datagram) -> None:
        if self.peer is None or datagram[1] == self.peer:
            self._inbox.append(datagram)
            self._readable.set()

    def refuse(self) -> None:
        """Report what an ICMP message brought."""
        self.refuses = True
        self._readable.set()

    def make_room(self) -> None:
        self.room = None
        self._writable.set()

    def receive(self) -> list[Datagram]:
        self._readable = trio.Event()
        if self.refuses:
            self.refuses = False
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        inbox, self._inbox = self._inbox, []
        return inbox

    def send(self, datagrams: Sequence[Datagram]) -> int:
        for count, (content, destination) in enumerate(datagrams):
            if self.room is not None:
                if not self.room:
                    self._writable = trio.Event()
                    return count
                self.room -= 1
            if len(content) > self._network.mtu_bytes:
                raise OSError(errno.EMSGSIZE, "Message too long")
            self._network.send(content, self.address, self.peer or destination)
        return len(datagrams)

    def datagram_bytes_max(self, address: Address) -> int:
        del address
        return self._network.mtu_bytes

    async def wait_readable(self) -> None:
        if self.is_closed:
            raise trio.ClosedResourceError
        await self._readable.wait()
        if self.is_closed:
            raise trio.ClosedResourceError

    async def wait_writable(self) -> None:
        if self.room == 0:
            await self._writable.wait()
        else:
            await trio.lowlevel.checkpoint()

    def getsockname(self) -> Address:
        return self.address

    def close(self) -> None:
        self.is_closed = True
        with suppress(KeyError):
            self._network.forget(self)
        self._readable.set()
