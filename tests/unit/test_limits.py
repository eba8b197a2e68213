"""The bounds against each other, where an assertion beside the constants cannot see both sides."""

from __future__ import annotations

import stat

from aspenfs import limits
from aspenfs.keys import Keys
from aspenfs.metadata import Inode, encode_inode
from aspenfs.types import Ino, SessionId
from aspenkv import limits as kv_limits

LONGEST = Keys("v" * limits.VOLUME_NAME_BYTES_MAX)
INO = Ino(2**64 - 1)


def record_bytes(*, target: bytes | None = None, inline: bytes | None = None) -> int:
    inode = Inode(
        mode=stat.S_IFREG,
        uid=0,
        gid=0,
        nlink=limits.NLINK_MAX,
        size=limits.FILE_BYTES_MAX,
        allocated_bytes=limits.FILE_BYTES_MAX,
        rdev=0,
        atime_ns=0,
        btime_ns=0,
        parent=INO,
        generation=0,
        has_xattrs=True,
        target=target,
        inline=inline,
    )
    return len(encode_inode(inode))


def test_every_key_fits_the_store() -> None:
    name = bytes(limits.NAME_BYTES_MAX)
    for key in (
        LONGEST.times(INO),
        LONGEST.dentry(INO, name),
        LONGEST.xattr(INO, bytes(limits.XATTR_NAME_BYTES_MAX)),
        LONGEST.chunk(INO, limits.FILE_BYTES_MAX // limits.CHUNK_BYTES),
        LONGEST.usage_bytes(SessionId(2**64 - 1)),
    ):
        assert len(key) <= kv_limits.KEY_BYTES_MAX


def test_every_record_fits_the_store() -> None:
    for size in (
        record_bytes(target=bytes(limits.SYMLINK_BYTES_MAX)),
        record_bytes(inline=bytes(limits.INLINE_BYTES_MAX)),
        limits.XATTR_VALUE_BYTES_MAX,
        limits.CHUNK_BYTES,
    ):
        assert size <= kv_limits.VALUE_BYTES_MAX


def test_a_file_of_any_size_has_a_record() -> None:
    assert record_bytes() > 0
