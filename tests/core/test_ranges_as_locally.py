"""fallocate, SEEK_DATA and SEEK_HOLE beside those of a local file, by the same random calls.

At whole chunks, where a file of the kernel's, with its smaller pages, has the same holes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from aspenfs.errors import FilesystemError
from aspenfs.file_ranges import KEEP_SIZE, PUNCH_HOLE
from aspenfs.limits import CHUNK_BYTES
from tests.core.sparse_model import Files, two_files

_CHUNKS = 8
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Step(NamedTuple):
    """A write, or with a mode an fallocate, of chunks; or, if there are none, a truncation."""

    mode: int | None
    at: int
    chunks: int
    commits: bool


steps = st.builds(
    Step,
    st.sampled_from((None, None, 0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE)),
    st.integers(0, _CHUNKS),
    st.integers(0, 3),
    st.booleans(),
)


@contextmanager
def local_file() -> Iterator[int]:
    """Open a file in memory, whose filesystem (tmpfs) has holes, allocates and punches."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryFile(dir=parent) as file:
        yield file.fileno()


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """Return the errno of fallocate(2), 0 if there is none."""
    return ctypes.get_errno() if _LIBC.fallocate(fd, mode, offset, length) else 0


def seek(fd: int, offset: int, whence: int) -> int:
    """Return where lseek(2) comes to, or its errno below zero."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        return -(error.errno or 0)


async def outcome(call: Awaitable[int | None]) -> int:
    """Return what a call returns (nothing: 0), or its errno below zero."""
    try:
        return await call or 0
    except FilesystemError as error:
        return -error.errno


async def step_both(files: Files, fd: int, step: Step) -> None:
    """Do a step on both files."""
    offset, length = step.at * CHUNK_BYTES, step.chunks * CHUNK_BYTES
    if not length:
        await files.truncate(files.first, offset)
        os.ftruncate(fd, offset)
    elif step.mode is None:
        await files.write(files.first, offset, b"x" * length)
        os.pwrite(fd, b"x" * length, offset)
    else:
        ino, fh, model = files.first
        await files.fs.fallocate(ino, fh, step.mode, offset, length)
        if step.mode & PUNCH_HOLE:
            assert fallocate(fd, step.mode, offset, length) == 0
        elif not step.mode & KEEP_SIZE:
            # tmpfs takes for data what it allocates twice; so the file is only made as large.
            os.ftruncate(fd, max(offset + length, len(model)))
        model[:] = os.pread(fd, 20 * CHUNK_BYTES, 0)


@given(st.lists(steps, max_size=10))
async def test_any_sequence(steps: list[Step]) -> None:
    async with two_files() as files:
        with local_file() as fd:
            for step in steps:
                await step_both(files, fd, step)
                if step.commits:
                    await files.fs.flush(files.first.fh)
                await files.check()
                await compare_holes(files, fd)


async def compare_holes(files: Files, fd: int) -> None:
    ino, fh, _ = files.first
    size = os.fstat(fd).st_size
    offsets = {max(0, at * CHUNK_BYTES + more) for at in range(_CHUNKS + 5) for more in (-1, 0, 1)}
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        for offset in sorted({*offsets, size}):
            expected = seek(fd, offset, whence)
            assert await outcome(files.fs.lseek(ino, fh, offset, whence)) == expected


async def test_what_is_done_and_what_is_refused() -> None:
    async with two_files() as files:
        with local_file() as fd:
            await step_both(files, fd, Step(None, 0, 2, commits=True))
            ino, fh, model = files.first
            for mode in (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE):
                found = await outcome(files.fs.fallocate(ino, fh, mode, CHUNK_BYTES, CHUNK_BYTES))
                assert found == fallocate(fd, mode, CHUNK_BYTES, CHUNK_BYTES) == 0
                model[:] = os.pread(fd, 20 * CHUNK_BYTES, 0)
                await files.check()
            for arguments in ((0, -1, 1), (0, 0, 0), (0, 1, -1), (PUNCH_HOLE, 0, 1), (0x44, 0, 1)):
                found = await outcome(files.fs.fallocate(ino, fh, *arguments))
                assert -found == fallocate(fd, *arguments) != 0
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                for offset in (-1, 2 * CHUNK_BYTES, 2**62):
                    found = await outcome(files.fs.lseek(ino, fh, offset, whence))
                    assert found == seek(fd, offset, whence) == -errno.ENXIO
