"""Frames from a trio stream, the same at both ends."""

from __future__ import annotations

import trio

from aspenfs.control.frames import ControlProtocolError, FrameDecoder, Message
from aspenfs.limits import CONTROL_RECEIVE_BYTES


async def receive(stream: trio.abc.ReceiveStream, decoder: FrameDecoder) -> Message | None:
    """Return the next message from a stream; None: the other end closed after a whole one.

    Raises:
        ControlProtocolError: what came is no frame, or ended within one.
        trio.BrokenResourceError: the connection is gone.
    """
    while (message := decoder.next_message()) is None:
        data = await stream.receive_some(CONTROL_RECEIVE_BYTES)
        if not data:
            if decoder.is_empty:
                return None
            raise ControlProtocolError("the connection ended within a frame")
        decoder.feed(data)
    return message
