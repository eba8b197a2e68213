"""``aspenfs watch`` on one machine, and what is done on another."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from aspenfs.config import ExitCode
from tests.mount.mounts import TIMEOUT_S, Mount, eventually, mounting, run_aspenfs, succeed
from tests.network.processes import Server, read_line, serving

pytestmark = pytest.mark.mount

ASPENFS: Final = (sys.executable, "-P", "-m", "aspenfs")


class Watch:
    """A running command."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process = process
        self.path = path

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        return os.fsdecode(read_line(self.process.stdout))

    def event(self) -> dict[str, Any]:
        """Return the next object that it prints, without its revision."""
        event: dict[str, Any] = json.loads(self.line())
        assert event.pop("revision") > 0
        return event

    def complaint(self) -> str:
        """Return the next line of its standard error."""
        assert self.process.stderr is not None
        return os.fsdecode(read_line(self.process.stderr))

    def events(self, count: int) -> list[tuple[str, ...]]:
        """Return the next events: kind and paths, without that which is watched."""
        events = [self.event() for _ in range(count)]
        prefix = f"{self.path}/"
        return [
            (
                event["event"],
                *(
                    event[field].removeprefix(prefix)
                    for field in ("old_path", "path")
                    if field in event
                ),
            )
            for event in events
        ]

    def unread_bytes(self) -> int:
        """Return how much it has printed that nobody has read."""
        assert self.process.stdout is not None
        count = fcntl.ioctl(self.process.stdout, termios.FIONREAD, bytes(4))
        return int.from_bytes(count, sys.byteorder)

    def wait(self) -> int:
        """Return its exit code."""
        return self.process.wait(TIMEOUT_S)


