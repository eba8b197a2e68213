"""Mounts, processes and caches of this machine, as the benchmark needs them."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import limits

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class BenchError(Exception):
    """The benchmark cannot go on; the message is one line: what, why, the cure."""


def run(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        BenchError: it failed, or took longer than COMMAND_TIMEOUT_S.
    """
    try:
        done = subprocess.run(
            command,
            check=True,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limits.COMMAND_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().rpartition("\n")[2]
        raise BenchError(f"{command[0]} failed with exit code {error.returncode}: {last}") from None
    except subprocess.TimeoutExpired:
        raise BenchError(
            f"{command[0]} took longer than {limits.COMMAND_TIMEOUT_S:.0f} s"
        ) from None
    return done.stdout


def may_drop_caches() -> bool:
    """Tell whether this user may empty the kernel's caches; without that, "cold" is a remount."""
    return os.access(_DROP_CACHES, os.W_OK)


def drop_caches() -> None:
    """Write dirty pages back and empty the kernel's caches, if this user may."""
    os.sync()
    if may_drop_caches():
        _DROP_CACHES.write_text("3\n", encoding="ascii")


def await_mount(mountpoint: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until something is mounted and answers.

    Raises:
        BenchError: the process ended, or MOUNT_TIMEOUT_S passed.
    """
    deadline_s = time.monotonic() + limits.MOUNT_TIMEOUT_S
    pidfd = os.pidfd_open(process.pid)
    try:
        with Path("/proc/self/mountinfo").open("rb") as mounts:
            changes = select.poll()
            changes.register(mounts, select.POLLPRI)  # the kernel's sign that a mount changed
            changes.register(pidfd, select.POLLIN)  # readable once the process has ended
            while not mountpoint.is_mount():
                if process.poll() is not None:
                    raise BenchError(f"{process.args!r} ended with exit code {process.returncode}")
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise BenchError(f"nothing was mounted at {mountpoint} in time")
                mounts.seek(0)
                mounts.read()
                if not mountpoint.is_mount():
                    changes.poll(left_s * 1000)
    finally:
        os.close(pidfd)


def await_condition(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until a server that announces nothing is ready.

    Raises:
        BenchError: the process ended, or MOUNT_TIMEOUT_S passed.
    """
    deadline_s = time.monotonic() + limits.MOUNT_TIMEOUT_S
    pidfd = os.pidfd_open(process.pid)
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        while not condition():
            if ended.poll(limits.READY_POLL_MS):
                raise BenchError(f"{process.args!r} ended with exit code {process.wait()}")
            if time.monotonic() > deadline_s:
                raise BenchError(f"{process.args!r} was not ready in time")
    finally:
        os.close(pidfd)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Tell whether somebody listens on a TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server in good order, or by force if that takes too long."""
    process.terminate()
    try:
        process.wait(limits.UNMOUNT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def unmount(mountpoint: Path, process: subprocess.Popen[bytes]) -> None:
    """Unmount a FUSE filesystem and wait until its process has written back and ended.

    Raises:
        BenchError: it could not be unmounted, or its process failed.
    """
    run(["fusermount3", "-u", mountpoint])
    try:
        code = process.wait(limits.UNMOUNT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{process.args!r} still runs after the unmount") from None
    if code != 0:
        raise BenchError(f"{process.args!r} ended with exit code {code}")


def abandon(mountpoint: Path, process: subprocess.Popen[bytes]) -> None:
    """End a process that is not to be trusted any more, and detach what it mounted."""
    detach = shutil.which("fusermount3")
    if detach is not None:
        subprocess.run([detach, "-u", "-z", "-q", mountpoint], check=False)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
