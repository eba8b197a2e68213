"""A listener that does what the feed tells has the same tree as the volume, whatever happens."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from aspenfs import limits
from aspenfs.change_feed import (
    MOUNT_ROOT,
    FeedEvent,
    Follower,
    Place,
    UntranslatableError,
    open_changes,
)
from aspenfs.errors import FilesystemError
from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.metadata import Dentry, decode_dentry
from aspenfs.namespace import RENAME_EXCHANGE
from aspenfs.scans import records_below
from aspenfs.types import ROOT_INO, AttributeChanges, Clock, Context, Ino
from aspenkv.contract import KeyValue, ScanPage
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.service import Service

ME: Final = Context(0, 0)
DIRECTORY: Final = stat.S_IFDIR >> 12
REGULAR: Final = stat.S_IFREG >> 12

Tree = dict[bytes, int]
"""The type of every path below the one that is watched, and of that itself (the empty path)."""


class Operation(NamedTuple):
    """One call, of what there is then: ``which`` inode, and a name in one of the directories."""

    kind: str
    which: int
    directory: int
    name: bytes
    size: int


KINDS = (
    "mkdir",
    "create",
    "write",
    "write_and_keep_times",
    "truncate",
    "chmod",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "rename_directory",
    "exchange",
)
OPERATIONS = st.builds(
    Operation,
    st.sampled_from(KINDS),
    st.integers(0, 15),
    st.integers(0, 7),
    st.sampled_from((b"a", b"b", b"c")),
    st.sampled_from((1, 100, 100_000)),
)


class Volume:
    """A filesystem on which operations are carried out by path."""

    def __init__(self, kv: KeyValue, fs: Filesystem) -> None:
        self.kv = kv
        self.fs = fs
        self._written = 0

    async def tree(self, top: Place) -> Tree:
        """Return what there is at a place and below."""
        return {path: dentry.file_type for path, _, dentry in await self._walk(top)}

    async def contents(self, top: Place) -> dict[bytes, bytes]:
        """Return what the files at a place and below hold."""
        contents = {}
        for path, _, dentry in await self._walk(top):
            if dentry.file_type == REGULAR:
                fh = await self.fs.open(dentry.ino, os.O_RDONLY)
                contents[path] = await self.fs.read(fh, 0, 2**20)
                await self.fs.release(fh)
        return contents

    async def run(self, operation: Operation) -> None:
        """Carry out an operation; one that is not possible does nothing."""
        found = (await self._walk(MOUNT_ROOT))[1:]
        inodes = {
            "rmdir": [each for each in found if each[2].file_type == DIRECTORY],
            "rename_directory": [each for each in found if each[2].file_type == DIRECTORY],
            "rename": found,
            "exchange": found,
            "chmod": found,
        }.get(operation.kind, [each for each in found if each[2].file_type == REGULAR])
        directories = [ROOT_INO] + [
            dentry.ino for _, _, dentry in found if dentry.file_type == DIRECTORY
        ]
        new = Place(directories[operation.directory % len(directories)], operation.name)
        with suppress(FilesystemError):
            if operation.kind in {"mkdir", "create", "symlink"}:
                await self._make(operation.kind, new)
            elif inodes:
                _, place, dentry = inodes[operation.which % len(inodes)]
                await self._change(operation, place, dentry.ino, new)

    async def _walk(self, top: Place) -> list[tuple[bytes, Place, Dentry]]:
        found = []
        todo = [(b"", top, await self._dentry(top))]
        while todo:
            path, place, dentry = todo.pop()
            if dentry is None:
                continue
            found.append((path, place, dentry))
            if dentry.file_type == DIRECTORY:
                prefix = self.fs.keys.dentries(dentry.ino)
                async for record in records_below(self.kv, prefix):
                    name = record.key[len(prefix) :]
                    below = path + b"/" * bool(path) + name
                    inner = decode_dentry(record.key, record.value)
                    todo.append((below, Place(dentry.ino, name), inner))
        return found

    async def _dentry(self, place: Place) -> Dentry | None:
        if place == MOUNT_ROOT:
            return Dentry(ROOT_INO, DIRECTORY)
        key = self.fs.keys.dentry(*place)
        (found,) = await self.kv.get((key,))
        return None if found is None else decode_dentry(key, found.value)

    async def _make(self, kind: str, new: Place) -> None:
        if kind == "mkdir":
            await self.fs.mkdir(*new, stat.S_IFDIR | 0o755, ME)
        elif kind == "symlink":
            await self.fs.symlink(*new, b"target", ME)
        else:
            fh, _ = await self.fs.create(*new, stat.S_IFREG | 0o644, os.O_RDWR, ME)
            await self.fs.release(fh)

    async def _change(self, operation: Operation, old: Place, ino: Ino, new: Place) -> None:
        match operation.kind:
            case "write":
                await self._write(ino, operation.size, AttributeChanges())
            case "write_and_keep_times":
                await self._write(ino, operation.size, AttributeChanges(mtime_ns=12345))
            case "truncate":
                await self.fs.setattr(ino, AttributeChanges(size=operation.size))
            case "chmod":
                await self.fs.setattr(ino, AttributeChanges(mode=operation.size))
            case "link":
                await self.fs.link(ino, *new)
            case "unlink":
                await self.fs.unlink(*old)
            case "rmdir":
                await self.fs.rmdir(*old)
            case "exchange":
                await self.fs.rename(*old, *new, RENAME_EXCHANGE)
            case _:
                await self.fs.rename(*old, *new, 0)

    async def _write(self, ino: Ino, size: int, changes: AttributeChanges) -> None:
        fh = await self.fs.open(ino, os.O_RDWR)
        self._written += 1
        await self.fs.write(fh, size // 2, (b"%d," % self._written) * size)
        if changes.mtime_ns is not None:
            await self.fs.setattr(ino, changes)
        await self.fs.release(fh)


class Listener:
    """A copy of the tree, kept by the feed alone. It is told nothing that it cannot do."""

    def __init__(self) -> None:
        self.tree: Tree = {}
        self.read: dict[bytes, bytes] = {}  # contents, of those files that nobody has written since

    async def tell(self, events: Sequence[FeedEvent]) -> None:
        for event in events:
            getattr(self, f"_{event.kind}")(event)

    def _created(self, event: FeedEvent) -> None:
        assert event.path not in self.tree
        if b"/" in event.path:
            assert self.tree[event.path.rpartition(b"/")[0]] == DIRECTORY
        self.tree[event.path] = event.file_type

    def _written(self, event: FeedEvent) -> None:
        assert self.tree[event.path] == event.file_type == REGULAR
        self.read.pop(event.path, None)

    def _changed(self, event: FeedEvent) -> None:
        assert self.tree[event.path] == event.file_type

    def _removed(self, event: FeedEvent) -> None:
        assert self.tree[event.path] == event.file_type
        for copy in (self.tree, self.read):
            _take_below(copy, event.path)

    def _renamed(self, event: FeedEvent) -> None:
        assert event.old_path is not None
        assert event.path not in self.tree
        assert self.tree[event.old_path] == event.file_type
        for copy in (self.tree, self.read):
            _put_below(copy, event.path, _take_below(copy, event.old_path))

    def _exchanged(self, event: FeedEvent) -> None:
        assert event.old_path is not None
        assert self.tree[event.old_path] == event.file_type
        assert event.path in self.tree
        for copy in (self.tree, self.read):
            one, two = _take_below(copy, event.path), _take_below(copy, event.old_path)
            _put_below(copy, event.path, two)
            _put_below(copy, event.old_path, one)


def _take_below(copy: dict[bytes, Any], path: bytes) -> dict[bytes, Any]:
    prefix = path + b"/" if path else b""
    taken = [each for each in copy if each == path or each.startswith(prefix)]
    return {each[len(path) :]: copy.pop(each) for each in taken}


def _put_below(copy: dict[bytes, Any], path: bytes, taken: dict[bytes, Any]) -> None:
    copy.update({path + rest: value for rest, value in taken.items()})


class BusyStore:
    """A store on which something else happens between any two pages that are read."""

    def __init__(self, kv: KeyValue, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._kv = kv
        self._meanwhile = meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    async def scan(self, start: bytes, end: bytes, **options: Any) -> ScanPage:
        await self._meanwhile()
        page = await self._kv.scan(start, end, **{**options, "limit": 2})
        await self._meanwhile()
        return page


async def follow(
    service: Service,
    name: bytes | None,
    before: Sequence[Operation],
    during: Sequence[Operation],
    after: Sequence[Sequence[Operation]],
) -> None:
    kv = service.connect()
    clock = Clock(trio.current_time, lambda: int(trio.current_time() * 1e9))
    async with open_filesystem(service.connect(), clock=clock) as fs:
        volume = Volume(kv, fs)
        for operation in before:
            await volume.run(operation)
        top = MOUNT_ROOT if name is None else Place(ROOT_INO, name)
        meanwhile = list(reversed(during))
        later = [list(reversed(each)) for each in after]
        listener = Listener()

        async def change() -> None:
            if meanwhile:
                await volume.run(meanwhile.pop())

        @asynccontextmanager
        async def open_kv() -> AsyncIterator[KeyValue]:
            busy: Any = BusyStore(kv, change)
            yield busy

        async def on_live(_revision: int) -> None:
            listener.tree = await volume.tree(top)
            listener.read = {}

        async def run() -> None:
            while True:
                follower = Follower(fs.keys, top, open_kv, on_live=on_live, tell=listener.tell)
                async with open_changes(kv, fs.keys) as changes:
                    with suppress(UntranslatableError):
                        await follower.run(changes)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            for operations in ([], *later):
                meanwhile += operations[: len(operations) // 2]
                for operation in operations[len(operations) // 2 :]:
                    await volume.run(operation)
                await trio.sleep(3 * limits.FEED_WRITES_S)
                await check(listener, volume, top)
            nursery.cancel_scope.cancel()


async def check(listener: Listener, volume: Volume, top: Place) -> None:
    """Compare with the volume; what the listener has not read since it was written, it reads."""
    assert listener.tree == await volume.tree(top)
    for path, content in (await volume.contents(top)).items():
        assert listener.read.setdefault(path, content) == content, path


MANY = st.lists(OPERATIONS, max_size=25)


@given(
    name=st.sampled_from((None, b"a")),
    before=MANY,
    during=MANY,
    after=st.lists(st.lists(OPERATIONS, max_size=12), max_size=4),
)
def test_a_listener_has_the_same_tree(
    name: bytes | None,
    before: list[Operation],
    during: list[Operation],
    after: list[list[Operation]],
) -> None:
    async def main() -> None:
        async with open_embedded(MemoryEngine()) as service:
            await follow(service, name, before, during, after)

    trio.run(main, clock=MockClock(autojump_threshold=0))
