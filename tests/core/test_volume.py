"""The volume as a whole: made once, refused when it is not ours, and how full it is."""

from __future__ import annotations

import os
import stat

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenfs.errors import CorruptRecordError, FilesystemError, FormatVersionError, VolumeError
from aspenfs.filesystem import Filesystem
from aspenfs.keys import Keys
from aspenfs.limits import CHUNK_BYTES, NAME_BYTES_MAX, ORPHAN_LINGER_S, STATFS_BLOCK_BYTES
from aspenfs.metadata import Superblock, encode_superblock
from aspenfs.types import NO_SESSION, ROOT_INO, AttributeChanges, Context
from aspenkv.contract import Put
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import EngineError
from aspenkv.service import Service
from tests.core.conftest import Open
from tests.core.steering import (
    ALICE,
    ROOT,
    SteeredClient,
    check,
    failing,
    make_file,
    names,
    opened,
)

KEYS = Keys("default")


async def test_a_new_volume_has_an_empty_root(service: Service, open_fs: Open) -> None:
    async with open_fs(service.connect(), owner=ALICE) as fs:
        root = await fs.getattr(ROOT_INO)
        assert root.mode == stat.S_IFDIR | 0o755
        assert (root.uid, root.gid, root.nlink) == (ALICE.uid, ALICE.gid, 2)
        assert await names(fs) == []
        assert fs.superblock.chunk_bytes == CHUNK_BYTES
        await check(service.connect(), fs)


async def test_the_owner_of_a_new_volume_is_who_makes_it(service: Service, open_fs: Open) -> None:
    async with open_fs(service.connect(), owner=None) as fs:
        root = await fs.getattr(ROOT_INO)
        assert (root.uid, root.gid) == (os.geteuid(), os.getegid())


async def test_two_that_open_at_once_make_one_volume(service: Service, open_fs: Open) -> None:
    uuids: list[bytes] = []

    async def open_one(uid: int) -> None:
        store = SteeredClient(service)
        store.yields = True
        async with open_fs(store, owner=Context(uid, uid)) as fs:
            uuids.append(fs.superblock.uuid)
            await wait_all_tasks_blocked()
            await check(store, fs)

    async with trio.open_nursery() as nursery:
        for uid in range(5):
            nursery.start_soon(open_one, uid)
    assert len(uuids) == 5
    assert len(set(uuids)) == 1


async def test_what_is_there_stays(service: Service, open_fs: Open) -> None:
    async with open_fs(service.connect()) as fs:
        uuid = fs.superblock.uuid
        await make_file(fs, b"file", b"content")
    async with open_fs(service.connect(), owner=ALICE) as fs:
        assert fs.superblock.uuid == uuid
        assert await names(fs) == [b"file"]
        assert (await fs.getattr(ROOT_INO)).uid == ROOT.uid


async def test_volumes_know_nothing_of_each_other(service: Service, open_fs: Open) -> None:
    async with open_fs(service.connect()) as one, open_fs(service.connect(), volume="two") as two:
        heard: list[object] = []
        two.listen(heard.append)
        await make_file(one, b"file", bytes(2 * CHUNK_BYTES))
        await wait_all_tasks_blocked()
        assert (await names(two), heard) == ([], [])
        assert (await two.statfs()).inodes_used == 1
        two.listen(None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\x01\0\0\0 and then nonsense", CorruptRecordError),
        (encode_superblock(Superblock(2, bytes(16), CHUNK_BYTES, 0, 0)), FormatVersionError),
        (encode_superblock(Superblock(1, bytes(16), CHUNK_BYTES, 1, 0)), FormatVersionError),
        (encode_superblock(Superblock(1, bytes(16), 2 * CHUNK_BYTES, 0, 0)), VolumeError),
    ],
)
async def test_a_volume_that_is_not_ours_is_refused(
    service: Service, open_fs: Open, value: bytes, expected: type[Exception]
) -> None:
    kv = service.connect()
    await kv.commit([], [Put(KEYS.superblock, value)])
    revision = await kv.revision()
    with pytest.raises(expected):
        async with open_fs(service.connect()):
            pass
    assert await kv.revision() == revision


