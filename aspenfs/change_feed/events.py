"""What a feed tells. Pure."""

from __future__ import annotations

import enum
from typing import NamedTuple


class EventKind(enum.StrEnum):
    """What became of a path. docs/operations.md explains each to users."""

    CREATED = "created"
    WRITTEN = "written"
    CHANGED = "changed"
    RENAMED = "renamed"
    EXCHANGED = "exchanged"
    REMOVED = "removed"


class FeedEvent(NamedTuple):
    """One change of one path.

    Paths are relative to the one that is watched, which is itself the empty path. ``revision`` is
    that of the commit; of several writes that are told as one, of the newest. ``file_type`` is the
    S_IFMT part of the mode, as in readdir(3), of what ``path`` means, or meant until it was
    removed. ``old_path`` is where that was before, for RENAMED and EXCHANGED.
    """

    revision: int
    kind: EventKind
    path: bytes
    file_type: int
    old_path: bytes | None = None
