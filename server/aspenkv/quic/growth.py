"""Which requests of a connection may grow long: as many as there is memory for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from aspenkv.limits import CONNECTION_REQUEST_BYTES_MAX, REQUEST_BYTES_MAX

_GROWN_MAX = CONNECTION_REQUEST_BYTES_MAX // REQUEST_BYTES_MAX


class RequestGrowth:
    """Grants long requests their memory in the order in which they began.

    A request is granted the longest that it may become, all at once: if each got a part, some
    could end up waiting for each other's memory for ever. It gives it back when it is answered.
    """

    def __init__(self, grant: Callable[[int], None]) -> None:
        """Begin with nothing granted.

        Args:
            grant: called with the id of a stream whose request may grow.
        """
        self._grant = grant
        self._is_open = False
        self._granted: set[int] = set()
        self._waiting: deque[int] = deque()

    def open(self) -> None:
        """Begin to grant."""
        self._is_open = True
        self._grant_next()

    def ask(self, stream_id: int) -> None:
        """Grant a stream's request its memory as soon as there is some; asking again is free."""
        if stream_id not in self._granted and stream_id not in self._waiting:
            self._waiting.append(stream_id)
            self._grant_next()

    def give_back(self, stream_id: int) -> None:
        """Take the memory of a request that is answered or given up, if it had any."""
        if stream_id in self._granted:
            self._granted.discard(stream_id)
            self._grant_next()
        elif stream_id in self._waiting:
            self._waiting.remove(stream_id)

    def _grant_next(self) -> None:
        while self._is_open and self._waiting and len(self._granted) < _GROWN_MAX:
            stream_id = self._waiting.popleft()
            self._granted.add(stream_id)
            self._grant(stream_id)