@contextmanager
def watching(path: Path, *arguments: str) -> Iterator[Watch]:
    """Run the command, and return when it tells everything."""
    process = subprocess.Popen(
        [*ASPENFS, "watch", path, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            watch = Watch(process, path)
            assert "watching" in watch.complaint()
            yield watch
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


@pytest.fixture
def here(tmp_path: Path, server: Server) -> Iterator[Mount]:
    with mounting(tmp_path / "here", ticket_file=server.ticket_file) as mount:
        yield mount


@pytest.fixture
def there(tmp_path: Path, server: Server) -> Iterator[Path]:
    with mounting(tmp_path / "there", ticket_file=server.ticket_file) as mount:
        yield mount.mountpoint


def test_what_another_machine_does_is_told(here: Mount, there: Path) -> None:
    (there / "outside").mkdir()
    (there / "outside/file").write_bytes(b"x")
    (there / "watched").mkdir()
    with watching(here.mountpoint / "watched", "--json") as watch:
        assert watch.event() == {"event": "ready", "path": str(watch.path)}
        root = there / "watched"
        (root / "file").write_bytes(b"content")
        assert watch.event() == {
            "event": "created",
            "path": f"{watch.path}/file",
            "type": "file",
        }
        assert watch.events(1) == [("written", "file")]
        (root / "directory").mkdir()
        (root / "file").rename(root / "directory/moved")
        assert watch.events(2) == [
            ("created", "directory"),
            ("renamed", "file", "directory/moved"),
        ]
        (root / "directory/moved").chmod(0o600)
        assert watch.events(1) == [("changed", "directory/moved")]
        (there / "outside").rename(root / "came")
        assert watch.events(2) == [("created", "came"), ("created", "came/file")]
        (root / "came/file").replace(root / "directory/moved")
        assert watch.events(2) == [
            ("removed", "directory/moved"),
            ("renamed", "came/file", "directory/moved"),
        ]
        (root / "directory").rename(there / "went")
        assert watch.events(1) == [("removed", "directory")]
        (there / "went/unseen").touch()
        (root / "came").rmdir()
        assert watch.events(1) == [("removed", "came")]
        (root / os.fsdecode(b"n\xff\n")).symlink_to("file")
        exact = os.fsencode(watch.path) + b"/n\xff\n"
        assert watch.event() == {
            "event": "created",
            "path": exact.decode(errors="replace"),
            "path_base64": base64.b64encode(exact).decode(),
            "type": "symlink",
        }
        watch.process.send_signal(signal.SIGINT)
        assert watch.wait() == ExitCode.OK


def test_what_this_machine_does_is_told_too(here: Mount, there: Path) -> None:
    del there
    with watching(here.mountpoint) as watch:
        (here.mountpoint / "a\nb").touch()
        (here.mountpoint / "d").mkdir()
        (here.mountpoint / "d").rename(here.mountpoint / "e")
        assert [watch.line() for _ in range(3)] == [
            f"created    {watch.path}/a\\x0ab\n",
            f"created    {watch.path}/d/\n",
            f"renamed    {watch.path}/d/ -> {watch.path}/e/\n",
        ]


def test_a_mount_that_hosts_the_store_tells_of_others(tmp_path: Path) -> None:
    with (
        mounting(tmp_path / "host") as host,
        mounting(tmp_path / "guest", ticket_file=host.data_dir / "admin.ticket") as guest,
        watching(host.mountpoint, "--json") as watch,
    ):
        assert watch.event()["event"] == "ready"
        (guest.mountpoint / "of guest").touch()
        (host.mountpoint / "of host").touch()
        assert watch.events(2) == [("created", "of guest"), ("created", "of host")]


def test_a_file_that_is_replaced_is_still_watched(here: Mount, there: Path) -> None:
    (there / "file").write_bytes(b"old")
    with watching(here.mountpoint / "file", "--json", "--count=3") as watch:
        assert watch.event()["event"] == "ready"
        (there / "other").write_bytes(b"new")
        (there / "other").rename(there / "file")
        (there / "file").write_bytes(b"newer")
        path = str(watch.path)
        assert watch.events(3) == [("removed", path), ("created", path), ("written", path)]
        assert watch.wait() == ExitCode.OK


def test_a_tree_that_is_copied_and_removed(here: Mount, there: Path) -> None:
    with watching(here.mountpoint, "--json") as watch:
        assert watch.event()["event"] == "ready"
        shutil.copytree(Path(__file__).parent, there / "copy")
        shutil.rmtree(there / "copy")
        exists: set[str] = set()
        seen: set[str] = set()
        while True:
            event = watch.event()
            assert event["event"] in {"created", "written", "changed", "removed"}
            if event["event"] == "created":
                exists.add(event["path"])
            assert event["path"] in exists
            seen.add(event["path"])
            if event["event"] == "removed":
                exists.discard(event["path"])
                if event["path"] == f"{watch.path}/copy":
                    break
        assert not exists
        assert f"{watch.path}/copy/{Path(__file__).name}" in seen


def test_it_ends_after_a_time(here: Mount) -> None:
    with watching(here.mountpoint, "--timeout=0.2") as watch:
        assert watch.wait() == ExitCode.OK


def test_a_reader_that_is_gone_ends_it(here: Mount) -> None:
    with watching(here.mountpoint) as watch:
        assert watch.process.stdout is not None
        watch.process.stdout.close()
        (here.mountpoint / "file").touch()
        assert watch.wait() == ExitCode.OK


def test_a_reader_that_is_slow_does_not_keep_ctrl_c_from_working(here: Mount) -> None:
    with watching(here.mountpoint, "--json") as watch:
        directory = here.mountpoint / ("d" * 200)
        directory.mkdir()
        for number in range(250):  # together more than the 64 KiB of a pipe
            (directory / f"{number:0200}").touch()
        eventually(lambda: watch.unread_bytes() > 60_000, "the pipe is full")
        watch.process.send_signal(signal.SIGINT)
        assert watch.wait() == ExitCode.OK


def test_an_unmount_ends_it(here: Mount) -> None:
    with watching(here.mountpoint) as watch:
        here.end()
        assert "was unmounted" in watch.complaint()
        assert watch.wait() == ExitCode.NOT_MOUNTED


def test_the_end_of_the_mounts_process_ends_it(here: Mount) -> None:
    with watching(here.mountpoint) as watch:
        here.kill()
        assert "the feed broke" in watch.complaint()
        assert "has ended" in watch.complaint()
        assert watch.wait() == ExitCode.NOT_MOUNTED
    succeed("umount", here.mountpoint)


def test_a_restart_of_the_server_is_a_gap(here: Mount, server: Server) -> None:
    here.expected_log += ["cannot be followed", "no server can be reached"]
    with watching(here.mountpoint, "--json") as watch:
        assert watch.event()["event"] == "ready"
        server.kill()
        server.start()
        assert "the feed broke" in watch.complaint()
        assert "gap: changes may have been missed: look again" in watch.complaint()
        assert watch.event() == {"event": "gap", "path": str(watch.path)}
        (here.mountpoint / "file").touch()
        assert watch.events(1) == [("created", "file")]


def test_what_cannot_be_watched(here: Mount, tmp_path: Path) -> None:
    absent = run_aspenfs("watch", here.mountpoint / "absent")
    assert (absent.returncode, absent.stdout) == (ExitCode.FAILURE, b"")
    assert b"No such file" in absent.stderr
    elsewhere = run_aspenfs("watch", tmp_path)
    assert elsewhere.returncode == ExitCode.NOT_MOUNTED
    assert b"not on an aspenfs mount" in elsewhere.stderr
