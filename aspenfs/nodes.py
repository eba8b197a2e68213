"""What the meta cache holds: records together with the revisions that wrote them. Pure."""

from __future__ import annotations

from typing import NamedTuple

from aspenfs.metadata import Dentry, Inode, Times
from aspenfs.types import Attributes, Ino


class Node(NamedTuple):
    """An inode and its times, each with the revision to check when a commit builds on it."""

    inode: Inode
    revision: int
    times: Times
    times_revision: int


class Entry(NamedTuple):
    """What is known of a name in a directory; ``dentry`` None and revision 0: it does not exist."""

    dentry: Dentry | None
    revision: int


def attributes(ino: Ino, node: Node) -> Attributes:
    """Return what stat(2) shows of a node."""
    inode, times = node.inode, node.times
    return Attributes(
        ino,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev,
        inode.size,
        inode.allocated_bytes,
        inode.atime_ns,
        times.mtime_ns,
        times.ctime_ns,
        inode.btime_ns,
        inode.generation,
    )
