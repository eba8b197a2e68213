"""The whole way of a key-value call: pool, protocol, driver, listener and service; no disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from aspenfs.kv import PooledKeyValue, open_kv
from aspenkv.access import Grant
from aspenkv.contract import Put
from aspenkv.dial import dial
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.listen import Listener
from aspenkv.quic import bind_sockets, serve_quic
from aspenkv.tickets import Endpoint, Ticket, format_ticket, parse_ticket
from bench.net import messages
from bench.net.limits import BULK_BYTES, SMALL_BYTES
from bench.net.subject import Call, Server

_HOST: Final = "127.0.0.1"
_KEY: Final = b"bulk"


async def serve(task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
    """Answer requests until cancelled."""
    async with open_embedded(MemoryEngine()) as service:
        identity = await service.identity()
        grant = Grant(b"", can_write=True, is_admin=True)
        made = await service.create_ticket(grant, label="benchmark", expires_s=None)
        await service.connect().commit((), (Put(_KEY, bytes(BULK_BYTES)),))
        listener = Listener(service)
        with bind_sockets(_HOST, 0) as sockets:
            async with trio.open_nursery() as nursery:
                await nursery.start(listener.run)
                await nursery.start(partial(serve_quic, sockets, identity, listener))
                port = sockets[0].getsockname()[1]
                ticket = Ticket(
                    (Endpoint(_HOST, port),), identity.fingerprint, made.ticket_id, made.secret
                )
                task_status.started(Server(port, identity.fingerprint, format_ticket(ticket)))


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Call]:
    """Open a client of the server."""
    ticket = parse_ticket(server.ticket)
    async with open_kv(ticket.endpoints, partial(dial, ticket=ticket, client="benchmark")) as kv:
        yield partial(_call, kv)


async def _call(kv: PooledKeyValue, request: bytes) -> bytes:
    """Make the call that carries what a request and its reply carry."""
    if len(request) > SMALL_BYTES + messages.HEAD_BYTES:
        await kv.commit((), (Put(_KEY, request[:BULK_BYTES]),))
        return messages.reply(request)
    if messages.reply_bytes(request) > SMALL_BYTES:
        (found,) = await kv.get((_KEY,), bulk=True)
        assert found is not None, "the server has put it there"
        return found.value
    await kv.revision()
    return messages.reply(request)
