"""The workloads: each takes a mounted filesystem through some of the rows and yields their rates.

Files are opened by the bare system calls, so that the interpreter adds as little as it can.
"""

from __future__ import annotations

import os
import random
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from bench import limits, system
from bench.peers import Peer
from bench.system import BenchError

_MIB: Final = 1024 * 1024
_SEED: Final = 20  # any: each peer sees the same offsets and bytes


class Sizes(NamedTuple):
    """How much work there is."""

    small_files: int = limits.SMALL_FILES
    large_file_mib: int = limits.LARGE_FILE_MIB
    random_ios: int = limits.RANDOM_IOS


class Rate(NamedTuple):
    """What one row measured, in the row's unit."""

    row: str
    rate: float


Workload = Callable[[Peer, Sizes], Iterator[Rate]]


class _Timer:
    """The seconds that a ``with`` block took."""

    elapsed_s = 0.0


@contextmanager
def _timer() -> Iterator[_Timer]:
    timer = _Timer()
    started = time.perf_counter()
    yield timer
    timer.elapsed_s = time.perf_counter() - started


def small_files(peer: Peer, sizes: Sizes) -> Iterator[Rate]:
    """Create, look at, read, list, rename and remove many small files of one directory."""
    directory = peer.directory / "small"
    directory.mkdir()
    names = [str(directory / f"file-{number:06}") for number in range(sizes.small_files)]
    new_names = [f"{name}.renamed" for name in names]
    content = random.Random(_SEED).randbytes(limits.SMALL_FILE_BYTES)

    with _timer() as timer:
        for name in names:
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(descriptor, content)
            os.close(descriptor)
    yield Rate("create", len(names) / timer.elapsed_s)

    peer.make_cold()
    for row in ("stat_cold", "stat_warm"):
        with _timer() as timer:
            for name in names:
                os.stat(name)  # noqa: PTH116 - Path.stat costs more than the call it makes
        yield Rate(row, len(names) / timer.elapsed_s)

    peer.make_cold()
    with _timer() as timer:
        for name in names:
            descriptor = os.open(name, os.O_RDONLY)
            if len(os.read(descriptor, limits.SMALL_FILE_BYTES)) != limits.SMALL_FILE_BYTES:
                raise BenchError(f"{name} was read short")
            os.close(descriptor)
    yield Rate("read_small_cold", len(names) / timer.elapsed_s)

    peer.make_cold()
    with _timer() as timer, os.scandir(directory) as entries:
        count = sum(entry.stat().st_size == limits.SMALL_FILE_BYTES for entry in entries)
    if count != len(names):
        raise BenchError(f"{directory} lists {count} good files of {len(names)}")
    yield Rate("list_cold", count / timer.elapsed_s)

    with _timer() as timer:
        for name, new_name in zip(names, new_names, strict=True):
            os.rename(name, new_name)  # noqa: PTH104 - as above
    yield Rate("rename", len(names) / timer.elapsed_s)

    with _timer() as timer:
        for name in new_names:
            os.unlink(name)  # noqa: PTH108 - as above
    yield Rate("unlink", len(names) / timer.elapsed_s)


def large_file(peer: Peer, sizes: Sizes) -> Iterator[Rate]:
    """Write and read one large file, from end to end and at random."""
    path = peer.directory / "large"
    dice = random.Random(_SEED)
    pool = dice.randbytes(2 * limits.LARGE_IO_BYTES)

    with _timer() as timer:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        for _ in range(sizes.large_file_mib * _MIB // limits.LARGE_IO_BYTES):
            start = dice.randrange(limits.LARGE_IO_BYTES)
            _write_all(descriptor, memoryview(pool)[start : start + limits.LARGE_IO_BYTES])
        os.fsync(descriptor)
        os.close(descriptor)
    yield Rate("write", sizes.large_file_mib / timer.elapsed_s)

    peer.make_cold()
    for row in ("read_cold", "read_warm"):
        with _timer() as timer:
            count = _read_to_end(path)
        if count != sizes.large_file_mib * _MIB:
            raise BenchError(f"{path} was read short: {count} bytes")
        yield Rate(row, sizes.large_file_mib / timer.elapsed_s)

    pages = sizes.large_file_mib * _MIB // limits.RANDOM_IO_BYTES
    offsets = [dice.randrange(pages) * limits.RANDOM_IO_BYTES for _ in range(sizes.random_ios)]
    peer.make_cold()
    with _timer() as timer:
        descriptor = os.open(path, os.O_RDONLY)
        for offset in offsets:
            os.pread(descriptor, limits.RANDOM_IO_BYTES, offset)
        os.close(descriptor)
    yield Rate("random_read", len(offsets) / timer.elapsed_s)

    dice.shuffle(offsets)
    with _timer() as timer:
        descriptor = os.open(path, os.O_WRONLY)
        for offset in offsets:
            os.pwrite(descriptor, pool[: limits.RANDOM_IO_BYTES], offset)
        os.fsync(descriptor)
        os.close(descriptor)
    yield Rate("random_write", len(offsets) / timer.elapsed_s)


def source_tree(peer: Peer, _sizes: Sizes) -> Iterator[Rate]:
    """Unpack the Python standard library, and ask git what changed in it."""
    archive = peer.scratch / "tree.tar"
    count = _pack_standard_library(archive)
    tree = peer.directory / "tree"
    tree.mkdir()

    with _timer() as timer:
        system.run(["tar", "--extract", "--file", archive, "--directory", tree])
    yield Rate("untar", count / timer.elapsed_s)

    # Neither the user's settings nor git's own house-keeping are to be measured.
    env = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    settings = [
        "gc.auto=0",
        "maintenance.auto=false",
        "user.name=bench",
        "user.email=bench@invalid",
    ]
    git = ["git", "-C", str(tree), *(part for setting in settings for part in ("-c", setting))]
    system.run([*git, "init", "--quiet"], env=env)
    system.run([*git, "add", "--all"], env=env)
    system.run([*git, "commit", "--quiet", "--message", "all"], env=env)

    peer.make_cold()
    for row in ("git_status_cold", "git_status_warm"):
        with _timer() as timer:
            changed = system.run([*git, "status", "--porcelain"], env=env)
        if changed:
            raise BenchError(f"git sees changes where there are none: {changed.splitlines()[0]}")
        yield Rate(row, 1 / timer.elapsed_s)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _read_to_end(path: Path) -> int:
    """Return how many bytes were read."""
    count = 0
    descriptor = os.open(path, os.O_RDONLY)
    while data := os.read(descriptor, limits.LARGE_IO_BYTES):
        count += len(data)
    os.close(descriptor)
    return count


def _pack_standard_library(archive: Path) -> int:
    """Write the sources of the running Python to a tar file; return how many files there are."""
    root = Path(os.__file__).parent
    skipped = {"__pycache__", "site-packages", "dist-packages"}
    sources = sorted(
        path
        for path in root.rglob("*.py")
        if not skipped.intersection(path.relative_to(root).parts)
    )[: limits.TREE_FILES_MAX]
    with tarfile.open(archive, "w") as tar:
        for path in sources:
            tar.add(path, path.relative_to(root))
    return len(sources)


WORKLOADS: Final[dict[str, Workload]] = {
    "small": small_files,
    "large": large_file,
    "tree": source_tree,
}
