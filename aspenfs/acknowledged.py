"""Which commits the store has acknowledged, and whether it still has them. Pure.

A commit is acknowledged before it is on stable storage; only ``sync`` waits for that. So a power
cut of the server may take acknowledged commits with it: always the newest, never some out of the
middle. The client learns of it by the revision that the new server process found when it started.
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
    """The highest revision that a commit of this client was acknowledged with."""

    def __init__(self) -> None:
        """Begin before the first connection."""
        self._server: ServerProcess | None = None
        self._revision = _NONE
        self._loss: Loss | None = None
        self.losses = 0

    def met(self, server: ServerProcess) -> Loss | None:
        """Note which process answers a new connection; return what it has lost, if anything."""
        if server == self._server:
            return None
        self._server = server
        return self._compare()

    def add(self, server: ServerProcess, revision: int) -> Loss | None:
        """Note that ``server`` acknowledged a commit; return a loss that comes to light by it.

        The answer of a process may be read after its successor was met.
        """
        self._revision = max(self._revision, revision)
        return None if server == self._server else self._compare()

    def take_loss(self) -> Loss | None:
        """Return the loss that was not yet told to anybody, and forget it."""
        loss, self._loss = self._loss, None
        return loss

    def _compare(self) -> Loss | None:
        assert self._server is not None, "a connection comes before a commit"
        kept = self._server.started_revision
        if self._revision <= kept:
            return None
        already = self._loss
        self._loss = Loss(
            kept if already is None else min(kept, already.kept_revision),
            self._revision if already is None else max(self._revision, already.lost_revision),
        )
        self._revision = _NONE
        self.losses += 1
        return self._loss
