"""A mount reads what comes by its control socket. The first byte says how the bytes are cut."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from aspenfs.control import StreamHandler, key_value_handlers
from aspenfs.control.frames import ControlProtocolError, FrameDecoder, Message, encode
from aspenfs.errors import AspenError
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import AspenKvError

_MESSAGES: Final[tuple[Message, ...]] = (
    {"call": "kv_get", "args": {"keys": [b"fs:a:key"]}},
    {
        "call": "kv_scan",
        "args": {
            "start": b"a",
            "end": b"z",
            "limit": 10,
            "keys_only": False,
            "reverse": True,
            "continuation": None,
        },
    },
    {"call": "kv_commit", "args": {"checks": [(b"a", 0)], "ops": [(b"a", b"1"), (b"b", None)]}},
    {"call": "kv_revision", "args": {}},
    {"call": "kv_status", "args": {}},
    {"call": "kv_sync", "args": {}},
    {"call": "inode", "args": {"ino": 1}},
    {"ok": {"path": "a\udcff"}},
    {"error": "AspenError", "message": "why"},
)
_WIRE: Final = [encode(message) for message in _MESSAGES]

SEEDS: Final = [bytes((size,)) + wire for size in (1, 7, 255) for wire in (*_WIRE, b"".join(_WIRE))]


def check(data: bytes) -> None:
    """However the bytes are cut, the same messages come out; what they ask is answered or refused.

    What is no answer must be an error that the control server takes for the client's fault.
    """
    if not data:
        return
    size, wire = max(1, data[0]), data[1:]
    messages = _received([wire])
    assert repr(_received([wire[at : at + size] for at in range(0, len(wire), size)])) == repr(
        messages
    )
    calls = [message for message in messages if isinstance(message.get("args"), dict)]
    if calls:
        trio.run(_serve, calls)


def _received(pieces: list[bytes]) -> list[Message]:
    decoder = FrameDecoder()
    messages: list[Message] = []
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (message := decoder.next_message()) is not None:
                messages.append(message)
    except ControlProtocolError as error:
        messages.append({"failure": str(error)})
    return messages


async def _serve(calls: list[Message]) -> None:
    async with open_embedded(MemoryEngine()) as service:
        handlers = key_value_handlers(service.connect(), read_only=False)
        for message in calls:
            call = message.get("call")
            handler = handlers.get(call) if isinstance(call, str) else None
            if handler is None or isinstance(handler, StreamHandler):
                continue
            answer = None
            with suppress(AspenError, AspenKvError, KeyError, TypeError, ValueError):
                answer = await handler(message["args"])
            encode({"ok": answer})
