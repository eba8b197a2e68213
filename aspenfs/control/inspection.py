"""What the store holds of one inode, in words: the answer behind ``aspenfs info``."""

from __future__ import annotations

import errno
from typing import TypedDict

from aspenfs import limits
from aspenfs.errors import FilesystemError
from aspenfs.keys import Keys
from aspenfs.metadata import Inode, Times, decode_inode, decode_times
from aspenfs.scans import records_below
from aspenfs.types import Ino
from aspenkv.contract import KeyValue


class StoredKey(TypedDict):
    """One key of the inode with the revision of the commit that last wrote it."""

    key: bytes
    revision: int


class InodeDescription(TypedDict):
    """Everything stored about one inode. Times in nanoseconds since the epoch, sizes in bytes.

    ``keys`` leaves out chunks beyond the first INFO_CHUNKS_NAMED_MAX.
    """

    ino: int
    record: dict[str, object]
    mtime_ns: int
    ctime_ns: int
    content: str
    chunk_count: int
    xattrs: dict[bytes, int]
    keys: list[StoredKey]


async def describe_inode(kv: KeyValue, keys: Keys, ino: Ino) -> InodeDescription:
    """Read an inode's records from the store, past every cache.

    What the mount has not written back yet is not in it: sync first.

    Raises:
        FilesystemError: ENOENT, there is no such inode.
        CorruptRecordError: a record cannot be read.
        AspenKvError: the store cannot be read.
    """
    inode_key, times_key = keys.inode(ino), keys.times(ino)
    found, found_times = await kv.get((inode_key, times_key))
    if found is None:
        raise FilesystemError(errno.ENOENT, f"there is no inode {ino}")
    inode = decode_inode(inode_key, found.value)
    stored: list[StoredKey] = [{"key": inode_key, "revision": found.revision}]
    times = Times(0, 0)
    if found_times is not None:
        times = decode_times(times_key, found_times.value)
        stored.append({"key": times_key, "revision": found_times.revision})
    prefix = keys.xattrs(ino)
    xattrs = {}
    async for record in records_below(kv, prefix):
        xattrs[record.key[len(prefix) :]] = len(record.value)
        stored.append({"key": record.key, "revision": record.revision})
    chunk_count = 0
    async for record in records_below(kv, keys.chunks(ino), keys_only=True):
        chunk_count += 1
        if chunk_count <= limits.INFO_CHUNKS_NAMED_MAX:
            stored.append({"key": record.key, "revision": record.revision})
    return {
        "ino": ino,
        "record": _readable(inode),
        "mtime_ns": times.mtime_ns,
        "ctime_ns": times.ctime_ns,
        "content": _content(inode, chunk_count),
        "chunk_count": chunk_count,
        "xattrs": xattrs,
        "keys": stored,
    }


def _readable(inode: Inode) -> dict[str, object]:
    """Return the record's fields, the file's own bytes left out."""
    return {
        name: value for name, value in inode._asdict().items() if name not in {"inline", "target"}
    }


def _content(inode: Inode, chunk_count: int) -> str:
    if inode.inline is not None:
        return "inline"
    if inode.target is not None:
        return "symlink target"
    return "chunks" if chunk_count else "none"
