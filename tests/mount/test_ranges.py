"""Holes, allocations and copies on a real mount, by the programs that people use for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aspenfs.limits import CHUNK_BYTES
from tests.mount.carriers import OVER_EVERY_WAY
from tests.mount.mounts import Mount, succeed
from tests.mount.test_workloads import run

pytestmark = pytest.mark.mount

MEBIBYTE = 2**20
SIZE = 64 * MEBIBYTE


def sparse_file(path: Path) -> bytes:
    """Make a file of two chunks and holes around them; return what the chunks hold."""
    content = os.urandom(CHUNK_BYTES)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for at in (MEBIBYTE, SIZE // 2):
            file.seek(at)
            file.write(content)
    return content


def extents(path: Path) -> list[tuple[int, int]]:
    """Return where a file has data, by SEEK_DATA and SEEK_HOLE."""
    found: list[tuple[int, int]] = []
    fd = os.open(path, os.O_RDONLY)
    end = 0
    try:
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            found.append((start, end))
    except OSError:  # ENXIO: no more
        return found
    finally:
        os.close(fd)


DATA = [(at, at + CHUNK_BYTES) for at in (MEBIBYTE, SIZE // 2)]


@OVER_EVERY_WAY
def test_holes_survive_the_programs_that_copy_them(mounted: Mount) -> None:
    source = mounted.mountpoint / "source"
    sparse_file(source)
    assert extents(source) == DATA
    run("cp", "--sparse=auto", "source", "copied", cwd=mounted.mountpoint)
    run("tar", "-cSf", "archive.tar", "source", cwd=mounted.mountpoint)
    (mounted.mountpoint / "unpacked").mkdir()
    run("tar", "-xSf", "archive.tar", "-C", "unpacked", cwd=mounted.mountpoint)
    run("rsync", "-S", "source", "synced", cwd=mounted.mountpoint)
    for name in ("copied", "unpacked/source", "synced"):
        copy = mounted.mountpoint / name
        run("cmp", source, copy)
        assert extents(copy) == DATA
        assert copy.stat().st_blocks * 512 == 2 * CHUNK_BYTES
    assert (mounted.mountpoint / "archive.tar").stat().st_size < MEBIBYTE


@OVER_EVERY_WAY
def test_a_range_is_copied_within_the_store(mounted: Mount) -> None:
    content = os.urandom(5 * MEBIBYTE + 77)
    source, target = mounted.mountpoint / "source", mounted.mountpoint / "target"
    source.write_bytes(content)
    target.write_bytes(b"before" * MEBIBYTE)
    with source.open("rb") as reader, target.open("r+b") as writer:
        copied = 0
        while count := os.copy_file_range(reader.fileno(), writer.fileno(), len(content), copied):
            copied += count
        assert copied == len(content)
        writer.seek(0)
        assert writer.read(len(content)) == content
    assert target.read_bytes() == content + (b"before" * MEBIBYTE)[len(content) :]
    source.write_bytes(b"changed")
    assert target.read_bytes()[: len(content)] == content


@OVER_EVERY_WAY
def test_a_range_is_allocated_punched_and_zeroed(mounted: Mount) -> None:
    path = mounted.mountpoint / "file"
    content = bytearray(os.urandom(8 * CHUNK_BYTES))
    path.write_bytes(content)
    for option, start, length in (("-p", 100, 3 * CHUNK_BYTES), ("-z", 5 * CHUNK_BYTES, 100)):
        run("fallocate", option, "-o", str(start), "-l", str(length), path)
        content[start : start + length] = bytes(length)
        assert path.read_bytes() == content
    assert path.stat().st_blocks * 512 == 6 * CHUNK_BYTES
    run("fallocate", "-l", str(SIZE), path)
    assert path.stat().st_size == SIZE
    run("fallocate", "-d", path)  # finds what is all zeros, and punches it
    assert path.read_bytes() == content.ljust(SIZE, b"\x00")


def test_all_of_it_is_there_after_unmounting(mounted: Mount) -> None:
    source = mounted.mountpoint / "source"
    content = sparse_file(source)
    run("cp", source, mounted.mountpoint / "copied")
    source.unlink()
    mounted.end()
    succeed("fsck", "--data", mounted.data_dir)
    mounted.start()
    copied = mounted.mountpoint / "copied"
    assert extents(copied) == DATA
    with copied.open("rb") as file:
        for start, _ in DATA:
            file.seek(start)
            assert file.read(CHUNK_BYTES) == content
