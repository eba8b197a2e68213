"""What is measured: two mounts on one server, each in a process of its own, and tmpfs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import peers
from bench.peers import FusePeer, mounted


class Mounts(NamedTuple):
    """Three directories: of the mount that changes, of the one that looks, and of the baseline."""

    writer: Path
    reader: Path
    tmpfs: Path


@contextmanager
def mounts_of_one_volume(scratch: Path, level: str) -> Iterator[Mounts]:
    """Mount a new volume twice over QUIC, the reader with a level of coherence, and a tmpfs."""
    with mounted(peers.aspenfs_served, scratch) as writer:

        def reader_of(place: Path) -> FusePeer:
            ticket = writer.scratch / "data" / "admin.ticket"
            command = [sys.executable, "-m", "aspenfs", "mount", "--foreground"]
            options = () if level == "default" else ("--coherence", level)
            return FusePeer(place, [*command, "--ticket", ticket, *options])

        with mounted(reader_of, scratch) as reader, mounted(peers.Tmpfs, scratch) as tmpfs:
            yield Mounts(writer.directory, reader.directory, tmpfs.directory)
