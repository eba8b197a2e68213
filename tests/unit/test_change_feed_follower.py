"""Reading names, following commits, and what ends it."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.change_feed import FeedEvent, FeedGapError, Follower, Place, open_changes
from aspenfs.errors import AspenError
from aspenfs.keys import Keys, range_end
from aspenfs.metadata import Dentry, encode_dentry
from aspenfs.types import ROOT_INO, Ino
from aspenkv.contract import Change, Delete, DeleteRange, KeyValue, Put, WatchEvent
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.errors import UnavailableError, WatchGapError

KEYS: Final = Keys("test")
TOP: Final = Place(ROOT_INO, b"top")
DIRECTORY: Final = Dentry(Ino(11), stat.S_IFDIR >> 12)
FILE: Final = Dentry(Ino(21), stat.S_IFREG >> 12)


@pytest.fixture
async def kv() -> AsyncIterator[KeyValue]:
    async with open_embedded(MemoryEngine()) as service:
        yield service.connect()


def put(place: Place, dentry: Dentry) -> Put:
    return Put(KEYS.dentry(*place), encode_dentry(dentry))


class Told:
    """Keeps what a follower tells, once it may."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, bytes]] = []
        self.live_revision = 0
        self.may_tell = trio.Event()
        self.failure: AspenError | None = None

    async def on_live(self, revision: int) -> None:
        self.live_revision = revision

    async def tell(self, events: Sequence[FeedEvent]) -> None:
        await self.may_tell.wait()
        if self.failure is not None:
            raise self.failure
        self.lines += [(event.kind.value, event.path) for event in events]


def follower_of(kv: KeyValue, told: Told) -> Follower:
    @asynccontextmanager
    async def open_kv() -> AsyncIterator[KeyValue]:
        yield kv

    return Follower(KEYS, TOP, open_kv, on_live=told.on_live, tell=told.tell)


def created(name: bytes, number: int) -> WatchEvent:
    key = KEYS.dentry(DIRECTORY.ino, name)
    value = encode_dentry(Dentry(Ino(number), FILE.file_type))
    return WatchEvent(100 + number, (Change(key, None, value),))


async def test_what_is_there_is_not_told_and_what_comes_is(kv: KeyValue) -> None:
    await kv.commit((), [put(TOP, DIRECTORY), put(Place(DIRECTORY.ino, b"old"), FILE)])
    told = Told()
    told.may_tell.set()
    async with open_changes(kv, KEYS) as changes, trio.open_nursery() as nursery:
        nursery.start_soon(follower_of(kv, told).run, changes)
        await wait_all_tasks_blocked()
        assert told.live_revision == await kv.revision()
        assert told.lines == []
        await kv.commit((), [Delete(KEYS.dentry(DIRECTORY.ino, b"old"))])
        await wait_all_tasks_blocked()
        assert told.lines == [("removed", b"old")]
        nursery.cancel_scope.cancel()


async def test_what_is_watched_need_not_be_there_yet(kv: KeyValue) -> None:
    came = Place(DIRECTORY.ino, b"file")
    await kv.commit((), [put(came, FILE)])
    told = Told()
    told.may_tell.set()
    async with open_changes(kv, KEYS) as changes, trio.open_nursery() as nursery:
        nursery.start_soon(follower_of(kv, told).run, changes)
        await wait_all_tasks_blocked()
        await kv.commit((), [put(TOP, DIRECTORY)])
        await wait_all_tasks_blocked()
        assert told.lines == [("created", b""), ("created", b"file")]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ending", ["end", "failure", "overflow"])
