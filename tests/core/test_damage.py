"""Records that cannot be: EIO for who needs one, its key in the message, and the rest goes on."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs import acl
from aspenfs.errors import CorruptRecordError, FormatVersionError, errno_of
from aspenfs.filesystem import Filesystem
from aspenfs.limits import ORPHAN_SCAN_S
from aspenfs.metadata import decode_inode, encode_inode, encode_orphan
from aspenfs.types import ROOT_INO, Ino, SessionId
from aspenkv.contract import Delete, KeyValue, Op, Put
from aspenkv.service import Service
from tests.core.steering import ROOT, make_file, names, read_file, refused, turn

DEAD = SessionId(77)


@pytest.fixture
def kv(service: Service) -> KeyValue:
    return service.connect()


@asynccontextmanager
async def damaged(kv: KeyValue, records: Mapping[bytes, bytes | None]) -> AsyncIterator[None]:
    """Write records, None for no record, behind the filesystem's back; then what was there."""
    await wait_all_tasks_blocked()
    keys = list(records)
    found = await kv.get(keys)
    before = {key: old and old.value for key, old in zip(keys, found, strict=True)}
    await kv.commit([], [_op(key, value) for key, value in records.items()])
    await wait_all_tasks_blocked()
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await kv.commit([], [_op(key, value) for key, value in before.items()])
            await wait_all_tasks_blocked()


def _op(key: bytes, value: bytes | None) -> Op:
    return Delete(key) if value is None else Put(key, value)


async def test_a_damaged_inode(fs: Filesystem, kv: KeyValue) -> None:
    ino = await make_file(fs, b"file", b"content")
    sound = await make_file(fs, b"sound", b"content")
    for value, kind in (
        (b"", CorruptRecordError),
        (b"\x01 too short", CorruptRecordError),
        (b"\xff from the future", FormatVersionError),
    ):
        async with damaged(kv, {fs.keys.inode(ino): value}):
            with pytest.raises(kind, match=f"{ino}") as caught:
                await fs.getattr(ino)
            assert errno_of(caught.value) == errno.EIO
            assert caught.value.key == fs.keys.inode(ino)  # type: ignore[attr-defined]
            for call in (fs.lookup, fs.unlink):
                with refused(errno.EIO):
                    await call(ROOT_INO, b"file")
            assert await read_file(fs, sound) == b"content"
    assert await read_file(fs, ino) == b"content"


@pytest.mark.parametrize("value", [None, b"", b"x" * 31, b"\xff" * 32])
async def test_damaged_times(fs: Filesystem, kv: KeyValue, value: bytes | None) -> None:
    ino = await make_file(fs, b"file", b"content")
    async with damaged(kv, {fs.keys.times(ino): value}):
        with pytest.raises(CorruptRecordError) as caught:
            await fs.getattr(ino)
        assert caught.value.key == fs.keys.times(ino)


async def test_a_damaged_name(fs: Filesystem, kv: KeyValue) -> None:
    await make_file(fs, b"file", b"content")
    for value in (b"", b"\0" * 9):
        async with damaged(kv, {fs.keys.dentry(ROOT_INO, b"file"): value}):
            with refused(errno.EIO):
                await fs.lookup(ROOT_INO, b"file")
            with refused(errno.EIO):
                await names(fs)


async def test_a_damaged_counter_of_inodes(fs: Filesystem, kv: KeyValue) -> None:
    async with damaged(kv, {fs.keys.next_ino: b"x"}):
        with refused(errno.EIO):
            await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)


async def test_a_damaged_usage_counter(fs: Filesystem, kv: KeyValue) -> None:
    async with damaged(kv, {fs.keys.usage_bytes(DEAD): b"x"}):
        with refused(errno.EIO):
            await fs.statfs()


async def test_a_damaged_default_acl(fs: Filesystem, kv: KeyValue) -> None:
    made = await fs.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    await fs.setxattr(made.ino, b"user.x", b"")
    async with damaged(kv, {fs.keys.xattr(made.ino, acl.DEFAULT_XATTR): b"x"}):
        with refused(errno.EINVAL):
            await fs.mkdir(made.ino, b"below", 0o755, ROOT)


async def test_directories_within_each_other(fs: Filesystem, kv: KeyValue) -> None:
    one = await fs.mkdir(ROOT_INO, b"one", 0o755, ROOT)
    two = await fs.mkdir(one.ino, b"two", 0o755, ROOT)
    await fs.mkdir(ROOT_INO, b"moved", 0o755, ROOT)
    key = fs.keys.inode(one.ino)
    (found,) = await kv.get((key,))
    assert found is not None
    inode = decode_inode(key, found.value)._replace(parent=two.ino)
    async with damaged(kv, {key: encode_inode(inode)}):
        with trio.fail_after(60), pytest.raises(CorruptRecordError, match="below itself"):
            await fs.rename(ROOT_INO, b"moved", two.ino, b"moved")


async def test_keys_that_no_record_has_are_left_alone(
    fs: Filesystem, kv: KeyValue, mock_clock: MockClock
) -> None:
    strange = {
        fs.keys.orphans() + b"short": b"",
        fs.keys.usages() + bytes(8) + b"x": b"",
        fs.keys.sessions() + b"short": b"",
    }
    async with damaged(kv, strange):
        await turn(mock_clock, ORPHAN_SCAN_S)
        assert (await fs.statfs()).inodes_used == 1
        assert all(await kv.get(list(strange)))


@pytest.mark.logs("cannot be removed.*damaged record", "cannot be folded.*damaged record")
async def test_what_cannot_be_collected_does_not_keep_the_rest(
    fs: Filesystem, kv: KeyValue, mock_clock: MockClock
) -> None:
    low, high = Ino(500), Ino(2**40)
    damage = {
        fs.keys.orphan(low): b"damaged",
        fs.keys.orphan(Ino(501)): encode_orphan(DEAD),
        fs.keys.inode(Ino(501)): b"damaged",
        fs.keys.usage_bytes(SessionId(5)): b"damaged",
    }
    rest = {
        fs.keys.orphan(high): encode_orphan(DEAD),
        fs.keys.usage_inodes(SessionId(6)): bytes(8),
    }
    async with damaged(kv, damage | rest):
        await turn(mock_clock, ORPHAN_SCAN_S)
        assert not any(await kv.get(list(rest)))
        assert all(await kv.get(list(damage)))
    await kv.commit([], [Delete(key) for key in rest])


async def test_a_record_of_an_orphan_that_has_a_name(
    fs: Filesystem, kv: KeyValue, mock_clock: MockClock
) -> None:
    ino = await make_file(fs, b"file", b"content")
    async with damaged(kv, {fs.keys.orphan(ino): encode_orphan(DEAD)}):
        await turn(mock_clock, ORPHAN_SCAN_S)
        assert await read_file(fs, ino) == b"content"
