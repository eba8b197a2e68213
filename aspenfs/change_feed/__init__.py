"""What anybody changes below a path, told by path: the feed behind ``aspenfs watch``.

The store tells keys. A directory entry's key names its directory by number, and a file's keys do
not name it at all; so the feed knows every name below the path, and keeps that up to date by the
very changes that it tells.
"""

from aspenfs.change_feed.events import EventKind, FeedEvent
from aspenfs.change_feed.follower import FeedGapError, Follower
from aspenfs.change_feed.known_tree import MOUNT_ROOT, Place, TooManyNamesError
from aspenfs.change_feed.source import open_changes
from aspenfs.change_feed.translator import UntranslatableError

__all__ = [
    "MOUNT_ROOT",
    "EventKind",
    "FeedEvent",
    "FeedGapError",
    "Follower",
    "Place",
    "TooManyNamesError",
    "UntranslatableError",
    "open_changes",
]
