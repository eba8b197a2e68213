"""kill -9 of the mount while programs write: what was synced is there, the rest is consistent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.faults import storm
from tests.mount.mounts import TIMEOUT_S, Mount, eventually, run_aspenfs

WRITERS = 2
ROUNDS_OF_ACKNOWLEDGED_FILES = (1, 25, 60)
"""How many files each writer of a round has synced when the mount is killed."""


@contextmanager
def writing(directory: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Run the writers; in the end they find the filesystem gone, and stop."""
    writers = [
        subprocess.Popen(
            [sys.executable, storm.__file__, directory, str(writer)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for writer in range(WRITERS)
    ]
    try:
        yield writers
        for writer in writers:
            assert writer.wait(TIMEOUT_S) == 0
    finally:
        for writer in writers:
            writer.kill()
            writer.wait(TIMEOUT_S)
            _output(writer).close()


def _output(writer: subprocess.Popen[str]) -> IO[str]:
    assert writer.stdout is not None
    return writer.stdout


def _fsck(mount: Mount) -> dict[str, int]:
    """Check the volume; return the counts."""
    done = run_aspenfs("fsck", "--json", "--data", mount.data_dir)
    assert done.returncode == 0, done.stdout.decode()
    counts: dict[str, int] = json.loads(done.stdout)["counts"]
    return counts


@pytest.mark.mount
def test_what_was_synced_survives_a_kill(mounted: Mount) -> None:
    for number, wanted in enumerate(ROUNDS_OF_ACKNOWLEDGED_FILES):
        directory = mounted.mountpoint / f"round{number}"
        directory.mkdir()
        with writing(directory) as writers:
            synced = [[int(_output(each).readline()) for _ in range(wanted)] for each in writers]
            mounted.kill()
            for numbers, each in zip(synced, writers, strict=True):
                numbers += [int(line) for line in _output(each)]
        mounted.start()
        for writer, numbers in enumerate(synced):
            for file in numbers:
                found = storm.path_of(directory, writer, file).read_bytes()
                assert found == storm.content(writer, file), f"file {file} of writer {writer}"
        eventually(lambda: _fsck(mounted)["orphans"] == 0, "files without a name are removed")
    mounted.end()
    assert _fsck(mounted)["orphans"] == 0
