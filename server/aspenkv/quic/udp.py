"""UDP sockets that move many datagrams with one system call, where the kernel can (Linux)."""

from __future__ import annotations

import errno
import socket
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import trio

from aspenkv.limits import (
    DATAGRAM_BYTES_MAX,
    DATAGRAM_BYTES_MIN,
    PEER_MTU_AGE_S_MAX,
    PEER_MTUS_MAX,
    RECEIVE_BATCH_BYTES_MAX,
    SOCKET_BUFFER_BYTES,
)
from aspenkv.quic.datagrams import Address, Datagram, Path

# From linux/in.h, linux/in6.h, linux/udp.h and asm-generic/socket.h, for the socket module lacks
# them.
_IP_MTU_DISCOVER: Final = 10
_IP_MTU: Final = 14
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_MTU: Final = 24
_PMTUDISC_DO: Final = 2
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_SO_RCVBUFFORCE: Final = 33
_SO_SNDBUFFORCE: Final = 32

_HEADER_BYTES: Final[dict[int, int]] = {
    socket.AF_INET: 20 + 8,
    socket.AF_INET6: 40 + 8,
}  # IP and UDP
_SEGMENTS_MAX: Final = 64  # UDP_MAX_SEGMENTS
_SEND_BYTES_MAX: Final = 65_507  # of one UDP_SEGMENT call
_RECEIVE_BYTES: Final = 65_535
_SEGMENT_SIZE: Final = struct.Struct("=H")
_GRO_SIZE: Final = struct.Struct("=i")
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_GRO_SIZE.size)
_NO_OFFLOAD: Final = frozenset({errno.EIO, errno.EINVAL, errno.EOPNOTSUPP})


