"""One mount from its first check to its last flush.

The parts of a mount end in the reverse of the order in which :func:`serve` makes them: first the
kernel lets go of it, then everything dirty is written and synced, then the data directory is free.
Whoever waits for this process to end can use the directory at once.
"""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

import pyfuse3
import trio

from aspenfs import limits
from aspenfs.config import MountConfig, Mounted
from aspenfs.control import open_control, serve_control
from aspenfs.errors import AspenError, StartupError
from aspenfs.filesystem import SYSTEM_CLOCK, Filesystem, open_filesystem
from aspenfs.fuse_extension import FuseExtension
from aspenfs.mount.control_calls import Served, mount_handlers
from aspenfs.mount.fuse import fuse_session, raise_readahead
from aspenfs.mount.request_wait import short_request_wait
from aspenfs.mount.stores import MountStore, open_mount_store
from aspenfs.mountpoint import MountEntry, check_fuse, prepare_mountpoint, unmount
from aspenfs.operations import Operations
from aspenkv.errors import AspenKvError

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _AnsweringOperations(Operations):
    """Operations that tell when the kernel has made contact: from then on the mount answers."""

    def __init__(self, filesystem: Filesystem, config: MountConfig) -> None:
        # A read-only mount has no session that a lock could hang on.
        shares_locks = not (config.local_locks or config.read_only)
        super().__init__(filesystem, interruptible=config.is_networked, shares_locks=shares_locks)
        self.contacted = trio.Event()

    def init(self) -> None:
        super().init()
        self.contacted.set()


async def serve(
    config: MountConfig, *, on_locked: Callable[[], None], on_ready: Callable[[Mounted], None]
) -> None:
    """Mount, and serve until somebody unmounts or a signal says to stop.

    SIGTERM, SIGINT and SIGHUP unmount; a signal that comes before the mount is up is obeyed when it
    is. Everything written is on stable storage when this returns.

    Args:
        config: what to mount.
        on_locked: called once the data directory belongs to this process.
        on_ready: called once the mount answers, with what it is.

    Raises:
        StartupError: it cannot be mounted; nothing stays mounted.
        AspenError, AspenKvError: it failed while running, or could not write all that was dirty.
    """
    async with AsyncExitStack() as stack:
        stop_asked = await stack.enter_async_context(_stop_signals())
        check_fuse(config)
        if prepare_mountpoint(config):
            log.info("took away the dead mount that a crash left on %s", config.mountpoint)
        store = await stack.enter_async_context(open_mount_store(config, on_locked=on_locked))
        config = replace(config, volume=store.mounted.volume, read_only=store.mounted.read_only)
        listener = await stack.enter_async_context(open_control(config.state_dir))
        filesystem = await stack.enter_async_context(_open_filesystem(config, store))
        operations = _AnsweringOperations(filesystem, config)
        extension = operations.extension
        stack.enter_context(extension.armed())
        entry = stack.enter_context(fuse_session(operations, config))
        stack.enter_context(short_request_wait())
        served = Served(
            config,
            store,
            filesystem,
            SYSTEM_CLOCK,
            SYSTEM_CLOCK.monotonic(),
            lambda: operations.bug_count,
            extension.why_inactive,
        )
        _calm_collector()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operations.run)
            await nursery.start(extension.run)
            nursery.start_soon(serve_control, listener, lambda: mount_handlers(served))
            nursery.start_soon(
                _announce, operations.contacted, entry, extension, partial(on_ready, store.mounted)
            )
            nursery.start_soon(_unmount_when_asked, stop_asked, store, filesystem, entry)
            tasks_max = limits.FUSE_FAR_TASKS_MAX if config.is_networked else limits.FUSE_TASKS_MAX
            await pyfuse3.main(limits.FUSE_IDLE_TASKS_MAX, tasks_max)
            nursery.cancel_scope.cancel()
        log.info("unmounted %s; writing what is left", config.mountpoint)


@asynccontextmanager
async def _open_filesystem(config: MountConfig, store: MountStore) -> AsyncIterator[Filesystem]:
    """Open the filesystem of a mount, and fail at the end if it could not write everything."""
    async with open_filesystem(
        store.kv,
        volume=store.mounted.volume,
        read_only=config.read_only,
        coherence=config.coherence,
        readahead=config.is_networked,
        timeout_s=config.timeout_s,
    ) as filesystem:
        yield filesystem
    lost = filesystem.statistics().data
    if lost.dirty_files:
        raise AspenError(
            f"{lost.dirty_bytes} bytes in {lost.dirty_files} files could not be written and are "
            f"lost: the log says why"
        )


@asynccontextmanager
async def _stop_signals() -> AsyncIterator[trio.Event]:
    """Yield an event that the first signal to stop sets; all further ones change nothing."""
    asked = trio.Event()

    async def receive(signals: AsyncIterator[int]) -> None:
        async for number in signals:
            log.info("%s: stopping", signal.Signals(number).name)
            asked.set()

    with trio.open_signal_receiver(*_STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, signals)
            yield asked
            nursery.cancel_scope.cancel()


def _calm_collector() -> None:
    """Let the collector of reference cycles leave alone what was built for the whole mount.

    Handlers make hardly any cycles, and a walk over every cached record every few hundred requests
    is felt.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(limits.GC_ALLOCATIONS)


async def _announce(
    contacted: trio.Event,
    entry: MountEntry,
    extension: FuseExtension,
    on_ready: Callable[[], None],
) -> None:
    await contacted.wait()
    # The answer to FUSE_INIT went out in the same step that set the event.
    raise_readahead(entry)
    why_inactive = extension.why_inactive()
    if why_inactive is not None:
        log.warning(
            "without the FUSE extension (%s): locks hold within this mount only, and the kernel is "
            "left alone with fallocate, holes and copies; install aspenfs anew, with libfuse3-dev "
            "3.14 or newer",
            why_inactive,
        )
    log.info("mounted %s from %s", entry.mountpoint, entry.source)
    on_ready()


async def _unmount_when_asked(
    stop_asked: trio.Event, store: MountStore, filesystem: Filesystem, entry: MountEntry
) -> None:
    """Flush and unmount. That ends the session, and with it this task."""
    await stop_asked.wait()
    patience_s = limits.SHUTDOWN_S if store.is_reachable() else limits.SHUTDOWN_AWAY_S
    try:
        with trio.fail_after(patience_s):
            await filesystem.sync()
    except (AspenError, AspenKvError) as error:
        log.warning("what is dirty cannot be written: %s", error)
    except trio.TooSlowError:
        log.warning("what is dirty could not be written within %g s", patience_s)
    try:
        # In a thread: the kernel may write back mapped pages first, through this very process.
        await trio.to_thread.run_sync(unmount, entry.mountpoint)
        # The session ends by itself, unless another mount namespace still has the mount.
        with trio.move_on_after(limits.LINGERING_MOUNT_S):
            await trio.sleep_forever()
        log.warning("%s is mounted elsewhere too; ending it there", entry.mountpoint)
    except (StartupError, OSError) as error:
        log.warning("ending the mount all the same: %s", error)
    pyfuse3.terminate()
