"""``aspenfs watch``."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import click
import trio

from aspenfs import limits
from aspenfs.change_feed import (
    MOUNT_ROOT,
    FeedEvent,
    FeedGapError,
    Follower,
    Place,
    UntranslatableError,
)
from aspenfs.cli.feed_lines import Line, Mark, json_line, readable_line
from aspenfs.cli.help import Command
from aspenfs.cli.output import displayed
from aspenfs.config import ExitCode
from aspenfs.control import (
    ControlCallError,
    ControlProtocolError,
    NotServedError,
    RemoteKeyValue,
    connect,
    open_remote_changes,
)
from aspenfs.errors import AspenError, StartupError
from aspenfs.keys import Keys
from aspenfs.mountpoint import MountEntry, mount_of_device, read_mounts
from aspenfs.types import Ino
from aspenkv.contract import KeyValue

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STDOUT: Final = 1
_BREAKS: Final = (
    ControlCallError,
    ControlProtocolError,
    FeedGapError,
    NotServedError,
    UntranslatableError,
)
"""After which a new feed can be tried."""


@click.command(
    "watch",
    short_help="Tell what changes below a path.",
    cls=Command,
    sections={
        "Examples": (
            "aspenfs watch /mnt/aspen",
            "aspenfs watch /mnt/aspen/inbox --json | jq -r 'select(.event==\"created\").path'",
            "aspenfs watch /mnt/aspen/done --count 1 --timeout 60",
        )
    },
)
@click.argument("path", type=Path)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
@click.option("--count", type=click.IntRange(1), help="End after so many changes.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), help="End after S seconds.", metavar="S"
)
def command(path: Path, as_json: bool, count: int | None, timeout: float | None) -> int:
    """Tell what changes at PATH and below, whichever machine changes it, until Ctrl-C.

    created, written, changed (attributes), renamed, exchanged and removed, one line each. Standard
    error says when everything from then on is told, and when changes were missed.
    """
    watched = _watched(path)
    output = _Output(path, json_line if as_json else readable_line, count)
    trio.run(_watch, watched, output, math.inf if timeout is None else timeout)
    return ExitCode.OK


class _Watched(NamedTuple):
    """What is watched: a name in a mounted volume."""

    path: Path
    entry: MountEntry
    state_dir: Path
    place: Place


def _watched(path: Path) -> _Watched:
    """Find the mount of a path, and the directory that has its name."""
    resolved = path.resolve(strict=True)
    found = resolved.stat()
    entry = mount_of_device(found.st_dev)
    if entry is None or entry.state_dir is None:
        raise StartupError(
            f"{displayed(path)} is not on an aspenfs mount: 'aspenfs status' lists the mounts",
            ExitCode.NOT_MOUNTED,
        )
    above = resolved.parent.stat()
    place = Place(Ino(above.st_ino), os.fsencode(resolved.name))
    if above.st_dev != found.st_dev:
        place = MOUNT_ROOT
    return _Watched(path, entry, entry.state_dir, place)


class _EnoughError(AspenError):
    """Whoever reads wants no more."""


class _Output:
    """Writes lines to standard output, each as soon as it is there.

    A thread writes, so that a reader who is slow does not keep Ctrl-C from working. A line is never
    torn, since only the end of the process gives up waiting for one.
    """

    def __init__(self, path: Path, line: Line, count: int | None) -> None:
        self._path = path
        self._line = line
        self._left = math.inf if count is None else count
        self.mark_count = 0

    async def tell(self, events: Sequence[FeedEvent]) -> None:
        """Write events, as far as they are wanted."""
        wanted = events[: int(min(self._left, len(events)))]
        self._left -= len(wanted)
        await self._write(wanted)
        if not self._left:
            raise _EnoughError

    async def mark(self, revision: int) -> None:
        """Say that all after a revision is told."""
        if self.mark_count:
            self.warn("gap: changes may have been missed: look again")
        else:
            self.warn("watching: everything from now on is told")
        await self._write([Mark("gap" if self.mark_count else "ready", revision)])
        self.mark_count += 1

    def warn(self, text: str) -> None:
        """Write a line to standard error."""
        click.echo(f"aspenfs: {displayed(self._path)}: {displayed(text)}", err=True)

    async def _write(self, events: Sequence[FeedEvent | Mark]) -> None:
        lines = [self._line(self._path, event) for event in events]
        data = b"".join(line for line in lines if line is not None)
        try:
            await trio.to_thread.run_sync(_write_all, data, abandon_on_cancel=True)
        except BrokenPipeError:
            raise _EnoughError from None


def _write_all(data: bytes) -> None:
    while data:
        # Not sys.stdout: a thread that waits within it would hold its lock at the process's end.
        data = data[os.write(_STDOUT, data) :]


async def _watch(watched: _Watched, output: _Output, timeout_s: float) -> None:
    """Tell until it is enough, a signal comes, or the time is over."""
    failure: Exception | None = None
    with trio.open_signal_receiver(*_STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + timeout_s
            nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
            try:
                await _keep_telling(watched, output)
            except _EnoughError:
                pass
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


async def _keep_telling(watched: _Watched, output: _Output) -> NoReturn:
    """Tell; where the feed breaks, begin anew and say so, as long as the mount is there."""
    is_said = False
    while True:
        marks = output.mark_count
        try:
            await _tell(watched, output)
        except _BREAKS as error:
            _check_mounted(watched, error)
            if not output.mark_count:
                raise
            if output.mark_count > marks or not is_said:
                output.warn(f"the feed broke ({error}); trying again")
                is_said = True
        await trio.sleep(limits.FEED_RETRY_S)


async def _tell(watched: _Watched, output: _Output) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect(watched.state_dir))
        keys = Keys(await client.call("volume"))
        changes = await stack.enter_async_context(open_remote_changes(client))

        @asynccontextmanager
        async def open_kv() -> AsyncIterator[KeyValue]:
            async with connect(watched.state_dir) as another:
                yield RemoteKeyValue(another)

        follower = Follower(keys, watched.place, open_kv, on_live=output.mark, tell=output.tell)
        await follower.run(changes)


def _check_mounted(watched: _Watched, error: Exception) -> None:
    """Raise if there is nothing more to come.

    Raises:
        StartupError: the filesystem was unmounted, or its process has ended.
    """
    if watched.entry not in read_mounts():
        raise StartupError(
            f"{watched.entry.mountpoint} was unmounted: there is nothing more to tell",
            ExitCode.NOT_MOUNTED,
        )
    if isinstance(error, NotServedError):
        raise StartupError(
            f"the process that served {watched.entry.mountpoint} has ended: mount it again",
            ExitCode.NOT_MOUNTED,
        )
