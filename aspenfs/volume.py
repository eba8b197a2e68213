"""The volume itself: made on first use, checked on every one, and how full it is."""

from __future__ import annotations

import stat
import uuid
from contextlib import aclosing

from aspenfs import limits
from aspenfs.errors import VolumeError
from aspenfs.keys import Keys
from aspenfs.metadata import (
    FORMAT_VERSION,
    Inode,
    Superblock,
    Times,
    decode_counter,
    decode_superblock,
    encode_superblock,
)
from aspenfs.scans import records_below
from aspenfs.txn import Transaction, Transactions
from aspenfs.types import NO_SESSION, ROOT_INO, Context, StatFs
from aspenkv.contract import KeyValue

_ROOT_PERMISSIONS = 0o755
_INODES_FREE = 2**48  # the numbers are 64 bits wide; what ends first is the space


async def open_volume(
    kv: KeyValue,
    keys: Keys,
    transactions: Transactions,
    *,
    owner: Context,
    now_ns: int,
    read_only: bool,
) -> Superblock:
    """Return the superblock of a volume, which is made if there is none.

    Raises:
        VolumeError: there is none and the mount is read-only, or its chunk size is not ours.
        FormatVersionError, CorruptRecordError: its superblock cannot be read.
    """
    (found,) = await kv.get((keys.superblock,))
    if found is None:
        if read_only:
            raise VolumeError(
                f"volume {keys.volume!r} does not exist and a read-only mount makes none; "
                f"mount it once without --read-only"
            )
        await _make(keys, kv, transactions, owner, now_ns)
        (found,) = await kv.get((keys.superblock,))
        assert found is not None, "a superblock is never removed"
    superblock = decode_superblock(keys.superblock, found.value)
    if superblock.chunk_bytes != limits.CHUNK_BYTES:
        raise VolumeError(
            f"volume {keys.volume!r} has chunks of {superblock.chunk_bytes} bytes, this aspenfs "
            f"reads {limits.CHUNK_BYTES}; use the aspenfs that made it"
        )
    return superblock


async def _make(
    keys: Keys, kv: KeyValue, transactions: Transactions, owner: Context, now_ns: int
) -> None:
    root = Inode(
        mode=stat.S_IFDIR | _ROOT_PERMISSIONS,
        uid=owner.uid,
        gid=owner.gid,
        nlink=2,
        size=0,
        allocated_bytes=0,
        rdev=0,
        atime_ns=now_ns,
        btime_ns=now_ns,
        parent=ROOT_INO,
        generation=0,
        has_xattrs=False,
        target=None,
        inline=None,
    )
    superblock = Superblock(FORMAT_VERSION, uuid.uuid4().bytes, limits.CHUNK_BYTES, 0, now_ns)

    async def attempt(txn: Transaction) -> None:
        (found,) = await kv.get((keys.superblock,))
        if found is not None:
            return  # another mount made it first
        txn.require(keys.superblock, 0)
        txn.put(keys.superblock, encode_superblock(superblock))
        txn.put_inode(ROOT_INO, root)
        txn.put_times(ROOT_INO, Times(now_ns, now_ns))
        txn.add(keys.usage_inodes(NO_SESSION), 1)

    await transactions.run(attempt)


async def usage(kv: KeyValue, keys: Keys) -> StatFs:
    """Return how full the volume is: its sessions' counters summed, and what the store has left."""
    used_bytes = used_inodes = 0
    async with aclosing(records_below(kv, keys.usages())) as records:
        async for record in records:
            parsed = keys.parse(record.key)
            if parsed is None:
                continue
            count = decode_counter(record.key, record.value)
            if parsed.name == b"b":
                used_bytes += count
            else:
                used_inodes += count
    status = await kv.status()
    block = limits.STATFS_BLOCK_BYTES
    free = status.available_bytes // block
    return StatFs(
        block_bytes=block,
        blocks_total=free + -(-used_bytes // block),
        blocks_free=free,
        inodes_used=used_inodes,
        inodes_free=_INODES_FREE,
        name_bytes_max=limits.NAME_BYTES_MAX,
    )
