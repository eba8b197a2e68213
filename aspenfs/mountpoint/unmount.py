"""Taking a mount away: umount(2) for root, fusermount3 for everybody else. Blocking calls."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aspenfs.config import ExitCode
from aspenfs.errors import StartupError
from aspenfs.limits import FUSERMOUNT_TIMEOUT_S, MOUNT_USERS_NAMED_MAX
from aspenfs.mountpoint.mountinfo import MountEntry

# linux/fs.h by way of umount(2)
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8

_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount.

    Args:
        mountpoint: as :func:`~aspenfs.mountpoint.mountinfo.resolve` returns it.
        lazy: take it out of the tree at once, even if it is in use; users keep what they have open.

    Raises:
        StartupError: it is in use (BUSY), or this user may not, or fusermount3 is missing.
    """
    try:
        if os.geteuid() == 0:
            _umount2(mountpoint, _MNT_DETACH if lazy else 0)
        else:
            _fusermount(mountpoint, lazy=lazy)
    except PermissionError:
        raise StartupError(
            f"no permission to unmount {mountpoint}: only root and the user who mounted it may",
            ExitCode.MOUNTPOINT_PERMISSION,
        ) from None
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise StartupError(_busy(mountpoint), ExitCode.BUSY) from None


def unmount_by_force(entry: MountEntry) -> None:
    """Unmount lazily and abort the mount's connection, so that whoever waits on it gets an error.

    Only this mount's connection: it is found by the mount's device number.

    Raises:
        StartupError: as :func:`unmount`.
    """
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):
            _umount2(entry.mountpoint, _MNT_FORCE | _MNT_DETACH)
            return
    unmount(entry.mountpoint, lazy=True)
    # The file belongs to who mounted; where fusectl is not mounted, the lazy unmount has to do.
    with contextlib.suppress(FileNotFoundError):
        (_CONNECTIONS / str(entry.device[1]) / "abort").write_text("1", encoding="ascii")


def _umount2(mountpoint: Path, flags: int) -> None:
    if _LIBC.umount2(bytes(mountpoint), flags | _UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(mountpoint))


def _fusermount(mountpoint: Path, *, lazy: bool) -> None:
    program = shutil.which("fusermount3")
    if program is None:
        raise StartupError(
            "fusermount3 is missing, and without it only root can unmount: "
            "install it with 'apt-get install fuse3'",
            ExitCode.FUSERMOUNT_MISSING,
        )
    command = [program, "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    done = subprocess.run(  # noqa: S603 - a fixed program with one path as its argument
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=FUSERMOUNT_TIMEOUT_S,
        env={**os.environ, "LC_ALL": "C"},  # its message is the only thing that says EBUSY
        check=False,
    )
    if done.returncode == 0:
        return
    message = os.fsdecode(done.stderr).strip()
    if os.strerror(errno.EBUSY) in message:
        raise OSError(errno.EBUSY, message)
    raise PermissionError(errno.EPERM, message)


def _busy(mountpoint: Path) -> str:
    users = [
        f"{pid} ({name})"
        for (pid, name), _ in zip(_users(mountpoint), range(MOUNT_USERS_NAMED_MAX), strict=False)
    ]
    by = f" by process {', '.join(users)}" if users else ""
    return (
        f"{mountpoint} is in use{by}: close what is open there and leave its directories, "
        f"or use 'aspenfs umount --force {mountpoint}'"
    )


def _users(mountpoint: Path) -> Iterator[tuple[int, str]]:
    """Yield who has a file open or a working directory below ``mountpoint``, as far as visible.

    Reading the links of /proc does not touch the mount.
    """
    for process in Path("/proc").glob("[0-9]*"):
        # Processes come and go, and most belong to others.
        with contextlib.suppress(OSError):
            links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
            if any(_is_inside(link, mountpoint) for link in links):
                yield int(process.name), (process / "comm").read_text(errors="replace").strip()


def _is_inside(link: Path, mountpoint: Path) -> bool:
    try:
        return link.readlink().is_relative_to(mountpoint)
    except OSError:  # closed meanwhile
        return False
