"""O_APPEND: every byte is kept, no write is torn, whoever else writes to the file."""

from __future__ import annotations

import errno
import os
import random
from typing import NamedTuple

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.limits import COMMIT_DATA_BYTES_MAX, INLINE_BYTES_MAX
from aspenfs.types import ROOT_INO, AttributeChanges, Clock, Ino
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import EngineError
from tests.core.steering import (
    ROOT,
    Gate,
    SteeredClient,
    WallClock,
    failing,
    make_file,
    opened,
    read_file,
    refused,
)

APPEND = os.O_RDWR | os.O_APPEND
BROKEN = failing(EngineError("the disk is gone"))


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"log", b"first;")


async def test_the_offset_does_not_matter(fs: Filesystem, ino: Ino) -> None:
    async with opened(fs, ino, APPEND) as fh, opened(fs, ino, APPEND) as other:
        assert await fs.write(fh, 0, b"second;") == 7
        assert await fs.write(other, 1000, b"third;") == 6
        assert await fs.read(fh, 0, 100) == b"first;second;third;"
        assert await fs.read(fh, 8, 3) == b"con"
        assert (await fs.getattr(ino)).size == 19
    assert await read_file(fs, ino) == b"first;second;third;"


async def test_appends_follow_what_another_client_appended(
    fs: Filesystem, peer: Filesystem, ino: Ino
) -> None:
    async with opened(fs, ino, APPEND) as fh, opened(peer, ino, APPEND) as theirs:
        await fs.write(fh, 0, b"ours;")
        await peer.write(theirs, 0, b"theirs;")
        await peer.flush(theirs)
        await fs.flush(fh)
        assert await fs.read(fh, 0, 100) == b"first;theirs;ours;"
        await fs.write(fh, 0, b"more;")
        assert await fs.read(fh, 0, 100) == b"first;theirs;ours;more;"
    await wait_all_tasks_blocked()
    assert await read_file(peer, ino) == b"first;theirs;ours;more;"


async def test_two_clients_that_append_at_once_keep_every_byte(
    fs: Filesystem, peer: Filesystem, ino: Ino
) -> None:
    lines = 300
    dice = random.Random(1)

    async def append(client: Filesystem, mark: bytes) -> None:
        async with opened(client, ino, APPEND) as fh:
            for number in range(lines):
                await client.write(fh, 0, b"%s%d;" % (mark * dice.randint(1, 50), number))
                if dice.random() < 0.3:
                    await client.flush(fh)
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, fs, b"a")
        nursery.start_soon(append, peer, b"b")
    await wait_all_tasks_blocked()
    content = await read_file(fs, ino)
    assert content == await read_file(peer, ino)
    found = content.split(b";")[1:-1]
    for mark in (b"a", b"b"):
        ours = [line.lstrip(mark) for line in found if line.startswith(mark)]
        assert ours == [b"%d" % number for number in range(lines)]


async def test_no_write_is_torn_by_another_client(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, ino: Ino
) -> None:
    record = 1000
    gates = [Gate(), Gate()]
    async with opened(fs, ino, APPEND) as fh, opened(peer, ino, APPEND) as theirs:
        await fs.write(fh, 0, bytes(record))
        store.before_commit += gates
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.flush, fh)
            await gates[0].reached.wait()
            for number in range(2 * COMMIT_DATA_BYTES_MAX // record):
                await fs.write(fh, 0, b"%c" % (number % 128) * record)
            for gate in gates:
                await gate.reached.wait()
                await peer.write(theirs, 0, b"\xff" * record)
                await peer.flush(theirs)
                gate.open()
    content = await read_file(fs, ino)
    records = [content[at : at + record] for at in range(len(b"first;"), len(content), record)]
    assert all(len(set(each)) == 1 for each in records)
    assert sum(each[:1] == b"\xff" for each in records) == 2


async def test_what_was_read_of_waiting_bytes_is_right_after_a_commit_too(
    fs: Filesystem, store: SteeredClient, peer: Filesystem, ino: Ino
) -> None:
    first, again, second = Gate(), Gate(), Gate()
    store.before_commit += [first, again, second]
    async with opened(fs, ino, APPEND) as fh, opened(peer, ino, APPEND) as theirs:
        await fs.write(fh, 0, b"ours;")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.flush, fh)
            await first.reached.wait()
            await peer.write(theirs, 0, b"theirs;")
            await peer.flush(theirs)
            await fs.write(fh, 0, b"waits;")
            first.open()
            await again.reached.wait()  # for the first one met a conflict
            again.open()
            await second.reached.wait()
            assert await fs.read(fh, 0, 100) == b"first;theirs;ours;waits;"
            assert (await fs.getattr(ino)).size == 24
            second.open()
        assert await fs.read(fh, 0, 100) == b"first;theirs;ours;waits;"


