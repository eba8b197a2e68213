"""Large directories, sparse files, and names that only bytes can express, on a real mount."""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from aspenfs.limits import CHUNK_BYTES, NAME_BYTES_MAX, SYMLINK_BYTES_MAX
from tests.mount.carriers import OVER_EVERY_WAY, over_every_way
from tests.mount.mounts import Mount, run_aspenfs, succeed

pytestmark = pytest.mark.mount

RESIDENT_MIB_MAX: Final = 300
TIB: Final = 2**40
BLOCK_BYTES: Final = 512  # the unit of st_blocks, stat(2)


def info(path: Path) -> Any:
    """Return what ``aspenfs info`` knows of a path."""
    done = run_aspenfs("info", "--json", path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def resident_mib(mount: Mount) -> float:
    """Return the memory that the serving process has in use."""
    pages = int(Path(f"/proc/{mount.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@over_every_way("entries", 5_000, lossy=500, slow=100_000)
def test_a_large_directory_is_listed_moved_and_removed(mounted: Mount, entries: int) -> None:
    directory = mounted.mountpoint / "directory"
    directory.mkdir()
    names = {f"entry {number:06}" for number in range(entries)}
    for name in names:
        os.mknod(directory / name)
    assert sorted(os.listdir(directory)) == sorted(names)  # as few objects as can be
    mounted.remount()
    with os.scandir(directory) as listing:
        found = [entry.name for entry in listing if entry.is_file(follow_symlinks=False)]
    assert len(found) == entries
    assert set(found) == names

    before = mounted.status()["store"]["revision"]
    directory = directory.rename(mounted.mountpoint / "moved")
    assert mounted.status()["store"]["revision"] == before + 1
    assert len(os.listdir(directory)) == entries
    assert resident_mib(mounted) < RESIDENT_MIB_MAX

    with os.scandir(directory) as listing:  # removed while it is listed
        for entry in listing:
            os.unlink(entry)
    directory.rmdir()
    assert list(mounted.mountpoint.iterdir()) == []
    mounted.end()
    succeed("fsck", "--data", mounted.data_dir)


@OVER_EVERY_WAY
def test_a_sparse_file_costs_what_was_written(mounted: Mount) -> None:
    path = mounted.mountpoint / "sparse"
    with path.open("wb") as file:
        file.write(b"start")
        file.seek(TIB - 3)
        file.write(b"end")
    for _ in range(2):
        assert path.stat().st_size == TIB
        assert path.stat().st_blocks * BLOCK_BYTES <= 2 * CHUNK_BYTES
        with path.open("rb") as file:
            assert file.read(6) == b"start\0"
            file.seek(TIB // 2)
            assert file.read(10) == bytes(10)
            file.seek(TIB - 4)
            assert file.read(10) == b"\0end"
        assert info(path)["chunk_count"] == 2
        mounted.remount()
    os.truncate(path, TIB // 2)
    assert info(path)["chunk_count"] == 1
    os.truncate(path, 10 * TIB)
    assert path.stat().st_blocks * BLOCK_BYTES <= 2 * CHUNK_BYTES
    path.unlink()
    mounted.end()
    succeed("fsck", "--data", mounted.data_dir)


LARGE_BYTES: Final = 48 * 2**20
WRITE_BYTES_MAX: Final = 2**20


@OVER_EVERY_WAY
def test_a_large_file_written_at_random_is_read_back(mounted: Mount, tmp_path: Path) -> None:
    """Write several times what the mount may hold back, and more than one commit takes at once."""
    dice = random.Random(5)
    data = dice.randbytes(2 * WRITE_BYTES_MAX)
    paths = (mounted.mountpoint / "large", tmp_path / "expected")
    files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o644) for path in paths]
    try:
        for number in range(200):
            length = dice.choice((1, 511, 4_096, 131_072, dice.randrange(WRITE_BYTES_MAX)))
            start = dice.randrange(WRITE_BYTES_MAX)
            offset = dice.randrange(LARGE_BYTES)
            for file in files:
                os.pwrite(file, data[start : start + length], offset)
            if number % 50 == 49:
                size = dice.randrange(LARGE_BYTES)
                for file in files:
                    os.ftruncate(file, size)
                    os.fsync(file)
    finally:
        for file in files:
            os.close(file)
    for _ in range(2):
        assert filecmp.cmp(*paths, shallow=False)
        mounted.remount()
    mounted.end()
    succeed("fsck", "--data", mounted.data_dir)


NAMES: Final = (
    b"n" * NAME_BYTES_MAX,
    "ñ".encode() * 127,
    b"\xff\xfe\x80",
    bytes(byte for byte in range(1, 256) if byte != ord("/"))[:NAME_BYTES_MAX],
    b" ",
    b"new\nline",
    b"foo",
    b"foo.meta",
    b"foo.chunk.000000",
    b"foo.symlink",
    b"...",
    b"-rf",
)


@OVER_EVERY_WAY
def test_every_name_is_kept_to_the_byte(mounted: Mount) -> None:
    root = os.fsencode(mounted.mountpoint)
    for number, name in enumerate(NAMES):
        with open(os.path.join(root, name), "wb") as file:  # bytes
            file.write(b"%d" % number * 5000)
    for _ in range(2):
        assert sorted(os.listdir(root)) == sorted(NAMES)
        for number, name in enumerate(NAMES):
            with open(os.path.join(root, name), "rb") as file:
                assert file.read() == b"%d" % number * 5000
        mounted.remount()
    with pytest.raises(OSError, match="too long"):
        os.mkdir(os.path.join(root, b"n" * (NAME_BYTES_MAX + 1)))
    os.unlink(os.path.join(root, b"foo"))
    assert sorted(os.listdir(root)) == sorted(set(NAMES) - {b"foo"})


@OVER_EVERY_WAY
def test_the_longest_symlink_and_a_deep_path_work(mounted: Mount) -> None:
    target = ("x" * 254 + "/") * (SYMLINK_BYTES_MAX // 255) + "y" * (SYMLINK_BYTES_MAX % 255)
    assert len(target) == SYMLINK_BYTES_MAX
    link = mounted.mountpoint / "link"
    link.symlink_to(target)
    depth = 200
    deep = mounted.mountpoint.joinpath(*["d"] * depth)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"down here")
    mounted.remount()
    assert os.readlink(link) == target  # as it was written, not as a path
    assert (deep / "file").read_bytes() == b"down here"
    assert (deep / ".." / "d" / "file").stat().st_ino == (deep / "file").stat().st_ino
    shutil.rmtree(mounted.mountpoint / "d")
    assert list(mounted.mountpoint.iterdir()) == [link]
