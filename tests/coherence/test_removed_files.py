"""Files that one mount removes or replaces while a program has them open on the other one."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.coherence.files import content_of, replace
from tests.coherence.pairs import Pair, opened
from tests.mount.mounts import eventually, succeed

pytestmark = pytest.mark.mount

LARGE_BYTES: Final = 12 * 1024 * 1024  # more than is read ahead


def inodes_used(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_files - found.f_ffree


def require_left(pair: Pair, count: int) -> None:
    """Wait until so many inodes are left, and the volume is sound."""
    eventually(lambda: inodes_used(pair.first) == count, "what is closed is removed")
    succeed("fsck", pair.store_option)


def remove_and_linger(path: Path) -> None:
    """Remove a file, and wait until the mount has removed what nobody held."""
    alone = path.with_name("alone")
    alone.touch()
    used = inodes_used(path.parent)
    path.unlink()
    alone.unlink()  # its time is up after that of the other
    eventually(lambda: inodes_used(path.parent) < used, "what nobody has open is removed")


@pytest.mark.parametrize("size", [100, LARGE_BYTES])
def test_it_can_be_read_and_written_until_the_last_close(pair: Pair, size: int) -> None:
    used = inodes_used(pair.first)
    content = content_of(1, size)
    (pair.first / "file").write_bytes(content)
    with opened(pair.second / "file", os.O_RDWR) as file:
        remove_and_linger(pair.first / "file")
        assert not (pair.second / "file").exists()
        assert os.fstat(file).st_nlink == 0
        assert os.pread(file, size, 0) == content
        os.pwrite(file, b"written", 10)
        os.fsync(file)
        assert os.pread(file, size, 0) == content[:10] + b"written" + content[17:]
    require_left(pair, used)


def test_it_can_be_read_through_a_mapping(pair: Pair) -> None:
    used = inodes_used(pair.first)
    content = content_of(2, LARGE_BYTES)
    (pair.first / "file").write_bytes(content)
    with opened(pair.second / "file", os.O_RDONLY) as file:
        mapping = mmap.mmap(file, 0, prot=mmap.PROT_READ)
    with mapping:
        remove_and_linger(pair.first / "file")
        assert mapping[:] == content
    require_left(pair, used)


def test_a_program_that_is_replaced_runs_on(pair: Pair) -> None:
    used = inodes_used(pair.first)
    program = Path(shutil.copy(shutil.which("cat") or "", pair.first / "program"))
    with subprocess.Popen(
        [pair.second / "program"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        replace(program, b"#!/bin/false\n")
        remove_and_linger(program)
        output, _ = running.communicate(b"still here", timeout=60)
    assert (output, running.returncode) == (b"still here", 0)
    require_left(pair, used)


def test_it_is_kept_by_either_of_both(pair: Pair) -> None:
    used = inodes_used(pair.first)
    (pair.first / "file").write_bytes(b"content")
    with opened(pair.second / "file", os.O_RDONLY) as theirs:
        with opened(pair.first / "file", os.O_RDONLY):
            remove_and_linger(pair.first / "file")
        assert os.pread(theirs, 100, 0) == b"content"
    require_left(pair, used)
    (pair.first / "file").write_bytes(b"content")
    with opened(pair.first / "file", os.O_RDONLY) as ours:
        with opened(pair.second / "file", os.O_RDONLY):
            (pair.first / "file").unlink()
        assert os.pread(ours, 100, 0) == b"content"
    require_left(pair, used)


def test_a_tree_of_many_files_is_removed(pair: Pair) -> None:
    used = inodes_used(pair.first)
    for number in range(500):
        (pair.first / f"{number}").write_bytes(content_of(number, 100))
    with opened(pair.second / "77", os.O_RDONLY) as file:
        for number in range(500):
            (pair.first / f"{number}").unlink()
        require_left(pair, used + 1)
        assert os.pread(file, 1000, 0) == content_of(77, 100)
    require_left(pair, used)