async def test_an_append_waits_for_the_size_but_not_at_the_wrong_place(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    async with opened(fs, ino, APPEND) as fh:
        await fs.write(fh, 0, b"second;")
        asked, committed = Gate(), Gate()
        store.before_commit.append(committed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.flush, fh)
            await committed.reached.wait()
            fs._caches.meta.clear()
            store.after_get.append(asked)
            nursery.start_soon(fs.write, fh, 0, b"third;")
            await asked.reached.wait()
            committed.open()
            await wait_all_tasks_blocked()
            asked.open()
            await wait_all_tasks_blocked()
            assert await fs.read(fh, 0, 100) == b"first;second;third;"


async def test_a_write_by_position_waits_for_appends_before_it(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    async with opened(fs, ino, APPEND) as log, opened(fs, ino) as fh:
        await fs.write(log, 0, b"second;")
        store.before_commit.append(BROKEN)
        with refused(errno.EIO):
            await fs.write(fh, 8, b"XX")
        await fs.write(fh, 0, b"FIRST")  # in front of them, so it need not wait
        assert await fs.read(fh, 0, 100) == b"FIRST;second;"
        await fs.write(fh, 8, b"XX")
        assert await fs.read(fh, 0, 100) == b"FIRST;seXXnd;"
    assert await read_file(fs, ino) == b"FIRST;seXXnd;"


async def test_a_write_by_position_waits_for_appends_on_their_way(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    gate = Gate()

    async def hold_and_fail() -> None:
        await gate()
        await BROKEN()

    async def flush() -> None:
        with refused(errno.EIO):
            await fs.flush(log)

    async with opened(fs, ino, APPEND) as log, opened(fs, ino) as fh:
        await fs.write(log, 0, b"second;")
        store.before_commit.append(hold_and_fail)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            await gate.reached.wait()
            nursery.start_soon(fs.write, fh, 8, b"XX")
            await wait_all_tasks_blocked()
            gate.open()
        assert await fs.read(fh, 0, 100) == b"first;seXXnd;"
    assert await read_file(fs, ino) == b"first;seXXnd;"


class Step(NamedTuple):
    """What one of two handles on a file does next."""

    kind: str
    at: int
    length: int


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(("append", "append", "write", "write", "flush", "fail", "cut")),
        st.integers(0, 60),
        st.sampled_from((1, 5, 20, INLINE_BYTES_MAX)),
    ),
    max_size=20,
)


@given(steps)
async def test_appends_and_writes_by_position_mixed(steps: list[Step]) -> None:
    model = bytearray()
    async with open_embedded(MemoryEngine()) as service:
        store = SteeredClient(service)
        clock = Clock(trio.current_time, WallClock())
        async with open_filesystem(store, owner=ROOT, clock=clock) as fs:
            ino = await make_file(fs, b"file")
            async with opened(fs, ino, APPEND) as log, opened(fs, ino) as fh:
                for number, (kind, at, length) in enumerate(steps, start=1):
                    data = bytes((number,)) * length
                    if kind == "fail":
                        store.before_commit.append(BROKEN)
                        continue
                    try:
                        match kind:
                            case "append":
                                await fs.write(log, 0, data)
                                model += data
                            case "write":
                                await fs.write(fh, at, data)
                                model.extend(bytes(max(0, at - len(model))))
                                model[at : at + length] = data
                            case "cut":
                                await fs.setattr(ino, AttributeChanges(size=at))
                                del model[at:]
                                model.extend(bytes(at - len(model)))
                            case "flush":
                                await fs.flush(fh)
                    except EngineError:
                        pass  # nothing of this step was done, and nothing of those before is lost
                    assert await fs.read(fh, 0, 2**20) == model
                    assert (await fs.getattr(ino)).size == len(model)
                store.before_commit.clear()
            assert await read_file(fs, ino) == model


async def test_a_closed_log_can_be_opened_again(fs: Filesystem) -> None:
    fh, made = await fs.create(ROOT_INO, b"log", 0o644, APPEND, ROOT)
    for _ in range(3):
        await fs.write(fh, 0, b"line\n")
        await fs.release(fh)
        fh = await fs.open(made.ino, APPEND)
    await fs.release(fh)
    assert await read_file(fs, made.ino) == b"line\n" * 3


async def test_two_that_append_to_a_file_that_is_not_known_yet(
    fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    async with opened(fs, ino, APPEND) as fh:
        fs._caches.meta.clear()
        gates = [Gate(), Gate()]
        store.after_get += gates
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.write, fh, 0, b"second;")
            await gates[0].reached.wait()
            nursery.start_soon(fs.write, fh, 0, b"third;")
            await gates[1].reached.wait()
            gates[0].open()
            await wait_all_tasks_blocked()
            gates[1].open()
        assert await fs.read(fh, 0, 100) == b"first;second;third;"
