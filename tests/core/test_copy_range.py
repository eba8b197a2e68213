"""copy_file_range: what it copies and what it costs, and who changes the files meanwhile."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from typing import NamedTuple

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.file_ranges import KEEP_SIZE, PUNCH_HOLE
from aspenfs.filesystem import Filesystem
from aspenfs.limits import CHUNK_BYTES, FILE_BYTES_MAX
from aspenfs.types import AttributeChanges, Ino
from aspenkv.contract import Copy, Patch, Put
from aspenkv.errors import EngineError, OutcomeUnknownError
from tests.core.sparse_model import File, Files, lengths, places, two_files
from tests.core.steering import (
    Gate,
    SteeredClient,
    calls,
    failing,
    make_file,
    opened,
    read_file,
    refused,
    stored_chunks,
)

PETABYTE = 2**50


async def copy(fs: Filesystem, source: Ino, target: Ino, length: int = PETABYTE) -> int:
    """Copy from the start of one file to the start of another, as cp does."""
    copied = 0
    async with opened(fs, source, os.O_RDONLY) as source_fh, opened(fs, target) as target_fh:
        while count := await fs.copy_file_range(
            source, source_fh, copied, target, target_fh, copied, length - copied, 0
        ):
            copied += count
    return copied


def data_bytes(store: SteeredClient) -> int:
    """Return how many bytes of file data the client has sent."""
    return sum(
        len(op.value if isinstance(op, Put) else op.data)
        for ops in store.commits
        for op in ops
        if isinstance(op, Put | Patch) and len(op.key) > 20 and b"C" in op.key
    )


class Step(NamedTuple):
    """A copy; or a write, a hole or, without a length, a truncation. Perhaps a commit after it."""

    kind: str
    to_second: bool
    from_second: bool
    at: int
    from_at: int
    length: int
    commits: bool


steps = st.builds(
    Step,
    st.sampled_from(("copy", "copy", "copy", "write", "hole")),
    st.booleans(),
    st.booleans(),
    places,
    places,
    st.one_of(lengths, lengths, st.just(0)),
    st.booleans(),
)


@given(st.lists(steps, max_size=12))
async def test_any_sequence(steps: list[Step]) -> None:
    async with two_files() as files:
        for number, step in enumerate(steps, start=1):
            target = files.file(step.to_second)
            if step.kind == "copy":
                await copy_all(files, files.file(step.from_second), target, step)
            elif not step.length:
                await files.truncate(target, step.at)
            elif step.kind == "write":
                await files.write(target, step.at, bytes((number,)) * step.length)
            else:
                mode = PUNCH_HOLE | KEEP_SIZE
                await files.fs.fallocate(target.ino, target.fh, mode, step.at, step.length)
                cut = min(step.at + step.length, len(target.model))
                target.model[step.at : cut] = bytes(max(0, cut - step.at))
            if step.commits:
                await files.fs.flush(target.fh)
            await files.check()


async def copy_all(files: Files, source: File, target: File, step: Step) -> None:
    if source is target and abs(step.at - step.from_at) < step.length:
        with refused(errno.EINVAL):
            await files.fs.copy_file_range(
                source.ino, source.fh, step.from_at, target.ino, target.fh, step.at, step.length, 0
            )
        return
    piece = bytes(source.model[step.from_at : step.from_at + step.length])
    copied = 0
    while copied < len(piece):
        count = await files.fs.copy_file_range(
            source.ino,
            source.fh,
            step.from_at + copied,
            target.ino,
            target.fh,
            step.at + copied,
            len(piece) - copied,
            0,
        )
        assert 0 < count <= len(piece) - copied
        copied += count
    if piece:
        target.model.extend(bytes(max(0, step.at - len(target.model))))
        target.model[step.at : step.at + len(piece)] = piece


async def test_no_data_passes_through_the_client(fs: Filesystem, store: SteeredClient) -> None:
    content = os.urandom(5 * CHUNK_BYTES + 100)
    source, target = await make_file(fs, b"source", content), await make_file(fs, b"target")
    store.commits.clear()
    gets = store.gets
    assert await copy(fs, source, target) == len(content)
    assert data_bytes(store) == 0
    assert store.gets - gets == 0
    assert await read_file(fs, target) == content
    shown = await fs.getattr(target)
    assert shown.allocated_bytes == len(content)


async def test_many_chunks_are_few_commits(
    fs: Filesystem, store: SteeredClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COPY_STEP_CHUNKS", 4)
    monkeypatch.setattr(limits, "COPY_CALL_STEPS_MAX", 2)
    content = os.urandom(20 * CHUNK_BYTES)
    source, target = await make_file(fs, b"source", content), await make_file(fs, b"target")
    store.commits.clear()
    async with opened(fs, source, os.O_RDONLY) as source_fh, opened(fs, target) as target_fh:
        count = await fs.copy_file_range(
            source, source_fh, 0, target, target_fh, 0, len(content), 0
        )
        assert count == 8 * CHUNK_BYTES  # so that a signal is not held up for long
        assert [sum(isinstance(op, Copy) for op in ops) for ops in store.commits] == [4, 4]
    assert await copy(fs, source, target) == len(content)
    assert await read_file(fs, target) == content


async def test_holes_stay_holes_and_cost_nothing(fs: Filesystem, store: SteeredClient) -> None:
    source = await make_file(fs, b"source", b"x" * CHUNK_BYTES)
    target = await make_file(fs, b"target", b"y" * 3 * CHUNK_BYTES)
    async with opened(fs, source) as fh:
        await fs.write(fh, PETABYTE, b"end")
    await fs.setattr(source, AttributeChanges(size=2 * PETABYTE))
    before = store.calls
    assert await copy(fs, source, target, 2 * PETABYTE) == 2 * PETABYTE
    assert store.calls - before < 20
    shown = await fs.getattr(target)
    assert (shown.size, shown.allocated_bytes) == (2 * PETABYTE, 2 * CHUNK_BYTES)
    assert (await stored_chunks(fs, target)).keys() == {0, PETABYTE // CHUNK_BYTES}


async def test_what_is_dirty_is_copied_and_copied_over(fs: Filesystem) -> None:
    source, target = await make_file(fs, b"source"), await make_file(fs, b"target")
    async with opened(fs, source) as source_fh, opened(fs, target) as target_fh:
        await fs.write(source_fh, 0, b"new" * CHUNK_BYTES)
        await fs.write(target_fh, 0, b"old" * 2 * CHUNK_BYTES)
        count = 3 * CHUNK_BYTES
        assert (
            await fs.copy_file_range(source, source_fh, 0, target, target_fh, 0, count, 0) == count
        )
        expected = b"new" * CHUNK_BYTES + b"old" * CHUNK_BYTES
        assert await fs.read(target_fh, 0, 10 * CHUNK_BYTES) == expected


async def test_a_copy_is_a_change_of_its_target_alone(fs: Filesystem) -> None:
    source, target = await make_file(fs, b"source", b"x" * CHUNK_BYTES), await make_file(fs, b"t")
    await fs.setattr(target, AttributeChanges(mode=0o4755))
    before, old = await fs.getattr(source), await fs.getattr(target)
    await copy(fs, source, target)
    after = await fs.getattr(target)
    assert after.mtime_ns == after.ctime_ns > old.ctime_ns
    assert after.mode & 0o7777 == 0o4755
    assert await fs.getattr(source) == before
    fh = await fs.open(target, os.O_WRONLY, drops_set_id=True)
    async with opened(fs, source, os.O_RDONLY) as source_fh:
        await fs.copy_file_range(source, source_fh, 0, target, fh, 0, CHUNK_BYTES, 0)
    await fs.release(fh)
    assert (await fs.getattr(target)).mode & 0o7777 == 0o755


async def test_refusals(fs: Filesystem) -> None:
    ino, other = await make_file(fs, b"file", b"content"), await make_file(fs, b"other")
    async with (
        opened(fs, ino, os.O_RDONLY) as reader,
        opened(fs, other, os.O_WRONLY) as writer,
        opened(fs, other, os.O_WRONLY | os.O_APPEND) as appender,
        opened(fs, ino) as both,
    ):

        async def fails(expected: int, *arguments: int) -> None:
            with refused(expected):
                await fs.copy_file_range(*arguments)  # type: ignore[arg-type]

        await fails(errno.EBADF, other, writer, 0, ino, both, 0, 1, 0)
        await fails(errno.EBADF, ino, reader, 0, ino, reader, 10, 1, 0)
        await fails(errno.EBADF, ino, reader, 0, other, appender, 0, 1, 0)
        await fails(errno.EBADF, other, reader, 0, other, writer, 0, 1, 0)
        await fails(errno.EINVAL, ino, reader, 0, other, writer, 0, 1, 1)
        for numbers in ((-1, 0, 1), (0, -1, 1), (0, 0, -1)):
            await fails(errno.EINVAL, ino, reader, numbers[0], other, writer, *numbers[1:], 0)
        await fails(errno.EFBIG, ino, reader, 0, other, writer, FILE_BYTES_MAX, 1, 0)
        await fails(errno.EINVAL, ino, reader, 0, ino, both, 3, 4, 0)
        assert await fs.copy_file_range(ino, reader, 7, other, writer, 0, 5, 0) == 0
        assert await fs.copy_file_range(ino, reader, 0, other, writer, 0, 0, 0) == 0
    assert await read_file(fs, other) == b""


@pytest.mark.parametrize("is_lost", [False, True], ids=["failed", "lost"])
async def test_what_was_copied_before_a_failure_counts(
    fs: Filesystem, store: SteeredClient, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    monkeypatch.setattr(limits, "COPY_STEP_CHUNKS", 2)
    content = os.urandom(5 * CHUNK_BYTES)
    source, target = await make_file(fs, b"source", content), await make_file(fs, b"target")
    error = OutcomeUnknownError("lost") if is_lost else EngineError("the disk is gone")
    async with opened(fs, source, os.O_RDONLY) as source_fh, opened(fs, target) as target_fh:

        async def go_on(copied: int) -> int:
            return await fs.copy_file_range(
                source, source_fh, copied, target, target_fh, copied, len(content), 0
            )

        async def pass_by() -> None:
            await trio.lowlevel.checkpoint()

        where = store.after_commit if is_lost else store.before_commit
        where += [pass_by, failing(error)]
        assert await go_on(0) == 2 * CHUNK_BYTES
        where.append(failing(error))
        with refused(errno.EIO):
            await go_on(2 * CHUNK_BYTES)
        assert await go_on(2 * CHUNK_BYTES) == 3 * CHUNK_BYTES
    assert await read_file(fs, target) == content


@pytest.mark.parametrize("is_copy", [False, True], ids=["punch", "copy"])
async def test_a_commit_that_arrives_late_does_not_undo_what_was_written_since(
    fs: Filesystem, store: SteeredClient, is_copy: bool
) -> None:
    source = await make_file(fs, b"source", b"s" * CHUNK_BYTES)
    target = await make_file(fs, b"target", b"t" * CHUNK_BYTES)
    async with opened(fs, source) as source_fh, opened(fs, target) as fh:
        store.hold_back()
        with refused(errno.EIO):
            if is_copy:
                arguments = (source, source_fh, 0, target, fh, 0, CHUNK_BYTES, 0)
                await fs.copy_file_range(*arguments)
            else:
                await fs.fallocate(target, fh, PUNCH_HOLE | KEEP_SIZE, 0, CHUNK_BYTES)
        await fs.write(fh, 0, b"new" * 1000)
        await fs.flush(fh)
        assert (await store.deliver()).failed_check is not None
    assert await read_file(fs, target) == (b"new" * 1000).ljust(CHUNK_BYTES, b"t")


async def test_no_step_is_torn_by_who_rewrites_the_source(
    fs: Filesystem, peer: Filesystem, store: SteeredClient
) -> None:
    """The other mount writes all of it anew in one commit, and again, as a copy is on its way."""
    count = 4
    source = await make_file(fs, b"source", bytes(count * CHUNK_BYTES))
    target = await make_file(fs, b"target")
    async with opened(peer, source) as fh:
        for version in range(1, 4):
            gate = Gate()
            async with trio.open_nursery() as nursery:
                store.before_commit.append(gate)
                nursery.start_soon(copy, fs, source, target)
                await gate.reached.wait()
                await peer.write(fh, 0, bytes((version,)) * count * CHUNK_BYTES)
                await peer.flush(fh)
                gate.open()
            assert set(await read_file(fs, target)) == {version}


@pytest.mark.parametrize("size", [0, 10, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
async def test_a_source_that_is_cut_meanwhile_gives_what_is_left(
    fs: Filesystem, peer: Filesystem, store: SteeredClient, size: int
) -> None:
    content = os.urandom(5 * CHUNK_BYTES)
    source, target = await make_file(fs, b"source", content), await make_file(fs, b"target")
    gate = Gate()
    async with trio.open_nursery() as nursery:
        store.before_commit.append(gate)
        nursery.start_soon(copy, fs, source, target)
        await gate.reached.wait()
        await peer.setattr(source, AttributeChanges(size=size))
        gate.open()
    assert await read_file(fs, target) == content[:size]


async def test_a_target_that_others_write_to_keeps_what_is_outside(
    fs: Filesystem, peer: Filesystem, store: SteeredClient
) -> None:
    source = await make_file(fs, b"source", b"s" * 2 * CHUNK_BYTES)
    target = await make_file(fs, b"target")
    gate = Gate()
    async with opened(peer, target) as fh, trio.open_nursery() as nursery:
        store.before_commit.append(gate)
        nursery.start_soon(copy, fs, source, target)
        await gate.reached.wait()
        await peer.write(fh, 2 * CHUNK_BYTES, b"behind")
        await peer.flush(fh)
        gate.open()
    assert await read_file(fs, target) == b"s" * 2 * CHUNK_BYTES + b"behind"


async def test_a_gap_between_two_copies_of_one_file(fs: Filesystem) -> None:
    """The source's last chunk stops being the file's last one as the first step ends."""
    content = os.urandom(3 * CHUNK_BYTES + 9)
    ino = await make_file(fs, b"file", content)
    at = 8 * CHUNK_BYTES
    async with opened(fs, ino) as fh:
        copied = await fs.copy_file_range(ino, fh, 0, ino, fh, at, len(content), 0)
        assert copied == len(content)
    assert await read_file(fs, ino) == content.ljust(at, b"\0") + content
    chunks = sorted(await stored_chunks(fs, ino))
    assert [after - before for before, after in pairwise(chunks)] == [1, 1, 1, 5, 1, 1, 1]


@pytest.mark.parametrize("before", [b"", b"small"], ids=len)
async def test_whole_chunks_go_behind_the_bytes_of_a_small_file(
    fs: Filesystem, before: bytes
) -> None:
    content = os.urandom(2 * CHUNK_BYTES)
    source, target = await make_file(fs, b"source", content), await make_file(fs, b"target", before)
    async with opened(fs, source, os.O_RDONLY) as source_fh, opened(fs, target) as target_fh:
        arguments = (source, source_fh, 0, target, target_fh, 3 * CHUNK_BYTES, len(content), 0)
        assert await fs.copy_file_range(*arguments) == len(content)
    assert await read_file(fs, target) == before.ljust(3 * CHUNK_BYTES, b"\0") + content
    assert (await stored_chunks(fs, target)).keys() == ({0, 3, 4} if before else {3, 4})


async def test_another_mount_sees_what_was_copied_over_what_it_had_read(
    fs: Filesystem, peer: Filesystem
) -> None:
    source = await make_file(fs, b"source", b"s" * 2 * CHUNK_BYTES)
    target = await make_file(fs, b"target", b"t" * 2 * CHUNK_BYTES)
    async with opened(peer, target, os.O_RDONLY) as fh:
        assert await peer.read(fh, 0, 2 * CHUNK_BYTES) == b"t" * 2 * CHUNK_BYTES
        await copy(fs, source, target, CHUNK_BYTES)
        await wait_all_tasks_blocked()
        expected = b"s" * CHUNK_BYTES + b"t" * CHUNK_BYTES
        assert await peer.read(fh, 0, 2 * CHUNK_BYTES) == expected


async def test_a_copy_of_few_bytes_costs_few_calls(fs: Filesystem, store: SteeredClient) -> None:
    source, target = await make_file(fs, b"source", b"small"), await make_file(fs, b"target")
    with calls(store, 1):
        assert await copy(fs, source, target) == 5
    assert await read_file(fs, target) == b"small"
