"""Starting a mount in a process of its own, and waiting until it answers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import IO

from aspenfs.cli.report import wait_for_report
from aspenfs.config import ExitCode, MountConfig, Mounted
from aspenfs.errors import StartupError
from aspenfs.limits import (
    FORCED_UNMOUNT_WAIT_S,
    MOUNT_READY_TIMEOUT_S,
    STARTUP_REPORT_BYTES_MAX,
)
from aspenfs.mountpoint import Answer, mount_at, probe, unmount


def mount_in_background(config: MountConfig) -> tuple[MountConfig, Mounted]:
    """Start a process that serves the mount, and return when the mount answers.

    The process is a new one and not a fork, since neither threads nor locks survive a fork.

    Returns:
        The configuration that the process runs with, its log being a file, and what it mounted.

    Raises:
        StartupError: it failed, or does not answer; nothing stays mounted.
    """
    config = replace(config, log_file=config.log_file or config.default_log_file)
    reading, writing = os.pipe()
    # The first words of the process, until it logs to its file.
    with tempfile.TemporaryFile() as said, os.fdopen(reading, "rb", buffering=0) as reports:
        try:
            server = _start(config, writing, said)
        finally:
            os.close(writing)
        try:
            mounted = wait_for_report(reports.fileno(), MOUNT_READY_TIMEOUT_S)
        except TimeoutError:
            _abandon(server, config)
            raise _silent(config, f"is not ready after {MOUNT_READY_TIMEOUT_S:.0f} s") from None
        except BaseException:  # its own failure, which ends it, or Ctrl-C here
            _end(server)
            raise
        if mounted is None:
            raise _died(server.wait(), said)
    if probe(config.mountpoint) is not Answer.ALIVE:
        _abandon(server, config)
        raise _silent(config, "does not answer")
    return config, mounted


def _start(config: MountConfig, report_to: int, said: IO[bytes]) -> subprocess.Popen[bytes]:
    # -P: the working directory is no place to import code from.
    command = [sys.executable, "-P", "-m", "aspenfs", "mount", f"--report-to={report_to}"]
    return subprocess.Popen(  # noqa: S603 - this very program
        [*command, *config.arguments()],
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        pass_fds=(report_to,),
        start_new_session=True,
    )


def _end(server: subprocess.Popen[bytes]) -> None:
    """Let it unmount and end; it has nothing to write yet."""
    server.terminate()
    try:
        server.wait(FORCED_UNMOUNT_WAIT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _abandon(server: subprocess.Popen[bytes], config: MountConfig) -> None:
    """End it at once, and take away the mount that it leaves."""
    server.kill()
    server.wait()
    entry = mount_at(config.mountpoint)
    if entry is not None and entry.state_dir == config.state_dir:
        unmount(config.mountpoint, lazy=True)


def _silent(config: MountConfig, what: str) -> StartupError:
    return StartupError(
        f"the mount on {config.mountpoint} {what} and was taken away: {config.log_file} may say "
        f"why; try again with --foreground",
        ExitCode.MOUNT_SILENT,
    )


def _died(exit_code: int, said: IO[bytes]) -> StartupError:
    said.seek(0)
    words = os.fsdecode(said.read(STARTUP_REPORT_BYTES_MAX)).strip()
    last = words.splitlines()[-1] if words else "it left no message"
    return StartupError(
        f"the mount's process ended at once with {exit_code} ({last}): try --foreground",
        ExitCode.INTERNAL,
    )
