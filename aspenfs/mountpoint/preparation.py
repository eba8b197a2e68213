"""What must hold before a filesystem can be mounted, each with its cure. Blocking calls."""

from __future__ import annotations

import enum
import errno
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Final

from aspenfs.config import ExitCode, MountConfig
from aspenfs.errors import StartupError
from aspenfs.limits import MOUNT_ANSWER_TIMEOUT_S, STACKED_MOUNTS_MAX
from aspenfs.mountpoint.mountinfo import mount_at
from aspenfs.mountpoint.unmount import unmount

_DEVICE: Final = Path("/dev/fuse")
_FUSE_CONF: Final = Path("/etc/fuse.conf")


class Answer(enum.Enum):
    """What a look at a mount came to."""

    ALIVE = enum.auto()
    DEAD = enum.auto()
    SILENT = enum.auto()


def probe(mountpoint: Path, timeout_s: float = MOUNT_ANSWER_TIMEOUT_S) -> Answer:
    """Say whether the process behind a mount answers. Never call it in that process.

    It takes statfs, which the kernel never answers from its caches. A call to a mount whose process
    hangs cannot be interrupted, so it runs in a thread of its own that is left behind when the time
    is over.
    """
    outcome: list[Answer] = []

    def look() -> None:
        try:
            os.statvfs(mountpoint)
        except OSError as error:
            # ENOTCONN: its process is gone. Anything else is an answer of its process.
            outcome.append(Answer.DEAD if error.errno == errno.ENOTCONN else Answer.ALIVE)
        else:
            outcome.append(Answer.ALIVE)

    thread = threading.Thread(target=look, name="probe", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return outcome[0] if outcome else Answer.SILENT


def prepare_mountpoint(config: MountConfig) -> bool:
    """Check that the filesystem can be mounted, and take away a mount that a crash left there.

    Returns:
        Whether a dead mount was taken away.

    Raises:
        StartupError: it cannot be mounted there.
    """
    mountpoint = config.mountpoint
    cleaned = _clear_dead_mounts(mountpoint)
    try:
        mode = mountpoint.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise StartupError(
            f"mountpoint {mountpoint} does not exist: make it with 'mkdir -p {mountpoint}'",
            ExitCode.MOUNTPOINT_MISSING,
        ) from None
    except PermissionError:
        raise _no_permission(mountpoint) from None
    if not stat.S_ISDIR(mode):
        raise StartupError(
            f"mountpoint {mountpoint} is not a directory: name a directory",
            ExitCode.MOUNTPOINT_NOT_DIRECTORY,
        )
    if os.geteuid() != 0 and not os.access(
        mountpoint, os.W_OK, effective_ids=True
    ):  # fusermount3 insists on it
        raise _no_permission(mountpoint)
    _check_apart(mountpoint, config.state_dir)
    if not config.nonempty:
        _check_empty(mountpoint)
    return cleaned


def _clear_dead_mounts(mountpoint: Path) -> bool:
    cleaned = False
    for _ in range(STACKED_MOUNTS_MAX):
        entry = mount_at(mountpoint)
        if entry is None or not entry.filesystem_type.startswith("fuse"):
            return cleaned
        answer = probe(mountpoint)
        if not entry.is_aspenfs and answer is Answer.ALIVE:
            return cleaned
        if not entry.is_aspenfs:
            raise StartupError(
                f"a dead mount of {entry.source} ({entry.filesystem_type}) is on {mountpoint}: "
                f"take it away with 'fusermount3 -u -z {mountpoint}'",
                ExitCode.MOUNTPOINT_IN_USE,
            )
        if answer is not Answer.DEAD:
            silent = " and does not answer" if answer is Answer.SILENT else ""
            force = "--force " if answer is Answer.SILENT else ""
            raise StartupError(
                f"aspenfs is already mounted on {mountpoint}{silent}: choose another mountpoint, "
                f"or run 'aspenfs umount {force}{mountpoint}' first",
                ExitCode.MOUNTPOINT_IN_USE,
            )
        unmount(mountpoint, lazy=True)
        cleaned = True
    return cleaned


def _check_apart(mountpoint: Path, data_dir: Path) -> None:
    place = data_dir.resolve()
    if mountpoint in {place, *place.parents} or place in mountpoint.parents:
        raise StartupError(
            f"data directory {data_dir} and mountpoint {mountpoint} lie in each other: "
            f"choose another place for the data with --data DIR",
            ExitCode.USAGE,
        )


def _check_empty(mountpoint: Path) -> None:
    try:
        with os.scandir(mountpoint) as entries:
            first = next(entries, None)
    except PermissionError:
        raise _no_permission(mountpoint) from None
    if first is not None:
        raise StartupError(
            f"mountpoint {mountpoint} is not empty (it has '{first.name}'): choose an empty "
            f"directory, or hide what is there with -o nonempty",
            ExitCode.MOUNTPOINT_NOT_EMPTY,
        )


def _no_permission(mountpoint: Path) -> StartupError:
    return StartupError(
        f"no permission on mountpoint {mountpoint}: choose a directory of your own",
        ExitCode.MOUNTPOINT_PERMISSION,
    )


def check_fuse(config: MountConfig) -> None:
    """Check that this process may mount a FUSE filesystem at all.

    Raises:
        StartupError: FUSE is missing or forbidden here.
    """
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise _fuse_unusable(error) from None
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise StartupError(
            "fusermount3 is missing, and without it only root can mount: "
            "install it with 'apt-get install fuse3'",
            ExitCode.FUSERMOUNT_MISSING,
        )
    if config.allow_other and not _user_may_allow_other():
        raise StartupError(
            f"allow_other is for root unless {_FUSE_CONF} has a line 'user_allow_other': "
            f"add it, or leave out -o allow_other",
            ExitCode.ALLOW_OTHER_FORBIDDEN,
        )


def _fuse_unusable(error: OSError) -> StartupError:
    if isinstance(error, PermissionError):
        return StartupError(
            f"no permission on {_DEVICE}: run as root, or let users in with "
            f"'chmod 666 {_DEVICE}' (in a container: --device {_DEVICE} --cap-add SYS_ADMIN)",
            ExitCode.FUSE_PERMISSION,
        )
    return StartupError(
        f"{_DEVICE} cannot be opened ({error.strerror}): load the module with 'modprobe fuse' "
        f"(in a container: run it with --device {_DEVICE} --cap-add SYS_ADMIN)",
        ExitCode.FUSE_MISSING,
    )


def _user_may_allow_other() -> bool:
    try:
        lines = _FUSE_CONF.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)