async def test_a_name_that_no_volume_can_have(service: Service, open_fs: Open) -> None:
    with pytest.raises(VolumeError):
        async with open_fs(service.connect(), volume="No/Name"):
            pass


async def test_an_error_of_the_user_comes_out_as_it_is(service: Service, open_fs: Open) -> None:
    with pytest.raises(FilesystemError) as caught:
        async with open_fs(service.connect()) as fs:
            await fs.lookup(ROOT_INO, b"absent")
    assert caught.value.errno == 2


async def test_an_error_of_the_store_at_the_start_comes_out_as_it_is(
    service: Service, open_fs: Open
) -> None:
    store = SteeredClient(service)
    store.before_commit.append(failing(EngineError("the disk is gone")))
    with pytest.raises(EngineError, match="the disk is gone"):
        async with open_fs(store):
            pass


# --- how full it is -------------------------------------------------------------------------------


async def test_statfs_counts_what_is_used(
    fs: Filesystem, peer: Filesystem, autojump_clock: MockClock
) -> None:
    del autojump_clock
    before = await fs.statfs()
    assert (before.block_bytes, before.name_bytes_max) == (STATFS_BLOCK_BYTES, NAME_BYTES_MAX)
    assert before.inodes_used == 1
    assert 0 < before.blocks_free <= before.blocks_total

    ino = await make_file(fs, b"file", bytes(10 * CHUNK_BYTES))
    await peer.mkdir(ROOT_INO, b"directory", 0o755, ROOT)
    for client in (fs, peer):
        found = await client.statfs()
        assert found.inodes_used == 3
        used_bytes = (found.blocks_total - found.blocks_free) * STATFS_BLOCK_BYTES
        assert used_bytes == 10 * CHUNK_BYTES

    await peer.setattr(ino, AttributeChanges(size=CHUNK_BYTES))
    await fs.rmdir(ROOT_INO, b"directory")
    found = await fs.statfs()
    assert found.inodes_used == 2
    assert (found.blocks_total - found.blocks_free) * STATFS_BLOCK_BYTES == CHUNK_BYTES
    async with opened(peer, ino):
        await peer.unlink(ROOT_INO, b"file")
        assert (await fs.statfs()).inodes_used == 2
    await trio.sleep(2 * ORPHAN_LINGER_S)
    found = await fs.statfs()
    assert (found.inodes_used, found.blocks_total - found.blocks_free) == (1, 0)


async def test_counters_are_folded_when_a_session_ends(service: Service, open_fs: Open) -> None:
    for number in range(3):
        async with open_fs(service.connect()) as fs:
            await make_file(fs, b"%d" % number, b"12345")
            await check(service.connect(), fs)
    page = await service.connect().scan(KEYS.usages(), KEYS.usages() + b"\xff", limit=10)
    found = {record.key: int.from_bytes(record.value, "little") for record in page.records}
    assert found == {KEYS.usage_bytes(NO_SESSION): 15, KEYS.usage_inodes(NO_SESSION): 4}


async def test_a_store_that_is_full_has_no_free_blocks(
    fs: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = MemoryEngine().usage()
    monkeypatch.setattr(
        MemoryEngine, "usage", lambda _: usage._replace(available_bytes=STATFS_BLOCK_BYTES - 1)
    )
    assert (await fs.statfs()).blocks_free == 0


async def test_more_errors_than_one_come_out_as_a_group(service: Service, open_fs: Open) -> None:
    errors = [FilesystemError(2), ValueError("another")]
    with pytest.raises(ExceptionGroup) as caught:
        async with open_fs(service.connect()):
            raise ExceptionGroup("both", errors)
    assert caught.group_contains(ValueError)
