"""The trio driver of one connection, for both ends.

Two tasks serve a connection. One receives: it reads many datagrams from the socket, hands them to
the core and the core's events to the streams; a client's connection has its own, the connections of
a server share that of their socket. The other transmits: it alone waits for the core's timer, and
is woken when there is something to send. All else is synchronous, so no state is ever seen half
changed.

To save packets and wake-ups, which cost more than the bytes in them:

- What several tasks write in one turn of the event loop leaves together, at its end. The only call
  under way is sent at once, for nothing would join it.
- An acknowledgement rides on the next packet that carries data, or waits ``ACK_DELAY_S``; two
  datagrams are acknowledged at once (RFC 9000 §13.2.2).
- A timer that moves to a later time is not set anew: the task wakes at the earlier time, finds
  nothing to do, and goes on waiting.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from math import inf
from typing import Any, Final, NamedTuple, Protocol

import trio
from aioquic.quic import events

from aspenkv.errors import AspenKvError, ConnectionLostError
from aspenkv.limits import (
    ACK_DELAY_S,
    HANDSHAKE_TIMEOUT_S,
    KEEPALIVE_S,
    KEY_UPDATE_PACKETS,
    REQUEST_BYTES_MAX,
    SEND_UNSENT_BYTES_MAX,
    STREAMS_MAX,
    STREAMS_UNADMITTED_MAX,
)
from aspenkv.quic.core import Core
from aspenkv.quic.datagrams import Address, Datagram, DatagramSocket
from aspenkv.quic.errors import (
    INTERNAL_ERROR,
    NO_ERROR,
    ConnectionClosedError,
    StreamResetError,
)
from aspenkv.quic.growth import RequestGrowth
from aspenkv.quic.stream import Abandoned, Exchange, QuicStream, Request, StreamEnd

log = logging.getLogger(__name__)

# A timer must not fire at the very moment that it names: on a clock that stands still meanwhile it
# would be found not due, and be set again for ever.
_LATE_S: Final = 1e-6
_GRANULARITY_S: Final = 0.001  # for a timer that is due but let nothing happen; RFC 9002 §6.1.2
_ACK_AT_ONCE_DATAGRAMS: Final = 2


class ConnectionStatistics(NamedTuple):
    """What a connection has done, and how its path is."""

    datagrams_sent: int
    datagrams_received: int
    bytes_sent: int
    bytes_received: int
    packets_lost: int
    socket_errors: int
    streams_open: int
    datagram_bytes: int
    congestion_window_bytes: int
    round_trip_s: float


class ConnectionOwner(Protocol):
    """Who made a connection, and is told what happens to it; the calls must not block."""

    def on_established(self, connection: QuicConnection) -> None:
        """The handshake is complete, and nothing else was sent yet; may close the connection."""

    def on_request(self, connection: QuicConnection, stream: QuicStream, request: bytes) -> None:
        """A request is complete; to be answered, then reported to ``handled``."""

    def on_connection_id(
        self, connection: QuicConnection, connection_id: bytes, *, is_new: bool
    ) -> None:
        """The peer may address the connection by one more id, or no longer by this one."""

    def on_closed(self, connection: QuicConnection) -> None:
        """The connection is gone."""


class QuicConnection:
    """A connection. Calls share it by streams; what happens to one stream happens to no other.

    Attributes:
        established: set when the handshake is complete, or the connection is gone.
        closed: set when the connection is gone, for whatever reason.
        close_reason: why, then; None if this end closed it.
        state: for who answers requests, to keep what belongs to the connection.
    """

    def __init__(
        self, core: Core, socket: DatagramSocket, owner: ConnectionOwner, *, is_client: bool
    ) -> None:
        """Drive a core over a socket, when :meth:`run` and datagrams come."""
        self.established = trio.Event()
        self.closed = trio.Event()
        self.close_reason: AspenKvError | None = None
        self.state: Any = None
        self._core = core
        self._socket = socket
        self._owner = owner
        self._is_client = is_client

        self._streams: dict[int, StreamEnd] = {}
        self._unsent: set[int] = set()  # streams with bytes that the core could not send yet
        self._unsent_bytes = 0  # at most
        self._busy = 0  # exchanges, or requests that are being answered
        self._stream_waiters = trio.lowlevel.ParkingLot()
        self._room_waiters = trio.lowlevel.ParkingLot()
        self._growth = RequestGrowth(self._grant_growth)
        self._is_admitted = False

        now = trio.current_time()
        self._began_at = now
        self._heard_at = now
        self._asked_at = now
        self._timer_at: float | None = None
        self._armed_at = -inf  # when the sleeping transmitter wakes; -inf if it is awake
        self._transmitter: trio.lowlevel.Task | None = None
        self._is_dirty = True  # there is something to send
        self._has_data = False  # and it is data, on which an acknowledgement may ride
        self._must_send = False  # and it should not wait for data
        self._unacknowledged = 0  # datagrams since something was to be acknowledged
        self._backlog: Sequence[Datagram] = ()  # that the socket had no room for
        self._path_address: Address | None = None
        self._key_update_at = KEY_UPDATE_PACKETS
        self._scope = trio.CancelScope()

        self._datagrams_sent = 0
        self._datagrams_received = 0
        self._bytes_sent = 0
        self._bytes_received = 0
        self._socket_errors = 0

    # --- for who uses it -------------------------------------------------------------------------

    @property
    def peer_address(self) -> Address:
        """Where the other end is now; it may change while the connection lasts."""
        address = self._core.peer_address
        assert address is not None, "a server makes a connection of a client's datagram"
        return address

    @property
    def peer_certificate_der(self) -> bytes:
        """The certificate whose key the other end has; b"" if it showed none."""
        return self._core.peer_certificate_der

    def statistics(self) -> ConnectionStatistics:
        """Return what the connection has done so far."""
        return ConnectionStatistics(
            datagrams_sent=self._datagrams_sent,
            datagrams_received=self._datagrams_received,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            packets_lost=self._core.congestion.packets_lost,
            socket_errors=self._socket_errors,
            streams_open=len(self._streams),
            datagram_bytes=self._core.datagram_bytes,
            congestion_window_bytes=self._core.congestion.congestion_window,
            round_trip_s=self._core.round_trip_s,
        )

    async def exchange(self, request: bytes, *, reply_bytes_max: int) -> bytes:
        """Send a request on a stream of its own, and return the reply.

        A cancelled exchange resets its stream and nothing else.

        Raises:
            ConnectionLostError: the connection is gone; the request may have been carried out.
            StreamResetError: the peer gave up the stream.
            RemoteProtocolError: the reply is longer than ``reply_bytes_max``.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._wait_for_stream()
        await self.wait_for_room()
        stream_id = self._core.get_next_available_stream_id()
        exchange = Exchange(self, stream_id, reply_bytes_max)
        self._streams[stream_id] = exchange
        self._busy += 1
        try:
            self.write(stream_id, request, is_end=True)
            return await exchange.wait()
        finally:
            self._busy -= 1

    async def open_stream(self) -> QuicStream:
        """Open a stream.

        Raises:
            ConnectionLostError: the connection is gone.
        """
        await self._wait_for_stream()
        stream_id = self._core.get_next_available_stream_id()
        self._core.send_stream_data(stream_id, b"")  # now the core gives the number to nobody else
        stream = QuicStream(self, stream_id)
        self._streams[stream_id] = stream
        return stream

    def admit(self) -> None:
        """Trust the client with as many streams, and requests as long, as the limits allow.

        A server calls this when it knows who the client is.
        """
        if not self._is_admitted:
            self._is_admitted = True
            self._core.allow_streams(STREAMS_MAX - STREAMS_UNADMITTED_MAX)
            self._growth.open()
            self._wake()

    def close(self, code: int = NO_ERROR, reason: str = "") -> None:
        """Close the connection at once, and tell the other end as far as one datagram can."""
        if not self.closed.is_set():
            self._core.close(error_code=code, reason_phrase=reason)
            self._send_pending(trio.current_time())
            self._end(None)

    async def _wait_for_stream(self) -> None:
        while not self.closed.is_set() and self._streams_left() <= 0:
            await self._stream_waiters.park()
        self._check_open()

    def _streams_left(self) -> int:
        return min(STREAMS_MAX - len(self._streams), self._core.streams_left)

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise self._lost()

    def _lost(self) -> AspenKvError:
        return self.close_reason or ConnectionLostError("the connection was closed")

    # --- for its streams -------------------------------------------------------------------------

    def write(self, stream_id: int, data: bytes, *, is_end: bool) -> None:
        """Hand bytes of a stream to the core.

        Raises:
            ConnectionLostError: the connection is gone.
        """
        self._check_open()
        self._core.send_stream_data(stream_id, data, is_end)
        self._unsent.add(stream_id)
        self._unsent_bytes += len(data)
        self._has_data = True
        if self._busy <= 1:
            self._transmit()
        else:
            self._wake()

    async def wait_for_room(self) -> None:
        """Return when little enough is unsent.

        Raises:
            ConnectionLostError: the connection is gone.
        """
        while self._unsent_bytes >= SEND_UNSENT_BYTES_MAX and not self.closed.is_set():
            await self._room_waiters.park()
        self._check_open()

    def allow_data(self, stream_id: int, offset_max: int) -> None:
        """Let the peer send up to an offset of a stream."""
        self._core.allow_stream_data(stream_id, offset_max)
        self._must_send = True
        self._wake()

    def abandon(self, stream_id: int, code: int) -> None:
        """Reset both halves of a stream, as far as they are not complete, and forget it."""
        if isinstance(self._streams.get(stream_id), Request):
            self._growth.give_back(stream_id)
        self.finish(stream_id)
        if self.closed.is_set():
            return
        if self._core.give_up(stream_id, code) and not self._is_client:
            self._streams[stream_id] = Abandoned(self, stream_id)
        self._must_send = True
        self._wake()

    def finish(self, stream_id: int) -> None:
        """Forget a stream of which both halves are complete or given up."""
        self._streams.pop(stream_id, None)
        self._let_open_streams()

    def _let_open_streams(self) -> None:
        if self._stream_waiters:
            self._stream_waiters.unpark(count=max(0, self._streams_left()))

    def request_grows(self, stream_id: int) -> None:
        """Let a request become long, when there is memory for one more."""
        self._growth.ask(stream_id)

    def _grant_growth(self, stream_id: int) -> None:
        # One byte more than is taken, so that what is too long is seen and refused.
        self.allow_data(stream_id, REQUEST_BYTES_MAX + 1)

    # --- for who answers requests ----------------------------------------------------------------

    def request_received(self, stream: QuicStream, request: bytes) -> None:
        """Have a request answered."""
        self._streams[stream.id] = stream
        self._busy += 1
        self._owner.on_request(self, stream, request)

    def handled(self, stream: QuicStream) -> None:
        """Take note that a request was answered; without an answer its stream is reset."""
        self._busy -= 1
        if not stream.is_send_ended:
            stream.reset(INTERNAL_ERROR)
        if self._streams.get(stream.id) is stream:
            del self._streams[stream.id]
        self._growth.give_back(stream.id)

    # --- receiving -------------------------------------------------------------------------------

    async def receive_loop(self) -> None:
        """Read the socket of a client's connection until the connection ends."""
        while not self.closed.is_set():
            try:
                await self._socket.wait_readable()
                datagrams = self._socket.receive()
            except OSError as error:
                self._on_socket_error(error)
                continue
            now = trio.current_time()
            for data, address in datagrams:
                if self._core.is_stateless_reset(data):
                    self._end(ConnectionLostError("the server does not know the connection"))
                    return
                self.feed(data, address, now)
            if datagrams:
                self.received(now)

    def feed(self, data: bytes, address: Address, now: float) -> None:
        """Take one datagram; :meth:`received` follows after the last of a batch."""
        self._datagrams_received += 1
        self._bytes_received += len(data)
        core = self._core
        try:
            core.receive_datagram(data, address, now)
            if core.has_ack_pending:
                self._unacknowledged += 1
        except Exception as error:  # noqa: BLE001 - a peer must not end more than its connection
            self._break(error)

    def received(self, now: float) -> None:
        """Work on what the datagrams of a batch brought."""
        try:
            self._received(now)
        except Exception as error:  # noqa: BLE001 - as above
            self._break(error)

    def _break(self, error: Exception) -> None:
        """End this connection, and no other, after an error that nobody expected."""
        # Of one that breaks at its first datagram the core knows no address yet.
        log.error("the connection with %s broke", self._core.peer_address, exc_info=error)
        self._end(ConnectionLostError("the connection's state is broken"))

    def _received(self, now: float) -> None:
        if self.closed.is_set():
            return
        core = self._core
        if now >= self._heard_at + KEEPALIVE_S:
            core.forget_silence()
        self._heard_at = now
        self._handle_events()
        if self.closed.is_set():
            return
        self._let_open_streams()  # the peer may allow more
        if self._unacknowledged >= _ACK_AT_ONCE_DATAGRAMS:
            self._must_send = True
        if self._must_send or self._unsent or core.congestion.has_lost or not core.is_confirmed:
            self._transmit()
        else:
            # The core's timer is asked for when this one is due; most often the next call leaves
            # before, and sets it anyway.
            self._arm_at(now + ACK_DELAY_S)

    def _handle_events(self) -> None:
        if self.closed.is_set():
            return  # and its owner no longer knows it
        while (event := self._core.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                self._on_data(event)
            elif isinstance(event, events.StreamReset | events.StopSendingReceived):
                self._on_reset(event.stream_id, event.error_code)
            elif isinstance(event, events.HandshakeCompleted):
                self._owner.on_established(self)
                self._must_send = True
                self.established.set()
            elif isinstance(event, events.ConnectionIdIssued):
                self._owner.on_connection_id(self, event.connection_id, is_new=True)
            elif isinstance(event, events.ConnectionIdRetired):
                self._owner.on_connection_id(self, event.connection_id, is_new=False)
                self._must_send = True
            if self.closed.is_set():
                return
        ending = self._core.ending
        if ending is not None:
            self._send_pending(trio.current_time())  # what tells the peer, if it was our doing
            self._end(
                ConnectionClosedError(ending.code, ending.reason, is_by_peer=ending.is_by_peer)
            )

    def _on_data(self, event: events.StreamDataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            if self._is_client:
                return  # what was under way when the stream was given up
            stream = Request(self, event.stream_id)
            self._streams[event.stream_id] = stream
        stream.data_received(event.data, is_end=event.end_stream)

    def _on_reset(self, stream_id: int, code: int) -> None:
        """Give up both halves: a call of which one is missing is none."""
        stream = self._streams.get(stream_id)
        self.abandon(stream_id, code)
        if stream is not None:
            stream.failed(StreamResetError(code))

    # --- transmitting ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Transmit until the connection ends; if cancelled, close it."""
        try:
            with self._scope:
                while not self.closed.is_set():
                    if self._backlog:
                        await self._socket.wait_writable()
                        backlog, self._backlog = self._backlog, ()
                        self._send(backlog)
                    if self._is_dirty or self._wake_at() <= trio.current_time():
                        self._look_at_the_clock()
                        self._transmit()
                    if not self._backlog:
                        await self._sleep()
        except Exception as error:  # noqa: BLE001 - as above
            self._break(error)
        finally:
            self.close()

    async def _sleep(self) -> None:
        """Return when there is something to send, the timer is due, or it was set earlier."""
        self._armed_at = self._wake_at()
        with trio.move_on_at(self._armed_at):
            while not self._is_dirty and self._wake_at() >= self._armed_at:
                self._transmitter = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort_sleep)
        self._armed_at = -inf

    def _abort_sleep(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._transmitter = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake_at(self) -> float:
        wake_at = inf if self._timer_at is None else self._timer_at
        return min(wake_at, self._keepalive_at(), self._handshake_deadline()) + _LATE_S

    def _keepalive_at(self) -> float:
        if not self._is_client or not self.established.is_set():
            return inf
        return max(self._heard_at, self._asked_at) + KEEPALIVE_S

    def _handshake_deadline(self) -> float:
        return inf if self.established.is_set() else self._began_at + HANDSHAKE_TIMEOUT_S

    def _wake(self) -> None:
        """Have something sent at the end of this turn of the event loop."""
        self._is_dirty = True
        self._rouse()

    def _rouse(self) -> None:
        task, self._transmitter = self._transmitter, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _transmit(self) -> None:
        """Send what there is to send, after what the core's timer brings if it is due."""
        if self.closed.is_set() or self._backlog:
            return
        core = self._core
        now = trio.current_time()
        if self._timer_at is not None and now >= self._timer_at:
            self._handle_timer(now)
            if self.closed.is_set():
                return
        if self._has_data or self._must_send:
            core.ack_at(now)
        if core.is_confirmed:
            self._size_datagrams(now)
        self._send_pending(now)
        self._handle_events()  # a new connection id counts from when it was sent
        if self._unsent:
            self._update_unsent()
        if not self.closed.is_set():
            self._arm(now)

    def _handle_timer(self, now: float) -> None:
        timer_at = self._core.get_timer()  # it may have moved since
        if timer_at is not None and now >= timer_at:
            self._core.handle_timer(now)
            self._handle_events()

    def _look_at_the_clock(self) -> None:
        """Do what is due to be done beside the core's own timers."""
        now = trio.current_time()
        if now >= self._handshake_deadline():
            self._end(ConnectionLostError("the handshake took too long"))
        elif now >= self._keepalive_at():
            self._asked_at = now
            self._core.ask_for_a_sign()

    def _size_datagrams(self, now: float) -> None:
        core = self._core
        address = core.get_peer_address()
        if address is not self._path_address:
            self._path_address = address
            self._learn_mtu()
        core.fill_datagrams_to(core.congestion.path.datagram_bytes(now))
        if self._datagrams_sent >= self._key_update_at:
            self._key_update_at = self._datagrams_sent + KEY_UPDATE_PACKETS
            core.request_key_update()

    def _learn_mtu(self) -> None:
        self._core.congestion.path.bytes_max = self._socket.datagram_bytes_max(self.peer_address)

    def _send_pending(self, now: float) -> None:
        self._is_dirty = self._has_data = self._must_send = False
        self._core.congestion.has_lost = False
        self._unacknowledged = 0
        if self._backlog or self._core.peer_address is None:
            return
        datagrams, has_more = self._core.next_burst(now)
        if datagrams:
            self._send(datagrams)
        if has_more:
            self._wake()

    def _send(self, datagrams: Sequence[Datagram]) -> None:
        try:
            count = self._socket.send(datagrams)
        except OSError as error:
            # What could not be sent is as good as lost: the core sends again what matters.
            self._on_socket_error(error)
            return
        self._datagrams_sent += count
        self._bytes_sent += sum([len(data) for data, _ in datagrams[:count]])
        if count < len(datagrams):
            self._backlog = datagrams[count:]
            self._wake()

    def _on_socket_error(self, error: OSError) -> None:
        self._socket_errors += 1
        if isinstance(error, ConnectionRefusedError):
            self._end(ConnectionLostError("nobody listens there"))
        elif error.errno == errno.EMSGSIZE:
            self._learn_mtu()

    def _update_unsent(self) -> None:
        core = self._core
        self._unsent.difference_update([each for each in self._unsent if core.is_all_sent(each)])
        self._unsent_bytes = sum([core.unsent_bytes(each) for each in self._unsent])
        if self._room_waiters and self._unsent_bytes < SEND_UNSENT_BYTES_MAX:
            self._room_waiters.unpark_all()

    def _arm(self, now: float) -> None:
        """Take the core's timer, and rouse the transmitting task if it would wake too late."""
        timer_at = self._core.get_timer()
        self._timer_at = None
        if timer_at is not None:
            self._arm_at(timer_at if timer_at > now else now + _GRANULARITY_S)

    def _arm_at(self, timer_at: float) -> None:
        """Wake at a time, or earlier if that was to be done before."""
        if self._timer_at is None or timer_at < self._timer_at:
            self._timer_at = timer_at
            if timer_at + _LATE_S < self._armed_at:
                self._rouse()

    # --- the end ---------------------------------------------------------------------------------

    def _end(self, reason: AspenKvError | None) -> None:
        """Let everybody know that the connection is gone."""
        if self.closed.is_set():
            return
        self.close_reason = reason
        self.closed.set()
        self.established.set()
        streams, self._streams = self._streams, {}
        lost = self._lost()
        for stream in streams.values():
            stream.failed(lost)
        self._stream_waiters.unpark_all()
        self._room_waiters.unpark_all()
        self._scope.cancel()
        self._owner.on_closed(self)
