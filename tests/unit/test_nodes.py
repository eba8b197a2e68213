"""What stat(2) shows of a node: each field from the record that holds it."""

from __future__ import annotations

import stat

from aspenfs.metadata import Inode, Times
from aspenfs.nodes import Node, attributes
from aspenfs.types import NO_INO, Attributes, Ino


def test_each_attribute_comes_from_its_record() -> None:
    inode = Inode(
        mode=stat.S_IFCHR | 0o640,
        uid=1,
        gid=2,
        nlink=3,
        size=4,
        allocated_bytes=5,
        rdev=6,
        atime_ns=7,
        btime_ns=8,
        parent=NO_INO,
        generation=9,
        has_xattrs=True,
        target=None,
        inline=None,
    )
    node = Node(inode, 100, Times(mtime_ns=10, ctime_ns=11), 101)
    assert attributes(Ino(12), node) == Attributes(
        ino=Ino(12),
        mode=stat.S_IFCHR | 0o640,
        nlink=3,
        uid=1,
        gid=2,
        rdev=6,
        size=4,
        allocated_bytes=5,
        atime_ns=7,
        mtime_ns=10,
        ctime_ns=11,
        btime_ns=8,
        generation=9,
    )
