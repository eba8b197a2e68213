"""A program that writes as fast as it can, and says on standard output what must not be lost.

Run as ``storm.py DIRECTORY WRITER``. A line ``N`` says that file number N of this writer is on
stable storage. It ends when the filesystem does.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import sys
from pathlib import Path

FILE_BYTES_MAX = 200_000
NAMELESS_MAX = 3
GONE = frozenset((errno.ENOTCONN, errno.ECONNABORTED, errno.EIO))
BYTES = random.Random(3).randbytes(2 * FILE_BYTES_MAX)


def content(writer: int, number: int) -> bytes:
    """Return what a file holds: small ones, big ones, and no two alike."""
    dice = random.Random(writer * 1_000_003 + number)
    size = dice.choice((0, 10, 4_096, 4_097, 65_536, dice.randrange(FILE_BYTES_MAX)))
    start = dice.randrange(FILE_BYTES_MAX)
    return BYTES[start : start + size]


def path_of(directory: Path, writer: int, number: int) -> Path:
    """Return where a file is."""
    return directory / f"writer{writer}" / f"{number % 7}" / f"{number}"


class Storm:
    """One writer."""

    def __init__(self, directory: Path, writer: int) -> None:
        self._directory = directory
        self._writer = writer
        self._nameless: list[int] = []

    def run(self) -> None:
        """Write until the filesystem is gone."""
        for number in itertools.count():
            path = path_of(self._directory, self._writer, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._litter(path.with_suffix(".litter"), number)
            self._write(path, number)
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()

    def _write(self, path: Path, number: int) -> None:
        """Write a file in pieces, in any order, and sync it; every other one is named last."""
        data = content(self._writer, number)
        dice = random.Random(number)
        pieces = list(range(0, len(data), 30_000))
        dice.shuffle(pieces)
        target = path.with_suffix(".new") if number % 2 else path
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        for start in pieces:
            os.pwrite(fd, data[start : start + 30_000], start)
        os.fsync(fd)
        os.close(fd)
        if target != path:
            target.rename(path)

    def _litter(self, path: Path, number: int) -> None:
        """Leave behind what a crash may lose, and what it must not leave behind."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.write(fd, BYTES[: 1000 * (number % 100)])
        if number % 3 == 0:
            os.close(fd)
            return
        path.unlink()
        os.write(fd, b"a file without a name")
        self._nameless.append(fd)
        if len(self._nameless) > NAMELESS_MAX:
            os.close(self._nameless.pop(0))


if __name__ == "__main__":
    try:
        Storm(Path(sys.argv[1]), int(sys.argv[2])).run()
    except OSError as error:
        if error.errno not in GONE:
            raise
    os._exit(0)  # closing what is open would only fail
