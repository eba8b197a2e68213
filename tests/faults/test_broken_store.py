"""A store that fails for a while: errors are reported, data is kept, nothing hangs."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator

import pytest
import trio

from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.fsck import check_volume
from aspenfs.limits import DIRTY_BYTES_MAX, SHUTDOWN_S, WRITEBACK_DELAY_S
from aspenfs.types import ROOT_INO, Clock, Context
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import EngineError
from aspenkv.service import Service
from tests.faults.jumping import TIMEOUT_S, jumping_clock
from tests.faults.stores import BrokenStore

ROOT = Context(0, 0)
BYTES = random.Random(2).randbytes(DIRTY_BYTES_MAX)
IN_BACKGROUND = r"the disk is full; make room"


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with open_embedded(MemoryEngine()) as service:
        yield service


@pytest.fixture
def store(service: Service) -> BrokenStore:
    return BrokenStore(service.connect())


@pytest.fixture
async def filesystem(service: Service, store: BrokenStore) -> AsyncIterator[Filesystem]:
    clock = Clock(trio.current_time, lambda: 10**18)
    with trio.fail_after(TIMEOUT_S):
        async with open_filesystem(store, owner=ROOT, clock=clock) as filesystem:
            yield filesystem
            store.is_broken = False
        report = await check_volume(service.connect(), filesystem.keys)
    assert report.is_clean, report.problems


async def read_back(service: Service, name: bytes) -> bytes:
    """Return a file's content as a fresh mount sees it."""
    async with open_filesystem(service.connect()) as fresh:
        attributes = await fresh.lookup(ROOT_INO, name)
        fh = await fresh.open(attributes.ino, os.O_RDONLY)
        content = await fresh.read(fh, 0, attributes.size)
        await fresh.release(fh)
        return content


@jumping_clock
@pytest.mark.parametrize("call", ["flush", "fsync"])
async def test_what_could_not_be_stored_is_reported_and_stored_later(
    filesystem: Filesystem, service: Service, store: BrokenStore, call: str
) -> None:
    fh, _ = await filesystem.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
    await filesystem.write(fh, 0, BYTES[:200_000])
    store.is_broken = True
    for _ in range(3):
        with pytest.raises(EngineError):
            await getattr(filesystem, call)(fh)
        assert await filesystem.read(fh, 0, 300_000) == BYTES[:200_000]
    store.is_broken = False
    await getattr(filesystem, call)(fh)
    assert await read_back(service, b"f") == BYTES[:200_000]
    await filesystem.release(fh)


@jumping_clock
@pytest.mark.logs(IN_BACKGROUND)
async def test_a_failure_in_the_background_reaches_the_next_call(
    filesystem: Filesystem, service: Service, store: BrokenStore
) -> None:
    fh, _ = await filesystem.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
    await filesystem.write(fh, 0, BYTES[:100])
    store.is_broken = True
    await trio.sleep(3 * WRITEBACK_DELAY_S)
    with pytest.raises(EngineError):
        await filesystem.write(fh, 100, b"refused")
    assert filesystem.statistics().data.dirty_bytes == 100
    store.is_broken = False
    await trio.sleep(3 * WRITEBACK_DELAY_S)
    assert await read_back(service, b"f") == BYTES[:100]
    await filesystem.write(fh, 100, b"taken")
    await filesystem.fsync(fh)
    assert await read_back(service, b"f") == BYTES[:100] + b"taken"
    await filesystem.release(fh)


@jumping_clock
@pytest.mark.logs(IN_BACKGROUND)
async def test_writers_do_not_hang_on_a_full_buffer_that_cannot_be_stored(
    filesystem: Filesystem, service: Service, store: BrokenStore
) -> None:
    fh, _ = await filesystem.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
    other, _ = await filesystem.create(ROOT_INO, b"other", 0o644, os.O_RDWR, ROOT)
    store.is_broken = True
    taken_bytes = 0
    piece = 128 * 1024
    with pytest.raises(Exception, match=r"disk is full"):  # noqa: PT012  # one of the writes fails
        while taken_bytes <= DIRTY_BYTES_MAX:
            taken_bytes += await filesystem.write(fh, taken_bytes, BYTES[:piece])
    assert filesystem.statistics().data.dirty_bytes <= DIRTY_BYTES_MAX
    with pytest.raises(Exception, match=r"disk is full"):  # noqa: PT012
        for _ in range(DIRTY_BYTES_MAX // piece + 2):
            await filesystem.write(other, 0, BYTES[:piece])
            await trio.sleep(WRITEBACK_DELAY_S)
    store.is_broken = False
    await filesystem.sync()
    content = await read_back(service, b"f")
    assert len(content) == taken_bytes
    assert all(content[at : at + piece] == BYTES[:piece] for at in range(0, taken_bytes, piece))
    await filesystem.release(fh)
    await filesystem.release(other)


@jumping_clock
async def test_a_release_that_fails_loses_nothing(
    filesystem: Filesystem, service: Service, store: BrokenStore
) -> None:
    fh, _ = await filesystem.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
    await filesystem.write(fh, 0, BYTES[:5_000])
    store.is_broken = True
    with pytest.raises(EngineError):
        await filesystem.release(fh)
    store.is_broken = False
    await trio.sleep(3 * WRITEBACK_DELAY_S)
    assert await read_back(service, b"f") == BYTES[:5_000]
    assert filesystem.statistics().data.dirty_bytes == 0


@jumping_clock
@pytest.mark.logs(IN_BACKGROUND, r"could not be (written|ended)")
async def test_the_end_of_a_mount_does_not_wait_for_ever(
    service: Service, store: BrokenStore
) -> None:
    with trio.fail_after(2 * SHUTDOWN_S):
        async with open_filesystem(store) as filesystem:
            fh, _ = await filesystem.create(ROOT_INO, b"f", 0o644, os.O_RDWR, ROOT)
            await filesystem.write(fh, 0, b"lost")
            store.is_broken = True
    assert await read_back(service, b"f") == b""


@jumping_clock
async def test_names_are_as_before_when_their_commit_fails(
    filesystem: Filesystem, store: BrokenStore
) -> None:
    await filesystem.mkdir(ROOT_INO, b"a", 0o755, ROOT)
    store.is_broken = True
    for operation in (
        lambda: filesystem.mkdir(ROOT_INO, b"b", 0o755, ROOT),
        lambda: filesystem.rename(ROOT_INO, b"a", ROOT_INO, b"b", 0),
        lambda: filesystem.rmdir(ROOT_INO, b"a"),
        lambda: filesystem.setxattr(ROOT_INO, b"user.x", b""),
    ):
        with pytest.raises(EngineError):
            await operation()
    fh = await filesystem.opendir(ROOT_INO)
    assert [entry.name for entry in await filesystem.readdir(fh, 0, 10)] == [b"a"]
    await filesystem.releasedir(fh)
    assert await filesystem.listxattr(ROOT_INO) == []
