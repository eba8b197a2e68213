"""The directory in which a mount of a remote store keeps its control socket and its log."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from aspenfs.config import ExitCode
from aspenfs.control import serving_process
from aspenfs.errors import StartupError
from aspenfs.mount.storage import DIRECTORY_MODE

_ATTEMPTS: Final = 8  # while mounts end that remove the directory


@contextmanager
def holding(state_dir: Path, mountpoint: Path) -> Iterator[None]:
    """Make the directory and hold it for this process alone; at the end remove it if it is empty.

    A log stays, for who wants to know how the mount ended. It is one for each mountpoint, and
    bounded.

    Args:
        state_dir: where it is.
        mountpoint: whose directory it is, for the message.

    Raises:
        StartupError: another process holds it.
        OSError: it cannot be made.
    """
    descriptor = _locked(state_dir)
    if descriptor is None:
        raise StartupError(
            f"process {serving_process(state_dir) or 'of another mount'} still serves, or writes "
            f"for, {mountpoint}: wait until it has ended, or end it",
            ExitCode.MOUNTPOINT_IN_USE,
        )
    try:
        yield
        with contextlib.suppress(OSError):  # the log is in it
            state_dir.rmdir()
    finally:
        os.close(descriptor)


def _locked(state_dir: Path) -> int | None:
    """Return a descriptor of the directory that has its lock; None if another process has it."""
    for _ in range(_ATTEMPTS):
        state_dir.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        descriptor = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), state_dir.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        os.close(descriptor)  # a mount that ended has removed this one
    return None
