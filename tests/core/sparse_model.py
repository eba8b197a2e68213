"""Random calls on two sparse files, beside bytearrays that the same is done to."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio
from hypothesis import strategies as st

from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.limits import CHUNK_BYTES, INLINE_BYTES_MAX
from aspenfs.types import ROOT_INO, AttributeChanges, Clock, FileHandle, Ino
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from tests.core.steering import ROOT, SteeredClient, WallClock, check

_BORDERS = (0, 1, INLINE_BYTES_MAX, CHUNK_BYTES, 2 * CHUNK_BYTES, 4 * CHUNK_BYTES)

places = st.builds(
    lambda border, more: max(0, border + more), st.sampled_from(_BORDERS), st.integers(-2, 2)
)
lengths = st.sampled_from((1, 3, INLINE_BYTES_MAX, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES))


class File(NamedTuple):
    """An open file and what it must hold."""

    ino: Ino
    fh: FileHandle
    model: bytearray


class Files(NamedTuple):
    """Two open files of one mount, and the client of its store."""

    fs: Filesystem
    store: SteeredClient
    first: File
    second: File

    def file(self, is_second: bool) -> File:
        return self.second if is_second else self.first

    async def write(self, file: File, at: int, data: bytes) -> None:
        file.model.extend(bytes(max(0, at - len(file.model))))
        file.model[at : at + len(data)] = data
        await self.fs.write(file.fh, at, data)

    async def truncate(self, file: File, size: int) -> None:
        del file.model[size:]
        file.model.extend(bytes(size - len(file.model)))
        await self.fs.setattr(file.ino, AttributeChanges(size=size))

    async def check(self) -> None:
        """Compare the bytes, and check what is allocated among all records."""
        for file in (self.first, self.second):
            assert (await self.fs.getattr(file.ino)).size == len(file.model)
            assert await self.fs.read(file.fh, 0, len(file.model) + 1) == file.model
        await check(self.store, self.fs)


@asynccontextmanager
async def two_files() -> AsyncIterator[Files]:
    """Open two empty files of a new volume; at the end they hold on disk what they must."""
    async with open_embedded(MemoryEngine()) as service:
        store = SteeredClient(service)
        clock = Clock(trio.current_time, WallClock())
        async with open_filesystem(store, owner=ROOT, clock=clock) as fs:
            made = []
            for name in (b"first", b"second"):
                fh, shown = await fs.create(ROOT_INO, name, 0o644, os.O_RDWR, ROOT)
                made.append(File(shown.ino, fh, bytearray()))
            files = Files(fs, store, *made)
            yield files
            for file in made:
                await fs.flush(file.fh)
            fs._caches.clear()
            await files.check()
            for file in made:
                await fs.release(file.fh)
        await check(store, fs)
