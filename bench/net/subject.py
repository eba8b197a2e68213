"""A way to make calls that is measured."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import trio

from aspenkv.identity import ServerIdentity

Call = Callable[[bytes], Awaitable[bytes]]
"""Sends a request of :mod:`bench.net.messages` and returns the reply."""


class Server(NamedTuple):
    """Where a subject's server listens, and the fingerprint of its certificate."""

    port: int
    fingerprint: bytes


class Subject(NamedTuple):
    """One way to make calls.

    Attributes:
        name: what the table calls it.
        serve: serves until cancelled, and reports its port when it does.
        connect: opens a client for the length of a block.
    """

    name: str
    serve: Callable[[ServerIdentity, trio.TaskStatus[int]], Awaitable[None]]
    connect: Callable[[Server], AbstractAsyncContextManager[Call]]
