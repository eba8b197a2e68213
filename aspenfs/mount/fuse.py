"""One FUSE session of this process: mount, what the kernel should know of it, and its end."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyfuse3

from aspenfs import limits
from aspenfs.config import ExitCode, MountConfig
from aspenfs.errors import StartupError
from aspenfs.mountpoint import MountEntry, mount_at, unmount

log = logging.getLogger(__name__)

_BACKING_DEVICES: Final = Path("/sys/class/bdi")
_STDERR: Final = 2


@contextmanager
def fuse_session(operations: pyfuse3.Operations, config: MountConfig) -> Iterator[MountEntry]:
    """Mount, and leave nothing mounted when the block ends, however it ends.

    Requests are answered while :func:`pyfuse3.main` runs, so nothing in this block may touch the
    mount before that.

    Raises:
        StartupError: libfuse or the kernel refused.
    """
    logging.getLogger("pyfuse3").addFilter(_is_worth_a_line)
    with _captured_stderr() as said:
        try:
            pyfuse3.init(operations, str(config.mountpoint), config.fuse_options())
        except RuntimeError:
            raise StartupError(_refused(config.mountpoint, said()), ExitCode.MOUNT_FAILED) from None
    entry = mount_at(config.mountpoint)
    try:
        if entry is None:
            raise StartupError(
                f"{config.mountpoint} was unmounted by somebody else while mounting: try again",
                ExitCode.MOUNT_FAILED,
            )
        yield entry
    finally:
        # Closing the device aborts the connection, so that the unmount waits for nobody; with
        # unmount=True libfuse would unmount whatever is on the path by then.
        pyfuse3.close(unmount=False)
        if entry is not None:
            _leave_nothing(entry)


def is_mounted(entry: MountEntry) -> bool:
    """Say whether the mount is still the uppermost on its mountpoint."""
    now = mount_at(entry.mountpoint)
    return now is not None and now.device == entry.device


def raise_readahead(entry: MountEntry) -> None:
    """Let the kernel read further ahead than FUSE's default; only root may.

    Call it after the kernel has had the answer to FUSE_INIT, which sets the value too.
    """
    major, minor = entry.device
    setting = _BACKING_DEVICES / f"{major}:{minor}" / "read_ahead_kb"
    if os.geteuid() == 0:
        try:
            setting.write_text(str(limits.KERNEL_READAHEAD_KIB), encoding="ascii")
        except OSError as error:  # read-only /sys of a container: slower, but right
            log.info("the kernel's readahead stays as it is: %s", error)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Tell pyfuse3's log records of errors from those of a normal end.

    The kernel answers ENOENT to a reply that nobody waits for any more: it sends a release without
    waiting, and unmounts meanwhile.
    """
    is_reply = isinstance(record.msg, str) and record.msg.endswith("fuse_reply_* failed with %s")
    return not (is_reply and record.args == (os.strerror(errno.ENOENT),))


def _leave_nothing(entry: MountEntry) -> None:
    if is_mounted(entry):
        try:
            unmount(entry.mountpoint, lazy=True)
        except (StartupError, OSError) as error:
            log.warning("a dead mount is left on %s: %s", entry.mountpoint, error)


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Catch what is written to descriptor 2: libfuse says nowhere else why it failed."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(_STDERR)
        os.dup2(file.fileno(), _STDERR)
        try:
            yield lambda: os.fsdecode(os.pread(file.fileno(), limits.STARTUP_REPORT_BYTES_MAX, 0))
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)


def _refused(mountpoint: Path, said: str) -> str:
    reason = "; ".join(line.strip() for line in said.splitlines() if line.strip())
    return (
        f"cannot mount on {mountpoint} ({reason or 'libfuse does not say why'}): mounting takes "
        f"root or a set-uid fusermount3 (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
    )
