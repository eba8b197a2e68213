"""A caller that is signalled while it waits: its request ends, and the core stays sound."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pyfuse3
import pytest
import trio

from aspenfs import limits
from aspenfs.filesystem import Filesystem
from aspenfs.interrupts import Interrupts
from aspenfs.operations import Operations
from aspenfs.types import ROOT_INO, Ino
from tests.core.steering import ROOT, Gate, SteeredClient, make_file, names, read_file
from tests.faults.jumping import jumping_clock

TID = 4711
CONTEXT = cast("pyfuse3.RequestContext", SimpleNamespace(uid=0, gid=0, pid=TID, umask=0))

Request = Callable[[Operations, int], Awaitable[object]]


@pytest.fixture
async def ino(fs: Filesystem) -> Ino:
    return await make_file(fs, b"file", b"content")


@pytest.fixture
async def served(
    fs: Filesystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operations]:
    """The handlers of a mount whose caller has pressed Ctrl-C."""
    status = f"SigPnd:\t{0:x}\nShdPnd:\t{1 << (signal.SIGINT - 1):x}\nSigBlk:\t0\nSigIgn:\t0\n"
    for thread in (tmp_path / str(TID), tmp_path / str(TID) / "task" / str(TID)):
        thread.mkdir(parents=True)
        (thread / "status").write_text(status)
    served = Operations(fs)
    served._interrupts = Interrupts(tmp_path)
    for call in ("invalidate_inode", "invalidate_entry"):  # there is no kernel
        monkeypatch.setattr(pyfuse3, call, lambda *_args, **_options: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(served.run)
        yield served
        nursery.cancel_scope.cancel()
    assert served.bug_count == 0


async def interrupted(request: Awaitable[object]) -> None:
    """Expect a request to end with EINTR, soon."""
    before_s = trio.current_time()
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await request
    assert caught.value.errno == errno.EINTR
    assert trio.current_time() - before_s <= 2 * limits.INTERRUPT_LOOK_S + 1e-9


@jumping_clock
async def test_a_request_that_is_answered_soon_is_answered(served: Operations, ino: Ino) -> None:
    assert (await served.getattr(ino, CONTEXT)).st_size == 7
    info = await served.open(ino, os.O_RDWR, CONTEXT)
    assert await served.read(info.fh, 0, 100) == b"content"
    await served.release(info.fh)


@jumping_clock
async def test_reads_of_a_store_that_is_away(
    served: Operations, fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    info = await served.open(ino, os.O_RDONLY, CONTEXT)
    directory = await served.opendir(ROOT_INO, CONTEXT)
    for request in (
        lambda: served.lookup(ROOT_INO, b"file", CONTEXT),
        lambda: served.getattr(ino, CONTEXT),
        lambda: served.statfs(CONTEXT),
        lambda: served.read(info.fh, 0, 100),
        lambda: served.readdir(directory, 0, cast("pyfuse3.ReaddirToken", None)),
    ):
        fs._caches.clear()
        store.before_get.append(Gate())
        store.before_scan.append(Gate())
        await interrupted(request())
        store.before_get.clear()
        store.before_scan.clear()
    await served.releasedir(directory)
    await served.release(info.fh)
    assert served._openers == {}
    assert served._interrupts._requests == {}


@jumping_clock
@pytest.mark.parametrize("was_done", [True, False])
async def test_a_change_that_was_interrupted_was_made_or_not(
    served: Operations, fs: Filesystem, store: SteeredClient, was_done: bool
) -> None:
    await fs.mkdir(ROOT_INO, b"first", 0o755, ROOT)
    (store.after_commit if was_done else store.before_commit).append(Gate())
    await interrupted(served.mkdir(ROOT_INO, b"second", 0o755, CONTEXT))
    expected = [b"first", b"second"] if was_done else [b"first"]
    assert await names(fs) == expected
    assert (await fs.getattr(ROOT_INO)).nlink == 2 + len(expected)


@jumping_clock
@pytest.mark.parametrize("call", ["flush", "fsync"])
async def test_bytes_whose_flush_was_interrupted_are_kept(
    served: Operations, fs: Filesystem, store: SteeredClient, ino: Ino, call: str
) -> None:
    info = await served.open(ino, os.O_RDWR | os.O_APPEND, CONTEXT)
    await served.write(info.fh, 0, b" and more")
    store.after_commit.append(Gate())
    request = served.flush(info.fh) if call == "flush" else served.fsync(info.fh, False)
    await interrupted(request)
    await served.release(info.fh)
    assert await read_file(fs, ino) == b"content and more"


@jumping_clock
async def test_nobody_interrupts_a_release(
    served: Operations, fs: Filesystem, store: SteeredClient, ino: Ino
) -> None:
    info = await served.open(ino, os.O_RDWR, CONTEXT)
    await served.write(info.fh, 0, b"CONTENT")

    async def slow() -> None:
        await trio.sleep(10)

    store.before_commit.append(slow)
    await served.release(info.fh)
    assert await read_file(fs, ino) == b"CONTENT"


@jumping_clock
async def test_entries_that_the_kernel_did_not_get_are_no_lookups(
    served: Operations,
    fs: Filesystem,
    store: SteeredClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "READDIR_REPLY_ENTRIES", 2)
    monkeypatch.setattr(limits, "READDIR_PAGE_ENTRIES", 2)
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda *_args: True)
    for number in range(4):
        made = await make_file(fs, b"%d" % number)
        fs.forget(made, 1)
    directory = await served.opendir(ROOT_INO, CONTEXT)
    fs._caches.clear()
    known = fs.known_inodes()

    async def second_page() -> None:
        store.before_scan.append(Gate())

    store.after_scan.append(second_page)
    await interrupted(served.readdir(directory, 0, cast("pyfuse3.ReaddirToken", None)))
    assert fs.known_inodes() == known
    await served.releasedir(directory)