class UdpSocket:
    """A UDP socket, bound (server) or connected to one peer (client)."""

    def __init__(self, family: int) -> None:
        """Open a socket of a family, not yet bound or connected."""
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._family = family
        self._peer: Address | None = None
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._mtus: OrderedDict[object, tuple[int, float]] = OrderedDict()
        try:
            self._socket.setblocking(False)
            self._set_options()
        except BaseException:
            self._socket.close()
            raise

    def _set_options(self) -> None:
        sock = self._socket
        if self._family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for forced, plain in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER_BYTES)
            except OSError:  # only root may pass the system's bound
                sock.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER_BYTES)
        _discover_mtu(sock)
        self._can_segment = _has_option(sock, _UDP_SEGMENT)
        if _has_option(sock, _UDP_GRO):
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)

    def bind(self, address: Address) -> None:
        """Receive what is sent to an address. Raises :class:`OSError`."""
        self._socket.bind(address)

    def connect(self, address: Address) -> None:
        """Exchange datagrams with one peer only. Raises :class:`OSError`."""
        self._socket.connect(address)
        self._peer = address

    def getsockname(self) -> Address:
        """Return the address of this end."""
        address: Address = self._socket.getsockname()
        return address

    def close(self) -> None:
        """Close the socket."""
        if self._socket.fileno() >= 0:
            if trio.lowlevel.in_trio_run():
                trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def wait_readable(self) -> None:
        """Return when datagrams may have arrived."""
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        """Return when there may be room to send."""
        await trio.lowlevel.wait_writable(self._socket)

    def receive(self) -> list[Datagram]:
        """Return what has arrived; see :class:`~aspenkv.quic.datagrams.DatagramSocket`."""
        received: list[Datagram] = []
        left = RECEIVE_BATCH_BYTES_MAX
        buffers = [self._buffer]
        receive = self._socket.recvmsg_into
        while left > 0:
            try:
                size, ancillary, _, address = receive(buffers, _ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            peer = self._peer or address
            segment = _GRO_SIZE.unpack(ancillary[0][2])[0] if ancillary else size
            if segment >= size:
                received.append((bytes(self._buffer[:size]), peer))
            else:
                received.extend(
                    (bytes(self._buffer[start : min(start + segment, size)]), peer)
                    for start in range(0, size, segment)
                )
            left -= max(size, 1)
        return received

    def send(self, datagrams: Sequence[Datagram]) -> int:
        """Send datagrams; see :class:`~aspenkv.quic.datagrams.DatagramSocket`."""
        done = 0
        while done < len(datagrams):
            count = self._run_length(datagrams, done) if self._can_segment else 1
            contents = [content for content, _ in datagrams[done : done + count]]
            address = None if self._peer is not None else datagrams[done][1]
            try:
                self._send_run(contents, address)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if count == 1 or error.errno not in _NO_OFFLOAD:
                    raise
                self._can_segment = False  # this network device cannot; now one by one
                continue
            done += count
        return done

    def _send_run(self, contents: list[bytes], address: Address | None) -> None:
        if len(contents) == 1:
            if address is None:
                self._socket.send(contents[0])
            else:
                self._socket.sendto(contents[0], address)
            return
        segment = _SEGMENT_SIZE.pack(len(contents[0]))
        ancillary = [(socket.IPPROTO_UDP, _UDP_SEGMENT, segment)]
        if address is None:
            self._socket.sendmsg(contents, ancillary)
        else:
            self._socket.sendmsg(contents, ancillary, 0, address)

    @staticmethod
    def _run_length(datagrams: Sequence[Datagram], start: int) -> int:
        """Count the datagrams that one call can send: of one size and address, the last shorter."""
        content, address = datagrams[start]
        segment = total = len(content)
        count = 1
        for content, to in datagrams[start + 1 : start + _SEGMENTS_MAX]:
            size = len(content)
            total += size
            if size > segment or total > _SEND_BYTES_MAX or to != address:
                break
            count += 1
            if size < segment:
                break
        return count

    def datagram_bytes_max(self, address: Address) -> int:
        """Return what the path to an address carries, as far as the kernel knows."""
        if self._peer is not None:
            return _datagram_bytes(self._socket, self._family)
        key, now = address[0], trio.current_time()
        known = self._mtus.get(key)
        if known is not None and now - known[1] < PEER_MTU_AGE_S_MAX:
            return known[0]
        size = self._ask_mtu(address)
        self._mtus[key] = (size, now)
        self._mtus.move_to_end(key)
        if len(self._mtus) > PEER_MTUS_MAX:
            self._mtus.popitem(last=False)
        return size

    def _ask_mtu(self, address: Address) -> int:
        """Ask with a socket that is connected there; nothing is sent."""
        with socket.socket(self._family, socket.SOCK_DGRAM) as probe:
            try:
                _discover_mtu(probe)
                probe.connect(address)
                return _datagram_bytes(probe, self._family)
            except OSError:
                return DATAGRAM_BYTES_MIN


def _discover_mtu(sock: socket.socket) -> None:
    """Never let the kernel send fragments: learn the path's MTU (RFC 9000 §14)."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)


def _datagram_bytes(connected: socket.socket, family: int) -> int:
    if family == socket.AF_INET6:
        mtu = connected.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    else:
        mtu = connected.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    return max(DATAGRAM_BYTES_MIN, min(mtu - _HEADER_BYTES[family], DATAGRAM_BYTES_MAX))


def _has_option(sock: socket.socket, option: int) -> bool:
    try:
        sock.getsockopt(socket.IPPROTO_UDP, option)
    except OSError:
        return False
    return True


class UdpNetwork:
    """UDP as this machine has it; see :class:`~aspenkv.quic.datagrams.Network`."""

    async def resolve(self, host: str, port: int) -> list[Path]:
        """Return the addresses of a name. Raises :class:`OSError` if it has none."""
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        return [Path(family, address) for family, _, _, _, address in found]

    def connect(self, path: Path) -> UdpSocket:
        """Open a connected socket. Raises :class:`OSError` if there is no way there."""
        opened = UdpSocket(path.family)
        try:
            opened.connect(path.address)
        except BaseException:
            opened.close()
            raise
        return opened


UDP: Final = UdpNetwork()


@contextmanager
def bind_sockets(host: str, port: int) -> Iterator[list[UdpSocket]]:
    """Listen on all addresses of a name, on one port, until the block ends.

    Args:
        host: a name or an address; the sockets of ``::`` take IPv6 only.
        port: 0 lets the kernel choose.

    Raises:
        OSError: the name is unknown, or an address is in use.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    with ExitStack() as stack:
        sockets: list[UdpSocket] = []
        for family, _, _, _, address in found:
            bound = UdpSocket(family)
            stack.callback(bound.close)
            chosen = sockets[0].getsockname()[1] if sockets else port
            bound.bind((address[0], chosen, *address[2:]))
            sockets.append(bound)
        yield sockets
