"""A program that works on a mount whose server comes and goes, and says what it has achieved.

Run as ``server_storm.py MOUNTPOINT WRITER``. Each line on standard output is a promise that the
mount has made: ``file N`` is on stable storage, ``line N`` is in the common log once, ``count``
raised the common counter by one. It works until its standard input ends, and no call may fail.
"""

from __future__ import annotations

import itertools
import os
import random
import select
import sys
from contextlib import suppress
from pathlib import Path

FILE_BYTES_MAX = 300_000
LOG_NAME = "log"
COUNTER_NAME = "counter"
_LOCK_NAME = "counter.lock"
_LOCK_RETRY_S = 0.01
_BYTES = random.Random(7).randbytes(2 * FILE_BYTES_MAX)


def content(writer: int, number: int) -> bytes:
    """Return what a file holds: in its inode, in one chunk or in several, and no two alike."""
    dice = random.Random(writer * 1_000_003 + number)
    size = dice.choice((10, 4_096, 4_097, 65_536, dice.randrange(FILE_BYTES_MAX)))
    start = dice.randrange(FILE_BYTES_MAX)
    return _BYTES[start : start + size]


def path_of(mountpoint: Path, writer: int, number: int) -> Path:
    """Return where a file is."""
    return mountpoint / f"writer{writer}" / f"{number}"


def line_of(writer: int, number: int) -> str:
    """Return what a writer appends to the common log."""
    return f"writer {writer} line {number}\n"


class Storm:
    """One writer."""

    def __init__(self, mountpoint: Path, writer: int) -> None:
        self._mountpoint = mountpoint
        self._writer = writer

    def run(self) -> None:
        """Work until told to stop, which is obeyed between two promises."""
        path_of(self._mountpoint, self._writer, 0).parent.mkdir(exist_ok=True)
        log = os.open(self._mountpoint / LOG_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for number in itertools.count():
            if _is_told_to_stop():
                break
            self._write(number)
            self._promise(f"file {number}")
            os.write(log, line_of(self._writer, number).encode())
            os.fsync(log)
            self._promise(f"line {number}")
            self._count()
            self._promise("count")
        os.close(log)

    def _write(self, number: int) -> None:
        """Write a file in pieces, sync it, and let every other one have its name last."""
        path = path_of(self._mountpoint, self._writer, number)
        data = content(self._writer, number)
        written = path.with_suffix(".new") if number % 2 else path
        fd = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        for start in range(0, len(data), 50_000):
            os.pwrite(fd, data[start : start + 50_000], start)
        os.fsync(fd)
        os.close(fd)
        if written != path:
            written.rename(path)

    def _count(self) -> None:
        """Raise the counter, with no lock but that a file is made by one of all who try."""
        lock, counter = self._mountpoint / _LOCK_NAME, self._mountpoint / COUNTER_NAME
        while True:
            with suppress(FileExistsError):
                os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
                break
            select.select((), (), (), _LOCK_RETRY_S)  # nothing announces that a file has gone
        counter.write_text(f"{int(counter.read_text()) + 1}\n")
        lock.unlink()

    @staticmethod
    def _promise(what: str) -> None:
        sys.stdout.write(f"{what}\n")
        sys.stdout.flush()


def _is_told_to_stop() -> bool:
    readable, _, _ = select.select([sys.stdin], (), (), 0)
    return bool(readable)


if __name__ == "__main__":
    Storm(Path(sys.argv[1]), int(sys.argv[2])).run()
