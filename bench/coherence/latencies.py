"""How long one mount takes to show what the other did; each yields seconds, once a round."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from bench.coherence import limits
from bench.coherence.mounts import Mounts
from bench.system import BenchError

_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_LINE: Final = b"a line of a log, as long as many are: forty-eight\n"


class Latency(NamedTuple):
    """One line of the table.

    Attributes:
        title: what the table calls it.
        measure: does it so many times, and yields how long each took.
        median_ms_max: what the median is to stay below; None: no goal.
        ms_max: what each is to stay below.
    """

    title: str
    measure: Callable[[Mounts, int], Iterator[float]]
    median_ms_max: float | None = None
    ms_max: float | None = None


def _stat_after_close(mounts: Mounts, rounds: int) -> Iterator[float]:
    """From the return of close on one mount until stat on the other shows the new size."""
    written, seen = mounts.writer / "seen", mounts.reader / "seen"
    pause = threading.Event()
    written.touch()
    for number in range(1, rounds + 1):
        seen.stat()  # now that kernel knows the file, and must be told
        written.write_bytes(bytes(number))
        began_s = time.perf_counter()
        while seen.stat().st_size != number:
            if time.perf_counter() - began_s > limits.SEEN_TIMEOUT_S:
                raise BenchError(f"{seen} does not show what was written to {written}")
            pause.wait(limits.POLL_S)
        yield time.perf_counter() - began_s


def _line_of_tail(mounts: Mounts, rounds: int) -> Iterator[float]:
    """From a write to a log that stays open, unsynced, until ``tail -f`` elsewhere prints it."""
    log = mounts.writer / "log"
    log.touch()
    interval = str(limits.TAIL_INTERVAL_S)
    command = ["tail", "-f", "-s", interval, "-n", "+1", str(mounts.reader / "log")]
    file = os.open(log, _APPEND)
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as tail:
            assert tail.stdout is not None
            try:
                for _ in range(rounds):
                    began_s = time.perf_counter()
                    os.write(file, _LINE)
                    tail.stdout.readline()
                    yield time.perf_counter() - began_s
            finally:
                tail.kill()
    finally:
        os.close(file)


def _append_in_turns(mounts: Mounts, rounds: int) -> Iterator[float]:
    """One append and its fsync, to a log to which the other mount has appended just before."""
    files = [os.open(each / "turns", _APPEND) for each in (mounts.writer, mounts.reader)]
    try:
        for number in range(rounds):
            began_s = time.perf_counter()
            os.write(files[number % 2], _LINE)
            os.fsync(files[number % 2])
            yield time.perf_counter() - began_s
    finally:
        for file in files:
            os.close(file)


def _append_alone(mounts: Mounts, rounds: int) -> Iterator[float]:
    """The same with nobody else at this log, for comparison."""
    file = os.open(mounts.writer / "alone", _APPEND)
    try:
        for _ in range(rounds):
            began_s = time.perf_counter()
            os.write(file, _LINE)
            os.fsync(file)
            yield time.perf_counter() - began_s
    finally:
        os.close(file)


def _open_unchanged(mounts: Mounts, rounds: int) -> Iterator[float]:
    """Open, read and close a small file that nobody changes."""
    content = bytes(limits.SMALL_FILE_BYTES)
    (mounts.writer / "unchanged").write_bytes(content)
    yield from _reads(mounts.reader / "unchanged", rounds, lambda _: content)


def _open_rewritten(mounts: Mounts, rounds: int) -> Iterator[float]:
    """Open, read and close a small file that was just rewritten elsewhere."""

    def rewrite(number: int) -> bytes:
        content = b"%04d" % number * (limits.SMALL_FILE_BYTES // 4)
        (mounts.writer / "rewritten").write_bytes(content)
        return content

    yield from _reads(mounts.reader / "rewritten", rounds, rewrite)


def _open_replaced(mounts: Mounts, rounds: int) -> Iterator[float]:
    """Open, read and close a small file that was just put in the place of another elsewhere."""

    def replace(number: int) -> bytes:
        content = b"%04d" % number * (limits.SMALL_FILE_BYTES // 4)
        new = mounts.writer / "new"
        new.write_bytes(content)
        new.rename(mounts.writer / "replaced")
        return content

    yield from _reads(mounts.reader / "replaced", rounds, replace)


def _reads(path: Path, rounds: int, prepare: Callable[[int], bytes]) -> Iterator[float]:
    """Time reads of a file, each after a preparation that returns what must be read."""
    for number in range(rounds):
        expected = prepare(number)
        began_s = time.perf_counter()
        file = os.open(path, os.O_RDONLY)
        found = os.read(file, 2 * limits.SMALL_FILE_BYTES)
        os.close(file)
        elapsed_s = time.perf_counter() - began_s
        if found != expected:
            raise BenchError(f"{path} was opened after a close, and did not show what was written")
        yield elapsed_s


LATENCIES: Final[Mapping[str, Latency]] = {
    "stat": Latency(
        "close there, until stat here shows it",
        _stat_after_close,
        limits.SEEN_MEDIAN_MS_MAX,
        limits.SEEN_MS_MAX,
    ),
    "tail": Latency(
        "write there, until tail -f prints it here", _line_of_tail, ms_max=limits.TAIL_MS_MAX
    ),
    "append_alone": Latency("append and fsync, nobody else", _append_alone),
    "append_turns": Latency("append and fsync, in turns with another mount", _append_in_turns),
    "open_unchanged": Latency("open, read, close: unchanged", _open_unchanged),
    "open_rewritten": Latency("open, read, close: rewritten there", _open_rewritten),
    "open_replaced": Latency("open, read, close: replaced there", _open_replaced),
}
