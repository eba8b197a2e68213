"""A way to make calls that is measured."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import trio

Call = Callable[[bytes], Awaitable[bytes]]
"""Sends a request of :mod:`bench.net.messages` and returns the reply."""


class Server(NamedTuple):
    """Where a subject's server listens, and the fingerprint of its certificate.

    ``ticket`` is for subjects that ask for one.
    """

    port: int
    fingerprint: bytes
    ticket: str = ""


class Subject(NamedTuple):
    """One way to make calls.

    Attributes:
        name: what the table calls it.
        serve: serves until cancelled, and reports how to find it when it does.
        connect: opens a client for the length of a block.
    """

    name: str
    serve: Callable[[trio.TaskStatus[Server]], Awaitable[None]]
    connect: Callable[[Server], AbstractAsyncContextManager[Call]]
