"""What a ticket's holder may touch: keys and ranges below one prefix, to read or to write. Pure.

An error never tells of what lies elsewhere, not even whether anything does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from aspenkv.contract import Check, Copy, DeleteRange, Op, RangeEmpty
from aspenkv.errors import AccessDeniedError
from aspenkv.ranges import prefix_end


class Grant(NamedTuple):
    """The rights that a ticket gives: keys that start with ``prefix``, and to write them, too.

    An administrator's prefix is empty; he also makes, lists and revokes tickets.
    """

    prefix: bytes
    can_write: bool
    is_admin: bool


class Access:
    """Holds calls to the bounds of a grant: each check passes, or raises AccessDeniedError."""

    __slots__ = ("_end", "_prefix", "grant")

    def __init__(self, grant: Grant) -> None:
        """Bound a client to what ``grant`` gives."""
        self.grant: Final = grant
        self._prefix = grant.prefix
        self._end = prefix_end(grant.prefix)

    def check_keys(self, keys: Sequence[bytes]) -> None:
        """Check the keys of a get."""
        prefix = self._prefix
        if prefix:
            for key in keys:
                if not key.startswith(prefix):
                    raise _outside()

    def check_range(self, start: bytes, end: bytes) -> None:
        """Check that ``[start, end)`` lies below the prefix, even if it is empty."""
        if start < self._prefix or (self._end is not None and end > self._end):
            raise _outside()

    def check_watch(self, prefix: bytes) -> None:
        """Check what a watch is to watch."""
        if not prefix.startswith(self._prefix):
            raise _outside()

    def check_write(self) -> None:
        """Check that anything may be changed at all."""
        if not self.grant.can_write:
            raise AccessDeniedError("the ticket is read-only: ask for one that may write")

    def check_admin(self) -> None:
        """Check that tickets may be made, listed and revoked."""
        if not self.grant.is_admin:
            raise AccessDeniedError("only an administrator's ticket may do this: use that one")

    def check_commit(self, checks: Sequence[Check], ops: Sequence[Op]) -> None:
        """Check that it may write, and that all parts of a commit lie below the prefix."""
        self.check_write()
        prefix = self._prefix
        if not prefix:
            return
        for part in (*checks, *ops):
            if isinstance(part, RangeEmpty | DeleteRange):
                self.check_range(part.start, part.end)
            elif not part.key.startswith(prefix) or (
                isinstance(part, Copy) and not part.source.startswith(prefix)
            ):
                raise _outside()


def _outside() -> AccessDeniedError:
    return AccessDeniedError("the ticket is for another volume than this key or range")
