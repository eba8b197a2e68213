"""Mounts that vanish, and one that comes back when others have long gone on without it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from aspenfs.limits import ORPHAN_SCAN_S, SESSION_TTL_S
from tests.mount.mounts import TIMEOUT_S, eventually, mounting, run_aspenfs, succeed
from tests.network import holder
from tests.network.processes import Server, read_line, serving

pytestmark = pytest.mark.mount

REFUSED: Final = os.strerror(errno.EIO)

LAPSED: Final = (
    "the session of this mount lapsed",
    "the session could not be (renewed|ended)",
    "changes by others cannot be followed",
    "bytes are lost|is lost|could not be written",
    "failed: ",
)
"""What the log of a mount may say that has been stopped for too long."""

assert SESSION_TTL_S + ORPHAN_SCAN_S < TIMEOUT_S, "the test waits that long for both"


class Holder:
    """Another process that holds a file open: one that forks would wait for a stopped mount."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._answer()

    def order(self, what: str) -> int:
        """Have it do something; return the number of the error."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n".encode())
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(read_line(self._process.stdout))


@contextmanager
def holding(path: Path) -> Iterator[Holder]:
    with subprocess.Popen(
        [sys.executable, holder.__file__, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Holder(process)
        finally:
            process.kill()


def orphans(server: Server) -> int:
    """Return how many files without a name there are in the volume."""
    report = json.loads(run_aspenfs("fsck", "--json", f"--ticket={server.ticket_file}").stdout)
    count: int = report["counts"]["orphans"]
    return count


@pytest.mark.slow
def test_a_mount_that_lapsed_is_cleaned_up_after_and_changes_nothing(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as server,
        mounting(tmp_path / "other", ticket_file=server.ticket_file) as other,
        mounting(tmp_path / "killed", ticket_file=server.ticket_file) as killed,
        mounting(tmp_path / "stopped", ticket_file=server.ticket_file) as stopped,
        holding(killed.mountpoint / "nameless") as nameless,
        holding(stopped.mountpoint / "file") as held,
    ):
        assert [nameless.order("write x"), nameless.order("sync")] == [0, 0]
        (killed.mountpoint / "nameless").unlink()
        assert orphans(server) == 1
        assert [held.order("write before"), held.order("sync")] == [0, 0]
        assert held.order("write BEFORE") == 0  # to be committed in half a second
        stopped.process.send_signal(signal.SIGSTOP)
        killed.kill()
        eventually(lambda: other.status()["store"]["leases"] == 1, "both sessions have lapsed")
        eventually(lambda: orphans(server) == 0, "what they had open is removed")
        for name in ("file", "another"):
            (other.mountpoint / name).write_bytes(b"after")

        stopped.expected_log += LAPSED
        stopped.process.send_signal(signal.SIGCONT)
        assert held.order("sync") == errno.EIO
        for change in (Path.mkdir, Path.touch):
            with pytest.raises(OSError, match=REFUSED):
                change(stopped.mountpoint / "new")
        # It can still read, but not what it had open: that error is its users' to see first.
        assert (stopped.mountpoint / "another").read_bytes() == b"after"
        assert (other.mountpoint / "file").read_bytes() == b"after"
        assert stopped.status()["bugs"] == 0
        run_aspenfs("umount", "--force", stopped.mountpoint)
        stopped.wait()

        for mount in (killed, stopped):
            mount.start()
            assert (mount.mountpoint / "file").read_bytes() == b"after"
            (mount.mountpoint / "file").write_bytes(b"after")
        assert succeed("fsck", f"--ticket={server.ticket_file}").endswith(b": clean\n")
