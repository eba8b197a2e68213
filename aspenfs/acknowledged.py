"""What the store has told this client, and whether it still holds. Pure.

A commit is acknowledged before it is on stable storage; only ``sync`` waits for that. So a power
cut of the server may take acknowledged commits with it: always the newest, never some out of the
middle. The next server process counts on from what is left, so the revisions that were lost are
given a second time, to other commits. The client learns of it by the revision that the new process
found when it started.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_NONE: Final = 0  # revisions begin at 1


class ServerProcess(NamedTuple):
    """What tells one process of a server from the next: its number, and what it found."""

    server_id: bytes
    started_revision: int


class Loss(NamedTuple):
    """Commits of this client above ``kept_revision``, up to ``lost_revision``, are gone."""

    kept_revision: int
    lost_revision: int


class Acknowledged:
    """The highest revisions that this client knows of, and what was lost of them."""

    def __init__(self) -> None:
        """Begin before the first connection."""
        self._server: ServerProcess | None = None
        self._committed = _NONE
        self._seen = _NONE
        self._loss: Loss | None = None
        self._twice: tuple[int, int] | None = None
        self.losses = 0

    def met(self, server: ServerProcess) -> Loss | None:
        """Note which process answers a new connection; return what it has lost, if anything."""
        if server == self._server:
            return None
        self._server = server
        seen, committed = self._seen, self._committed
        self._seen = min(seen, server.started_revision)
        self._committed = committed if committed <= server.started_revision else _NONE
        return self._compare(seen, committed)

    def committed(self, server: ServerProcess, revision: int) -> Loss | None:
        """Note that ``server`` acknowledged a commit; return a loss that comes to light by it.

        The answer of a process may be read after its successor was met.
        """
        if server != self._server:
            return self._compare(revision, revision)
        self._committed = max(self._committed, revision)
        self._seen = max(self._seen, revision)
        return None

    def seen(self, server: ServerProcess, revision: int) -> None:
        """Note that ``server`` named a revision, of whose commit it may be."""
        if server != self._server:
            self._compare(revision, _NONE)
        else:
            self._seen = max(self._seen, revision)

    def take_loss(self) -> Loss | None:
        """Return the loss that was not yet told to anybody, and forget it."""
        loss, self._loss = self._loss, None
        return loss

    def is_given_twice(self, revision: int) -> bool:
        """Whether ``revision`` may stand for two histories: one that was lost, and today's."""
        return self._twice is not None and self._twice[0] < revision <= self._twice[1]

    def _compare(self, seen: int, committed: int) -> Loss | None:
        """Compare what earlier processes have said with what the newest found when it started.

        What the newest one says itself is no part of that: it counts on from there.
        """
        assert self._server is not None, "a connection comes before an answer"
        kept = self._server.started_revision
        if seen > kept:
            self._twice = _spanned(self._twice, kept, seen)
        if committed <= kept:
            return None
        self._loss = Loss(*_spanned(self._loss, kept, committed))
        self.losses += 1
        return self._loss


def _spanned(earlier: tuple[int, int] | None, low: int, high: int) -> tuple[int, int]:
    """Return the smallest span that holds an earlier one and ``(low, high)``."""
    return (low, high) if earlier is None else (min(low, earlier[0]), max(high, earlier[1]))
