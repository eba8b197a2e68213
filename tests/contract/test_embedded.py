"""``open_embedded`` as a block of its user's program."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from aspenkv.errors import ClosedError
from aspenkv.service import Service

OpenServer = Callable[[], AbstractAsyncContextManager[Service]]


async def test_an_error_in_the_block_comes_out_as_it_is(open_server: OpenServer) -> None:
    with pytest.raises(LookupError, match="of the user"):
        async with open_server():
            raise LookupError("of the user")


async def test_a_cancelled_block_ends_the_service(open_server: OpenServer) -> None:
    with trio.CancelScope() as scope:
        async with open_server() as service:
            kv = service.connect()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    with pytest.raises(ClosedError):
        await kv.revision()
