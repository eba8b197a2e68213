"""How much memory the mount process holds after it has written a file larger than any buffer."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import NamedTuple

from bench import limits
from bench.peers import FusePeer


class Resident(NamedTuple):
    """Resident memory of a process in MiB: at the end, and the most there ever was."""

    now_mib: float
    peak_mib: float


def resident_after_writing(peer: FusePeer) -> Resident:
    """Write RESIDENT_FILE_MIB to a mounted filesystem and look at its process."""
    block = random.Random(0).randbytes(limits.LARGE_IO_BYTES)
    descriptor = os.open(peer.directory / "big", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for _ in range(limits.RESIDENT_FILE_MIB * 1024 * 1024 // limits.LARGE_IO_BYTES):
            os.write(descriptor, block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fields = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{peer.pid}/status").read_text(encoding="ascii").splitlines()
    )
    return Resident(_mib(fields["VmRSS"]), _mib(fields["VmHWM"]))


def _mib(field: str) -> float:
    """Convert a field of /proc/PID/status such as ``  1024 kB``."""
    return int(field.split(maxsplit=1)[0]) / 1024
