"""A mount whose server is gone: nothing hangs, nothing written is forgotten, umount works."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounts import TIMEOUT_S, Mount, eventually, mounting, run_aspenfs, succeed
from tests.network.processes import Server, serving

pytestmark = pytest.mark.mount

CALL_TIMEOUT_S: Final = 2.0
MARGIN_S: Final = 2.0
"""For a machine that is busy."""

INTERRUPT_S: Final = 1.0

AWAY: Final = (
    "changes by others cannot be followed",
    "data cannot be written: .*it is kept until it can",
    "no server can be reached",
    "orphans could not be collected",
    "the session could not be renewed",
    "the session could not be ended",
    "no server could be reached in time",
)
"""What the log of a mount says while its server is away."""

FAILED: Final = "|".join(map(os.strerror, (errno.ETIMEDOUT, errno.EIO)))
"""What a change says that was not made, or of which that is not known."""

CALL: Final = """
import os, sys
path, name = sys.argv[1:]
print("calls", flush=True)
try:
    print(*sorted(getattr(os, name)(path)))
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


@pytest.fixture
def mount(server: Server, tmp_path: Path) -> Iterator[Mount]:
    """A mount of a server, of which nothing is cached but its root."""
    patience = f"--timeout={CALL_TIMEOUT_S:g}"
    with mounting(tmp_path / "mount", patience, ticket_file=server.ticket_file) as mount:
        (mount.mountpoint / "directory").mkdir()
        (mount.mountpoint / "directory" / "file").write_bytes(b"content")
        mount.remount()
        mount.expected_log += AWAY
        yield mount
        if not server.is_running and mount.process.poll() is None:
            server.start()  # the mount goes on, and ends as if nothing had been


def calling(path: Path, name: str) -> subprocess.Popen[bytes]:
    """Start a process that makes a call; return it when it is about to."""
    process = subprocess.Popen(
        [sys.executable, "-c", CALL, path, name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"calls\n"
    return process


def test_a_call_that_needs_the_server_fails_in_time(mount: Mount, server: Server) -> None:
    server.kill()
    start_s = time.monotonic()
    with calling(mount.mountpoint / "directory", "listdir") as process:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert output == b"%d\n" % errno.ETIMEDOUT
    assert time.monotonic() - start_s < CALL_TIMEOUT_S + MARGIN_S


def test_what_was_just_read_is_still_there(mount: Mount, server: Server) -> None:
    path = mount.mountpoint / "directory" / "file"
    assert path.read_bytes() == b"content"
    server.kill()
    start_s = time.monotonic()
    assert path.read_bytes() == b"content"
    assert time.monotonic() - start_s < CALL_TIMEOUT_S


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_process_that_waits(
    mount: Mount, server: Server, number: signal.Signals
) -> None:
    server.kill()
    with calling(mount.mountpoint / "directory", "listdir") as process:
        eventually(lambda: is_waiting(process.pid), "the process waits for the mount")
        start_s = time.monotonic()
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == -number
    assert time.monotonic() - start_s < INTERRUPT_S


def is_waiting(pid: int) -> bool:
    """Return whether a process waits in a call that the kernel has sent to a mount."""
    return "request_wait_answer" in Path(f"/proc/{pid}/stack").read_text()


def test_a_mount_is_unmounted_without_its_server(mount: Mount, server: Server) -> None:
    server.kill()
    mount.expected_log.append("the last changes may not survive a power cut")
    done = run_aspenfs("umount", mount.mountpoint)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"the server has all changes" in done.stdout
    assert mount.wait() == 0


def test_a_signal_unmounts_without_the_server(mount: Mount, server: Server) -> None:
    server.kill()
    mount.expected_log += ["what is dirty", "the last changes may not survive a power cut"]
    mount.process.terminate()
    assert mount.wait() == 0


def test_status_tells_that_the_server_is_away(mount: Mount, server: Server) -> None:
    server.kill()
    text = succeed("status", mount.mountpoint).decode()
    assert re.search(r"^state +mounted$", text, re.MULTILINE)
    assert re.search(r"^away +the server does not answer", text, re.MULTILINE)
    assert mount.status()["store"] is None


def test_written_data_waits_for_the_server(mount: Mount, server: Server) -> None:
    path = mount.mountpoint / "directory" / "file"
    with path.open("r+b", buffering=0) as file:
        server.kill()
        file.write(b"CON")
        start_s = time.monotonic()
        with pytest.raises(OSError, match=FAILED):
            os.fsync(file.fileno())
        assert time.monotonic() - start_s < CALL_TIMEOUT_S + MARGIN_S
        done = run_aspenfs("umount", mount.mountpoint)
        assert done.returncode != 0
        server.start()
        eventually(lambda: mount.status()["statistics"]["data"]["dirty_bytes"] == 0, "written")
        os.fsync(file.fileno())
    assert path.read_bytes() == b"CONtent"
    mount.remount()
    assert path.read_bytes() == b"CONtent"
    (path.parent / "another").write_bytes(b"all goes on")


def test_data_that_is_given_up_is_told(mount: Mount, server: Server) -> None:
    mount.expected_log += ["some data could not be written and is lost: 7 bytes in 1 files"]
    file = os.open(mount.mountpoint / "directory" / "file", os.O_WRONLY)
    os.write(file, b"CONTENT")
    server.kill()
    done = run_aspenfs("umount", "--force", mount.mountpoint)
    assert b"may be lost" in done.stdout
    assert mount.wait() == 1
    with suppress(OSError):
        os.close(file)
    assert "7 bytes in 1 files could not be written and are lost" in mount.log.read_text()
