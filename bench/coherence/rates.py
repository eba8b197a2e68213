"""How fast what has not changed is served while it could change: beside tmpfs, in turn with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from bench.coherence import limits

_MIB: Final = 1024 * 1024


class Hot(NamedTuple):
    """One line of the table.

    Attributes:
        title: what the table calls it.
        unit: of the rate.
        prepare: makes what is looked at, in the directory of the mount that writes.
        work: does one pass in the directory where it is looked at; returns how many units it did.
    """

    title: str
    unit: str
    prepare: Callable[[Path], None]
    work: Callable[[Path], float]


def rate(hot: Hot, directory: Path, seconds: float) -> float:
    """Repeat the work for a while, after a first pass that warms the caches."""
    hot.work(directory)
    done = 0.0
    began_s = time.perf_counter()
    until_s = began_s + seconds
    while time.perf_counter() < until_s:
        done += hot.work(directory)
    return done / (time.perf_counter() - began_s)


def _make_files(directory: Path) -> None:
    for number in range(limits.HOT_FILES):
        (directory / f"hot{number}").touch()


def _stat_all(directory: Path) -> float:
    for number in range(limits.HOT_FILES):
        os.stat(f"{directory}/hot{number}")  # noqa: PTH116 - Path.stat costs more than the call
    return limits.HOT_FILES


def _make_large(directory: Path) -> None:
    block = os.urandom(_MIB)
    with (directory / "large").open("wb") as file:
        for _ in range(limits.HOT_FILE_MIB):
            file.write(block)


def _read_large(directory: Path) -> float:
    buffer = bytearray(_MIB)
    with (directory / "large").open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return limits.HOT_FILE_MIB


HOT: Final[Mapping[str, Hot]] = {
    "stat": Hot("stat of files in a row", "stats/s", _make_files, _stat_all),
    "read": Hot(f"read {limits.HOT_FILE_MIB} MiB again", "MiB/s", _make_large, _read_large),
}
