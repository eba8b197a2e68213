"""The mount that a command is about, and the process behind it."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path
from typing import Final, Self

from aspenfs.config import ExitCode
from aspenfs.control import serving_process
from aspenfs.errors import StartupError
from aspenfs.mountpoint import MountEntry, mount_at, read_mounts, resolve

_MS_PER_S: Final = 1000


def find_mount(path: Path) -> MountEntry:
    """Return the aspenfs mount on a path.

    Raises:
        StartupError: there is none.
    """
    mountpoint = resolve(path)
    entry = mount_at(mountpoint)
    if entry is None:
        raise StartupError(
            f"nothing is mounted on {mountpoint}: 'aspenfs status' lists the mounts",
            ExitCode.NOT_MOUNTED,
        )
    if not entry.is_aspenfs:
        raise StartupError(
            f"{mountpoint} is a mount of type {entry.filesystem_type}, not of aspenfs: "
            f"use 'umount {mountpoint}'",
            ExitCode.NOT_MOUNTED,
        )
    return entry


class ServingProcess:
    """The process that serves a mount, held by a descriptor so that its pid cannot be another's."""

    def __init__(self, entry: MountEntry) -> None:
        """Find it; ``pid`` is None if there is none that can be known to be the mount's own."""
        self.pid = _serving_pid(entry)
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Take hold of it."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                self._descriptor = os.pidfd_open(self.pid)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Let go of it."""
        if self._descriptor is not None:
            os.close(self._descriptor)

    def wait_for_end(self, timeout_s: float) -> bool:
        """Return whether the process has ended, waiting up to ``timeout_s`` seconds for it."""
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * _MS_PER_S))


def _serving_pid(entry: MountEntry) -> int | None:
    data_dir = entry.state_dir
    if data_dir is None:
        return None
    rivals = (other for other in read_mounts() if other.state_dir == data_dir)
    if any(other.device != entry.device for other in rivals):
        # One of them is dead, and the process may well be the other's.
        return None
    try:
        return serving_process(data_dir)
    except PermissionError:
        return None
