"""A bound on how often something happens."""

from __future__ import annotations


class TokenBucket:
    """Lets something happen so often a second, and as often at once after a pause."""

    def __init__(self, rate_per_s: float, now: float) -> None:
        """Begin full.

        Args:
            rate_per_s: how often a second.
            now: seconds, on the clock of all calls.
        """
        self._rate_per_s = rate_per_s
        self._tokens = rate_per_s
        self._filled_at = now

    def take(self, now: float) -> bool:
        """Return whether it may happen now."""
        self._tokens = min(
            self._rate_per_s, self._tokens + (now - self._filled_at) * self._rate_per_s
        )
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
