"""Two mounts of one volume, each in a process of its own, as the tests here see them."""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from aspenkv.hosting import ADMIN_TICKET_NAME
from tests.mount.mounts import TIMEOUT_S, Mount, mounting
from tests.network.processes import serving

T = TypeVar("T")

FEED_S: Final = 0.5
"""In which what the feed tells is seen, on a busy machine; far below every time to live."""

_POLL_S: Final = 0.001


class Carrier(enum.StrEnum):
    """How the two mounts reach their store."""

    TICKETS = "tickets"  # both over QUIC, to a server
    HOSTING = "hosting"  # the first has it in its process, the second goes there over QUIC


ROUNDS: Final = {Carrier.TICKETS: 1000, Carrier.HOSTING: 200}


class Volume(NamedTuple):
    """Two mounts that stay while the tests of a module come and go."""

    carrier: Carrier
    first: Mount
    second: Mount


class Pair(NamedTuple):
    """One directory, as each of two mounts shows it.

    Attributes:
        first: the directory on one mount.
        second: the same on the other.
        rounds: how often a test is to do what it does, in both directions together.
        store_option: the option that names the store to a command.
    """

    first: Path
    second: Path
    rounds: int
    store_option: str

    def turns(self, rounds: int | None = None) -> Iterator[tuple[int, Path, Path]]:
        """Yield a number and who writes and who reads: many times one way, then the other way."""
        number = 0
        for writer, reader in ((self.first, self.second), (self.second, self.first)):
            for _ in range((rounds or self.rounds) // 2):
                yield number, writer, reader
                number += 1


@contextmanager
def two_mounts(
    directory: Path, carrier: Carrier, *arguments: str, second_prefix: Sequence[str] = ()
) -> Iterator[tuple[Mount, Mount]]:
    """Mount a new volume twice; a ``second_prefix`` is a program that runs the second mount."""
    if carrier is Carrier.TICKETS:
        with (
            serving(directory) as server,
            mounting(directory / "first", *arguments, ticket_file=server.ticket_file) as first,
            mounting(
                directory / "second",
                *arguments,
                ticket_file=server.ticket_file,
                prefix=second_prefix,
            ) as second,
        ):
            yield first, second
    else:
        with mounting(directory / "first", *arguments) as first:
            ticket_file = first.data_dir / ADMIN_TICKET_NAME
            with mounting(
                directory / "second", *arguments, ticket_file=ticket_file, prefix=second_prefix
            ) as second:
                yield first, second


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Yield a descriptor, and close it with the block, so that a failure leaves no mount busy."""
    file = os.open(path, flags, 0o644)
    try:
        yield file
    finally:
        os.close(file)


def at_once(*works: Callable[[], T]) -> list[T]:
    """Do some works at the same time, each in a thread; return what they return.

    The threads let each other run whenever one is in a system call, which is where the races are.
    """
    pool = ThreadPoolExecutor(len(works))
    try:
        futures = [pool.submit(work) for work in works]
        return [future.result(TIMEOUT_S) for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def seconds_until(condition: Callable[[], bool], within_s: float) -> float:
    """Look until a condition holds that nothing announces; return how long it took.

    It fails if that is longer than ``within_s``.
    """
    pause = threading.Event()
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < within_s, f"not seen in {within_s:g} s"
        pause.wait(_POLL_S)
    return time.monotonic() - began_s
