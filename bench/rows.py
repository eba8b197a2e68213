"""What is measured, in which unit, and what aspenfs is to reach against each peer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Row(NamedTuple):
    """One line of the table. ``goals``: least ratio of aspenfs to a peer, by the peer's name."""

    title: str
    unit: str
    goals: Mapping[str, float]


_JUICEFS: Final = {"juicefs": 1.0}
_METADATA: Final = {"passthrough": 1.5, **_JUICEFS}

ROWS: Final[Mapping[str, Row]] = {
    "create": Row("create, write and close 4 KiB", "files/s", _METADATA),
    "stat_cold": Row("stat, cold", "files/s", _METADATA),
    "stat_warm": Row("stat, warm", "files/s", _METADATA),
    "read_small_cold": Row("open, read and close 4 KiB, cold", "files/s", _METADATA),
    "list_cold": Row("ls -l, cold", "files/s", _METADATA),
    "rename": Row("rename", "files/s", _METADATA),
    "unlink": Row("unlink", "files/s", _METADATA),
    "write": Row("sequential write and fsync", "MiB/s", {"passthrough": 0.4, **_JUICEFS}),
    "read_cold": Row("sequential read, cold", "MiB/s", {"passthrough": 0.8, **_JUICEFS}),
    "read_warm": Row("sequential read, warm", "MiB/s", _JUICEFS),
    "random_read": Row("random 4 KiB reads, cold", "reads/s", _JUICEFS),
    "random_write": Row("random 4 KiB writes and fsync", "writes/s", _JUICEFS),
    "untar": Row("untar a source tree", "files/s", _JUICEFS),
    "git_status_cold": Row("git status, cold", "runs/s", _JUICEFS),
    "git_status_warm": Row("git status, warm", "runs/s", _JUICEFS),
}
