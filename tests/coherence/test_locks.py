"""File locks hold across mounts, and who has one sees what was written under it before."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.coherence.pairs import Pair, at_once, opened

INCREMENTS: Final = 150
PIECE: Final = 1 << 16

_COUNT_UP: Final = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
for _ in range(int(sys.argv[3])):
    getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
    number = int(os.pread(file, 20, 0))
    os.pwrite(file, b"%020d" % (number + 1), 0)
    getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_UN)
"""

EITHER_LOCK: Final = pytest.mark.parametrize("call", ["lockf", "flock"])


def count_up(path: Path, call: str) -> None:
    """Increment the number in a file under a lock, in a process of its own."""
    command = [sys.executable, "-c", _COUNT_UP, str(path), call, str(INCREMENTS)]
    assert subprocess.run(command, check=False, timeout=120).returncode == 0


@EITHER_LOCK
def test_a_lock_of_one_mount_holds_on_the_other(pair: Pair, call: str) -> None:
    lock: Callable[[int, int], None] = getattr(fcntl, call)
    (pair.first / "locked").write_bytes(b"x")
    for _, one, other in pair.turns(10):
        with opened(one / "locked", os.O_RDWR) as mine:
            lock(mine, fcntl.LOCK_EX)
            with opened(other / "locked", os.O_RDWR) as theirs:
                with pytest.raises(BlockingIOError):
                    lock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with pytest.raises(BlockingIOError):
                    lock(theirs, fcntl.LOCK_SH | fcntl.LOCK_NB)
                lock(mine, fcntl.LOCK_SH)
                lock(theirs, fcntl.LOCK_SH)
                lock(mine, fcntl.LOCK_UN)
                lock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)


@EITHER_LOCK
def test_a_lock_goes_with_its_file(pair: Pair, call: str) -> None:
    lock: Callable[[int, int], None] = getattr(fcntl, call)
    (pair.first / "closed").write_bytes(b"x")
    for _, one, other in pair.turns(20):
        with opened(one / "closed", os.O_RDWR) as mine:
            lock(mine, fcntl.LOCK_EX)
        with opened(other / "closed", os.O_RDWR) as theirs:
            # The release of a BSD lock is sent without waiting for it.
            lock(theirs, fcntl.LOCK_EX if call == "flock" else fcntl.LOCK_EX | fcntl.LOCK_NB)


@EITHER_LOCK
def test_nobody_counts_twice_under_a_lock(pair: Pair, call: str) -> None:
    name = f"counter-{call}"
    (pair.first / name).write_bytes(b"%020d" % 0)
    at_once(*(partial(count_up, mount / name, call) for mount in (pair.first, pair.second) * 2))
    assert int((pair.first / name).read_bytes()) == 4 * INCREMENTS
    assert int((pair.second / name).read_bytes()) == 4 * INCREMENTS


def test_pages_that_were_read_before_are_not_those_under_the_lock(pair: Pair) -> None:
    size = 4 * PIECE
    (pair.first / "pages").write_bytes(bytes(size))
    with (
        opened(pair.first / "pages", os.O_RDWR) as first,
        opened(pair.second / "pages", os.O_RDWR) as second,
        mmap.mmap(first, size) as first_map,
        mmap.mmap(second, size) as second_map,
    ):
        ends = ((first, second, second_map), (second, first, first_map))
        for number in range(40):
            writer, reader, mapping = ends[number % 2]
            byte = number % 255 + 1
            assert len(os.pread(reader, size, 0)) == size  # the pages are there
            fcntl.flock(writer, fcntl.LOCK_EX)
            assert os.pwrite(writer, bytes([byte]) * size, 0) == size
            fcntl.flock(writer, fcntl.LOCK_UN)
            fcntl.flock(reader, fcntl.LOCK_SH)
            assert os.pread(reader, size, 0) == bytes([byte]) * size
            assert mapping[:] == bytes([byte]) * size
            fcntl.flock(reader, fcntl.LOCK_UN)


def test_ranges_are_locked_apart(pair: Pair) -> None:
    (pair.first / "ranges").write_bytes(bytes(100))
    with (
        opened(pair.first / "ranges", os.O_RDWR) as mine,
        opened(pair.second / "ranges", os.O_RDWR) as theirs,
    ):
        fcntl.lockf(mine, fcntl.LOCK_EX, 10, 0)
        # One process has one owner per mount: its two descriptors here are two owners.
        fcntl.lockf(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)
        with pytest.raises(BlockingIOError):
            fcntl.lockf(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 9)
        fcntl.lockf(mine, fcntl.LOCK_UN, 1, 9)
        fcntl.lockf(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 9)


def test_a_signal_ends_the_wait_for_a_lock_of_another_mount(pair: Pair) -> None:
    (pair.first / "waited").write_bytes(b"x")
    with opened(pair.first / "waited", os.O_RDWR) as mine:
        fcntl.lockf(mine, fcntl.LOCK_EX)
        script = (
            "import errno, fcntl, os, signal, sys\n"
            "class Signalled(Exception): pass\n"
            "def handle(*_): raise Signalled\n"
            "signal.signal(signal.SIGALRM, handle)\n"
            "file = os.open(sys.argv[1], os.O_RDWR)\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.3)\n"
            "try:\n"
            "    fcntl.lockf(file, fcntl.LOCK_EX)\n"
            "except Signalled:\n"
            f"    sys.exit({errno.EINTR})\n"
        )
        command = [sys.executable, "-c", script, str(pair.second / "waited")]
        done = subprocess.run(command, check=False, timeout=60)
        assert done.returncode == errno.EINTR
