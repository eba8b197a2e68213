"""kill -9 of the server while two mounts write: it costs them time, and nothing else."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

import pytest

from tests.faults import server_storm
from tests.mount.mounts import TIMEOUT_S, Mount, mounting, succeed
from tests.network.processes import read_line, serving

pytestmark = pytest.mark.mount

KILLS: Final = 10
PROMISES_MAX: Final = 24
"""So many promises each writer has made at most since the server came back, when it is killed."""

OUTAGES: Final = (
    "changes by others cannot be followed",
    "data cannot be written: .*it is kept until it can",
    "no server can be reached",
    "orphans could not be collected",
    "the session could not be renewed",
)
"""What a mount's log may say while its server is away."""


class Writer:
    """A storm on one mount, and the promises read from it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.promises: list[str] = []

    @property
    def _output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def read(self, count: int) -> None:
        """Wait for promises that were not read before."""
        for _ in range(count):
            line = read_line(self._output).decode().rstrip()
            assert line, "the writer ended"
            self.promises.append(line)

    def end(self) -> None:
        """Have it stop, and read all that it has promised."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        while line := read_line(self._output).decode().rstrip():
            self.promises.append(line)
        assert self.process.wait(TIMEOUT_S) == 0

    def numbers(self, what: str) -> list[int]:
        """Return the numbers of all promises of a kind."""
        return [int(each.split()[1]) for each in self.promises if each.startswith(what)]


@contextmanager
def storming(mounts: Sequence[Mount]) -> Iterator[list[Writer]]:
    """Run one writer a mount until the block ends."""
    processes = [
        subprocess.Popen(
            [sys.executable, server_storm.__file__, mount.mountpoint, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number, mount in enumerate(mounts)
    ]
    try:
        yield [Writer(process) for process in processes]
    finally:
        for process in processes:
            with process:  # closes its pipes
                process.kill()
                process.wait(TIMEOUT_S)


def check_promises(mountpoint: Path, writers: Sequence[Writer]) -> None:
    """Look for all that was promised, and for what was done twice."""
    lines = (mountpoint / server_storm.LOG_NAME).read_text().splitlines(keepends=True)
    promised: list[str] = []
    for number, writer in enumerate(writers):
        promised += [server_storm.line_of(number, each) for each in writer.numbers("line")]
        for each in writer.numbers("file"):
            found = server_storm.path_of(mountpoint, number, each).read_bytes()
            assert found == server_storm.content(number, each), f"file {each} of writer {number}"
    assert sorted(lines) == sorted(promised)
    counted = int((mountpoint / server_storm.COUNTER_NAME).read_text())
    assert counted == sum(writer.promises.count("count") for writer in writers)


@pytest.mark.slow
def test_a_server_that_is_killed_costs_nothing_but_time(tmp_path: Path) -> None:
    dice = random.Random(11)
    with ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path))
        mounts = [
            stack.enter_context(mounting(tmp_path / name, ticket_file=server.ticket_file))
            for name in ("one", "two")
        ]
        for mount in mounts:
            mount.expected_log += OUTAGES
        (mounts[0].mountpoint / server_storm.COUNTER_NAME).write_text("0\n")
        with storming(mounts) as writers:
            for number in range(KILLS):
                # The third one comes back to be killed before anybody has done anything.
                wanted = 0 if number == 2 else dice.randrange(1, PROMISES_MAX)
                for writer in writers:
                    writer.read(wanted)
                server.kill()
                server.start()
            for writer in writers:
                writer.read(PROMISES_MAX)
                writer.end()
        for mount in mounts:
            check_promises(mount.mountpoint, writers)
            mount.remount()
            check_promises(mount.mountpoint, writers)
        for mount in mounts:
            mount.end()
        output = succeed("fsck", f"--ticket={server.ticket_file}").decode()
        assert re.search(r": clean$", output, re.MULTILINE), output