async def test_what_came_before_the_end_is_told_first(
    kv: KeyValue, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FEED_BACKLOG_EVENTS_MAX", 4)
    await kv.commit((), [put(TOP, DIRECTORY)])
    count = 9 if ending == "overflow" else 4

    async def changes() -> AsyncIterator[WatchEvent]:
        for number in range(count):
            yield created(b"%d" % number, number + 50)
        if ending == "failure":
            raise UnavailableError("it is away")

    told = Told()
    told.may_tell.set()
    expected = UnavailableError if ending == "failure" else FeedGapError
    with pytest.raises(expected, match={"end": "has ended", "failure": "away"}.get(ending, "fast")):
        await follower_of(kv, told).run(changes())
    assert len(told.lines) >= 4
    assert told.lines == [("created", b"%d" % number) for number in range(len(told.lines))]


async def test_who_is_told_may_end_it(kv: KeyValue) -> None:
    await kv.commit((), [put(TOP, DIRECTORY)])
    told = Told()
    told.may_tell.set()
    told.failure = AspenError("enough")

    async def changes() -> AsyncIterator[WatchEvent]:
        yield created(b"a", 50)
        await trio.sleep_forever()

    with pytest.raises(AspenError, match="enough"):
        await follower_of(kv, told).run(changes())


# --- the source ---------------------------------------------------------------------------------


async def test_only_what_can_be_told_is_handed_on_with_its_values(kv: KeyValue) -> None:
    entry, inode = KEYS.dentry(ROOT_INO, b"a"), KEYS.inode(Ino(5))
    chunks, xattr = KEYS.chunks(Ino(5)), KEYS.xattr(Ino(5), b"x")
    async with open_changes(kv, KEYS) as changes:
        events = aiter(changes)
        await kv.commit((), [Put(KEYS.orphan(Ino(5)), b""), Put(KEYS.superblock, b"")])
        await kv.commit((), [Put(Keys("other").superblock, b"")])
        await kv.commit((), [Put(inode, b"unrelated")])
        await kv.commit((), [Put(entry, b"e"), Put(inode, b"i"), Put(xattr, b"x" * 99)])
        await kv.commit((), [DeleteRange(chunks, range_end(chunks)), Delete(entry)])
        await kv.commit((), [DeleteRange(KEYS.inodes(), range_end(KEYS.inodes()))])
        await kv.commit((), [DeleteRange(KEYS.prefix, range_end(KEYS.prefix))])
        await kv.commit((), [Put(entry, b"e")])
        await kv.commit((), [DeleteRange(entry, entry + b"\x00")])
        assert (await anext(events)).changes == (Change(inode, None, b"unrelated"),)
        assert set((await anext(events)).changes) == {
            Change(entry, None, b"e"),
            Change(inode, None, b"i"),
            Change(xattr, None, None),
        }
        assert (await anext(events)).changes == (Change(entry, None, None),)
        all_entries = KEYS.prefix + b"D"
        assert (await anext(events)).changes == (Change(all_entries, range_end(all_entries), None),)
        assert (await anext(events)).changes == (Change(entry, None, b"e"),)
        assert (await anext(events)).changes == (Change(entry, entry + b"\x00", None),)


async def test_own_changes_are_told_too(kv: KeyValue) -> None:
    async with open_changes(kv, KEYS) as changes:
        committed = await kv.commit((), [put(TOP, FILE)])
        assert (await anext(aiter(changes))).revision == committed.revision


class Script:
    """Iterates over what it is given."""

    def __init__(self, events: Sequence[WatchEvent]) -> None:
        self._events = list(events)

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self

    async def __anext__(self) -> WatchEvent:
        await trio.lowlevel.checkpoint()
        if not self._events:
            raise StopAsyncIteration
        return self._events.pop(0)


class ScriptedStore:
    """A store whose watches tell what they are given; the one that has all keys is opened last."""

    def __init__(self, *scripts: Sequence[WatchEvent]) -> None:
        self._scripts = list(scripts)

    @asynccontextmanager
    async def watch(self, _prefix: bytes, *, values: bool) -> AsyncIterator[Script]:
        assert values == (len(self._scripts) > 1)
        yield Script(self._scripts.pop(0))


@pytest.mark.parametrize(
    "entries",
    [(), (created(b"other", 7),)],
    ids=["it ends", "it is further"],
)
async def test_values_that_are_missing_are_a_gap(entries: Sequence[WatchEvent]) -> None:
    master = WatchEvent(102, (Change(KEYS.dentry(ROOT_INO, b"a"), None, None),))
    scripted = ScriptedStore(entries, (), (master,))
    async with open_changes(scripted, KEYS) as changes:  # type: ignore[arg-type]
        with pytest.raises(WatchGapError, match="revision 102"):
            await anext(aiter(changes))


async def test_values_from_before_the_first_event_are_passed_over() -> None:
    event = created(b"a", 2)
    scripted = ScriptedStore((created(b"older", 1), event), (), (event,))
    async with open_changes(scripted, KEYS) as changes:  # type: ignore[arg-type]
        assert await anext(aiter(changes)) == event


async def test_it_ends_with_its_watch() -> None:
    scripted = ScriptedStore((), (), ())
    async with open_changes(scripted, KEYS) as changes:  # type: ignore[arg-type]
        with pytest.raises(StopAsyncIteration):
            await anext(aiter(changes))
