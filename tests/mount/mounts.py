"""Mounts for tests: each in a child process of its own, every wait bounded, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio

from aspenfs.cli.report import wait_for_report
from aspenfs.config import state_dir_of_mount
from aspenfs.control import connect, serving_process
from aspenfs.mountpoint import Answer, mount_at, probe, read_mounts, unmount, unmount_by_force

TIMEOUT_S: Final = 60.0
_ASPENFS: Final = (sys.executable, "-P", "-m", "aspenfs")
_LOUD: Final = re.compile(r"^\S+ \S+ (WARNING|ERROR|CRITICAL) ")


def run_aspenfs(
    *arguments: str | Path, stdin: bytes = b"", **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end; the caller looks at its exit code."""
    return subprocess.run(
        [*_ASPENFS, *arguments],
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        **options,
    )


def succeed(*arguments: str | Path, stdin: bytes = b"", **options: Any) -> bytes:
    """Run the command, which must succeed and complain of nothing; return its output."""
    done = run_aspenfs(*arguments, stdin=stdin, **options)
    assert (done.returncode, done.stderr) == (0, b""), f"{arguments}: {done}"
    return done.stdout


def control_call(state_dir: Path, name: str, **arguments: object) -> Any:
    """Make one control call of a mount."""

    async def call() -> Any:
        with trio.fail_after(TIMEOUT_S):
            async with connect(state_dir) as client:
                return await client.call(name, **arguments)

    return trio.run(call)


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds that nothing announces; fail after TIMEOUT_S."""
    pause = threading.Event()
    for _ in range(int(TIMEOUT_S / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError(f"it did not come true in {TIMEOUT_S:.0f} s: {what}")


class Mount:
    """A mount in the foreground of a child process, on ``mnt`` of a directory.

    It hosts the store in ``data`` of that directory, unless it has a ticket for another's. A
    ``prefix`` is a program, such as nsenter(1), that runs the command after it.

    ``expected_log`` holds regular expressions of log lines at WARNING and above that a test causes
    on purpose.
    """

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str] = (),
        *,
        ticket_file: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.mountpoint = directory / "mnt"
        self.data_dir = directory / "data"
        self.log = directory / "log"
        self.expected_log: list[str] = []
        self.ticket_file = ticket_file
        self._arguments = tuple(arguments)
        self._prefix = tuple(prefix)
        self._process: subprocess.Popen[bytes] | None = None
        self.mountpoint.mkdir(exist_ok=True)

    @property
    def store_option(self) -> str:
        """The option that names its store, for this command and others."""
        if self.ticket_file is None:
            return f"--data={self.data_dir}"
        return f"--ticket={self.ticket_file}"

    @property
    def state_dir(self) -> Path:
        """Where its control socket is."""
        if self.ticket_file is None:
            return self.data_dir
        privileged = os.geteuid() == 0
        return state_dir_of_mount(self.mountpoint.resolve(), os.environ, privileged=privileged)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The serving process."""
        assert self._process is not None, "it is not mounted"
        return self._process

    def start(self) -> None:
        """Mount, and return when the mount answers."""
        reading, writing = os.pipe()
        # The log is standard error, as in the foreground; the report makes the wait exact.
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._prefix,
                    *_ASPENFS,
                    "mount",
                    self.mountpoint,
                    self.store_option,
                    f"--report-to={writing}",
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
            )
        os.close(writing)
        try:
            assert wait_for_report(reading, TIMEOUT_S), self.log.read_text()
        finally:
            os.close(reading)
        assert probe(self.mountpoint) is Answer.ALIVE

    def status(self) -> dict[str, Any]:
        """Return what ``aspenfs status`` knows."""
        status: dict[str, Any] = control_call(self.state_dir, "status")
        return status

    def wait(self) -> int:
        """Wait for the process to end; return its exit code."""
        return self.process.wait(TIMEOUT_S)

    def end(self) -> None:
        """Unmount, and check that all was well: exit code, bugs, log."""
        assert self.status()["bugs"] == 0
        unmount(self.mountpoint)
        assert self.wait() == 0, self.log.read_text()
        self._process = None
        self.check_log()

    def remount(self) -> None:
        """Unmount, check, and mount the same data again."""
        self.end()
        self.start()

    def kill(self) -> None:
        """End the process without a warning, as a crash would; the dead mount stays."""
        self.process.kill()
        assert self.wait() == -signal.SIGKILL
        self._process = None

    @property
    def is_running(self) -> bool:
        """Whether there is a process that has not been waited for."""
        return self._process is not None

    def check_log(self) -> None:
        """Fail if the log has a warning or worse that the test does not expect."""
        loud = [
            line
            for line in self.log.read_text().splitlines()
            if _LOUD.match(line) and not any(re.search(each, line) for each in self.expected_log)
        ]
        assert not loud, f"unexpected in the log of the mount: {loud}"


@contextmanager
def clean_directory(directory: Path) -> Iterator[Path]:
    """Yield a directory below which nothing stays mounted or serving, however the test ends."""
    try:
        yield directory
    finally:
        for entry in reversed(read_mounts()):
            if entry.mountpoint.is_relative_to(directory) and entry.is_aspenfs:
                pid = None if entry.state_dir is None else serving_process(entry.state_dir)
                unmount_by_force(entry)
                if pid:
                    _kill(pid)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def mounting(
    directory: Path,
    *arguments: str,
    ticket_file: Path | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Mount]:
    """Mount below a directory, and afterwards unmount and check, unless the test has done so."""
    directory.mkdir(exist_ok=True)
    with clean_directory(directory):
        mount = Mount(directory, arguments, ticket_file=ticket_file, prefix=prefix)
        mount.start()
        try:
            yield mount
            if mount.is_running and mount.process.poll() is None:
                mount.end()
            else:
                mount.check_log()
            assert mount_at(mount.mountpoint) is None, "the test left it mounted"
        finally:
            if mount.is_running:
                mount.process.kill()
                mount.process.wait(TIMEOUT_S)
