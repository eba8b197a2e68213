"""The filesystem core against the model: random operations, and the whole tree after each."""

from __future__ import annotations

import stat
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from aspenfs.filesystem import Filesystem
from aspenfs.fsck import check_volume
from aspenfs.keys import Keys
from aspenfs.types import Context, FileHandle, Ino
from aspenkv.engine.memory import MemoryEngine
from tests.model.calls import Path, Side, run_now
from tests.model.core import Server
from tests.model.inode_calls import InodeCalls, open_as_linux
from tests.model.machine import NAMES, TwoFilesystems, numbers, owners
from tests.model.model_fs import ModelFilesystem
from tests.model.portal import Hosted
from tests.model.tree import differences, take_tree

KEYS = Keys("default")
EXAMPLES_FACTOR = 2
"""A step of the core is cheap, and there are many pairs of operations that must meet."""
STEP_NS = 1_000_000_007
FIRST_NS = 1_700_000_000 * 10**9


class Client(NamedTuple):
    """One mount of the volume."""

    filesystem: Filesystem
    hosted: Hosted
    calls: InodeCalls
    side: Side


class Listing:
    """A directory that is being listed page by page."""

    def __init__(self, filesystem: Filesystem, fh: FileHandle, page: int) -> None:
        self._filesystem = filesystem
        self._fh = fh
        self._page = page
        self._offset = 0
        self._names: list[bytes] = []

    @classmethod
    async def open(cls, client: Client, path: Path, page: int) -> Listing:
        """Open a directory and read the first page."""
        ino = Ino((await client.calls.lstat(path)).ino)
        fh = await open_as_linux(client.filesystem.opendir, ino)
        listing = cls(client.filesystem, fh, page)
        await listing.read_page()
        return listing

    async def read_page(self) -> bool:
        """Read a page; return whether there was one."""
        entries = await self._filesystem.readdir(self._fh, self._offset, self._page)
        self._names += [entry.name for entry in entries]
        if entries:
            self._offset = entries[-1].next_offset
        return bool(entries)

    async def finish(self) -> list[bytes]:
        """Read the rest and return all names."""
        while await self.read_page():
            pass
        await self._filesystem.releasedir(self._fh)
        return self._names


class CoreAndModel(TwoFilesystems):
    """One or two mounts of a volume on the left, the model on the right.

    With two mounts, each step is done by the active one and is then visible to the other: the data
    is committed, the event is delivered, and both trees are compared. Open files are closed when
    the other mount becomes active.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now_ns = FIRST_NS
        self._model = InodeCalls(ModelFilesystem(lambda: self._now_ns))
        self.right = Side(self._model, run_now)
        self._server = Server(MemoryEngine(), lambda: self._now_ns)
        self._kv = self._server.connect()
        self._clients = [self._open(Context(0, 0))]
        self.left = self._clients[0].side

    def _open(self, ctx: Context) -> Client:
        filesystem, hosted = self._server.open()
        calls = InodeCalls(filesystem)
        calls.ctx = ctx
        return Client(filesystem, hosted, calls, Side(calls, self._server.portal.run))

    def before_step(self) -> None:
        self._now_ns += STEP_NS

    @rule(uid=owners, gid=owners)
    def become(self, uid: int, gid: int) -> None:
        """Let another user make what is made from now on."""
        for calls in (self._model, *(client.calls for client in self._clients)):
            calls.ctx = Context(max(uid, 0), max(gid, 0))

    @rule(seconds=st.sampled_from((0.4, 0.6, 20.0)))
    def wait(self, seconds: float) -> None:
        """Let the background do its work."""
        self._server.portal.sleep(seconds)

    @rule()
    def remount(self) -> None:
        """Close the filesystem, as unmounting does, and open it again."""
        self.close_all()
        for client in self._clients:
            self._server.portal.exit(client.hosted)
        self._check(orphans=0)
        self._clients = [self._open(self._model.ctx)]
        self.left = self._clients[0].side

    @precondition(lambda self: len(self._clients) == 1)
    @rule()
    def join(self) -> None:
        """Let a second mount take over the work."""
        self.close_all()
        self._clients.append(self._open(self._model.ctx))
        self.left = self._clients[-1].side

    @precondition(lambda self: len(self._clients) > 1)
    @rule()
    def switch(self) -> None:
        """Let the other mount go on."""
        self.close_all()
        self._clients.reverse()
        self.left = self._clients[-1].side

    @rule(
        directory=numbers,
        victims=st.sets(st.integers(0, 12), max_size=4),
        names=st.sets(st.sampled_from(NAMES), max_size=2),
        page=st.integers(1, 3),
    )
    def list_while_others_change(
        self, directory: int, victims: set[int], names: set[bytes], page: int
    ) -> None:
        """Remove and make names between two pages of one listing."""
        paths = sorted(path for path, entry in self.tree.items() if stat.S_ISDIR(entry.mode))
        path = paths[directory % len(paths)]
        listing = self._server.portal.call(Listing.open, self._clients[-1], path, page)
        before = sorted(each[-1] for each in self.tree if each[:-1] == path and each)
        removed = {before[number] for number in victims if number < len(before)}
        for name in sorted(removed):
            self.remove((*path, name))
        for name in sorted(names):
            self.make_file((*path, name))
        listed = self._server.portal.call(listing.finish)
        assert len(set(listed)) == len(listed), "a name is listed twice"
        assert set(listed) >= set(before) - removed, "a name that stayed is not listed"
        assert set(listed) <= set(before) | names, "a name that never was is listed"

    def compare_trees(self) -> None:
        if len(self._clients) > 1:
            self._server.portal.call(self._clients[-1].filesystem.sync)
            self._server.portal.settle()
        super().compare_trees()
        for client in self._clients[:-1]:
            found = differences(client.side.run(take_tree(client.calls)), self.tree)
            assert not found, "on the other mount: " + "\n".join(found)
        self._check()

    def _check(self, orphans: int | None = None) -> None:
        """Check that the records of the volume are consistent."""
        report = self._server.portal.call(check_volume, self._kv, KEYS)
        assert report.is_clean, report.problems
        assert orphans is None or report.counts.orphans == orphans

    def teardown(self) -> None:
        self.close_all()
        for client in self._clients:
            self._server.portal.exit(client.hosted)
        self._check(orphans=0)
        self._server.close()


def test_the_core_does_as_the_model_does() -> None:
    profile = settings()
    more = settings(profile, max_examples=profile.max_examples * EXAMPLES_FACTOR)
    run_state_machine_as_test(CoreAndModel, settings=more)
