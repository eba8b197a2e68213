"""Delegations: who was promised that nobody else commits below a prefix, and until when. Pure.

As NFSv4's (RFC 8881 §10.4) they let a client that is alone answer from its cache without asking.
But none is recalled: each runs out by itself so soon that whoever is in its way waits for that. So
a holder that does not answer holds nobody up, and needs no call from the server.

Time is passed in, in seconds of any clock that never goes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from aspenkv.contract import DeleteRange, Op
from aspenkv.limits import DELEGATION_S, DELEGATION_SLACK_S
from aspenkv.ranges import prefix_end

Origin = object
"""Stands for the client that made a commit; compared by identity."""

NOBODY: Final[Origin] = object()
"""The origin whose commits a watch leaves out when it leaves out none."""

SERVER: Final[Origin] = object()
"""The origin of the commits that the server makes itself."""


class Span(NamedTuple):
    """All keys from ``start`` to ``end``, which is not in it; None: to the last key."""

    start: bytes
    end: bytes | None

    def meets(self, other: Span) -> bool:
        """Return whether a key lies in both."""
        return (other.end is None or self.start < other.end) and (
            self.end is None or other.start < self.end
        )


def span_below(prefix: bytes) -> Span:
    """Return the keys that start with ``prefix``."""
    return Span(prefix, prefix_end(prefix))


def span_of(ops: Sequence[Op]) -> Span:
    """Return the smallest span that holds all keys which ``ops``, of which there are some, touch.

    A volume's keys lie beside each other, so this finds the same clients in each other's way as a
    look at each key would, at a cost that does not grow with what others have under way.
    """
    return Span(
        min(op[0] for op in ops),
        max(op.end if isinstance(op, DeleteRange) else op.key + b"\0" for op in ops),
    )


class _Announced(NamedTuple):
    origin: Origin
    span: Span


class Delegations:
    """All promises of a server, and the commits that no new one may be made against."""

    def __init__(self, *, are_granted: bool) -> None:
        """Start with none.

        Args:
            are_granted: False where others commit to the same engine, unseen by this process: then
                it can promise nothing.
        """
        self._are_granted = are_granted
        # In the order in which they end, since all run for the same time.
        self._until_s: dict[tuple[Origin, bytes], float] = {}
        self._announced: dict[int, _Announced] = {}
        self._announcements = 0

    def grant(self, origin: Origin, prefix: bytes, now_s: float) -> float:
        """Promise a client to be alone below a prefix, if nobody's commit is on its way there.

        Returns:
            For how many seconds, counted from a moment before ``now_s`` on the client's clock. 0:
            not at all.
        """
        span = span_below(prefix)
        if not self._are_granted or any(
            commit.origin is not origin and commit.span.meets(span)
            for commit in self._announced.values()
        ):
            return 0.0
        self.assume(origin, prefix, now_s)
        return DELEGATION_S

    def assume(self, origin: Origin, prefix: bytes, now_s: float) -> None:
        """Keep a promise that may have been made just now, be it by the process before this."""
        self._drop_ended(now_s)
        self._until_s.pop((origin, prefix), None)
        self._until_s[origin, prefix] = now_s + DELEGATION_S + DELEGATION_SLACK_S

    def give_back(self, origin: Origin) -> None:
        """Forget what was promised to a client that relies on it no more."""
        self._until_s = {key: end_s for key, end_s in self._until_s.items() if key[0] is not origin}

    def stand_against(self, origin: Origin) -> bool:
        """Return whether a client's commit may have to wait. Costs next to nothing if it need not.

        It need not where nobody was promised anything, or nobody but this client.
        """
        for holder, _ in self._until_s:  # noqa: SIM110 - any() would take longer than all the rest
            if holder is not origin:
                return True
        return False

    def wait_until_s(self, origin: Origin, ops: Sequence[Op], now_s: float) -> float | None:
        """Return when a commit of a client may be carried out; None: at once."""
        self._drop_ended(now_s)
        if not ops:
            return None
        span = span_of(ops)
        return max(
            (
                until_s
                for (holder, prefix), until_s in self._until_s.items()
                if holder is not origin and span.meets(span_below(prefix))
            ),
            default=None,
        )

    @contextmanager
    def announced(self, origin: Origin, ops: Sequence[Op]) -> Iterator[None]:
        """Make no promise to others that a commit would break which is on its way in the block.

        So who waits for a promise to end does not wait for the next one, too.
        """
        if not ops:
            yield
            return
        self._announcements += 1
        number = self._announcements
        self._announced[number] = _Announced(origin, span_of(ops))
        try:
            yield
        finally:
            del self._announced[number]

    def _drop_ended(self, now_s: float) -> None:
        while self._until_s:
            key = next(iter(self._until_s))
            if self._until_s[key] > now_s:
                break
            del self._until_s[key]
