"""The lines of ``aspenfs watch``."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Final

from aspenfs.change_feed import EventKind, FeedEvent
from aspenfs.cli.feed_lines import Mark, json_line, readable_line

TOP: Final = Path("/mnt/aspen")
DIRECTORY: Final = stat.S_IFDIR >> 12
REGULAR: Final = stat.S_IFREG >> 12


def test_for_people() -> None:
    lines = [
        readable_line(TOP, event)
        for event in (
            FeedEvent(1, EventKind.CREATED, b"d", DIRECTORY),
            FeedEvent(2, EventKind.WRITTEN, b"d/a\xff\n", REGULAR),
            FeedEvent(3, EventKind.RENAMED, b"e", DIRECTORY, b"d"),
            FeedEvent(4, EventKind.EXCHANGED, b"e/g", REGULAR, b"f"),
            FeedEvent(5, EventKind.CHANGED, b"", DIRECTORY),
        )
    ]
    assert lines == [
        b"created    /mnt/aspen/d/\n",
        b"written    /mnt/aspen/d/a\\xff\\x0a\n",
        b"renamed    /mnt/aspen/d/ -> /mnt/aspen/e/\n",
        b"exchanged  /mnt/aspen/f <-> /mnt/aspen/e/g\n",
        b"changed    /mnt/aspen/\n",
    ]
    assert readable_line(TOP, Mark("gap", 9)) is None


def test_for_programs() -> None:
    line = json_line(TOP, FeedEvent(7, EventKind.RENAMED, b"\xc3\xa4\n", REGULAR, b"b\xff"))
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "revision": 7,
        "event": "renamed",
        "path": "/mnt/aspen/ä\n",
        "old_path": "/mnt/aspen/b\ufffd",
        "old_path_base64": base64.b64encode(b"/mnt/aspen/b\xff").decode(),
        "type": "file",
    }
    assert json.loads(json_line(TOP, Mark("ready", 3))) == {
        "revision": 3,
        "event": "ready",
        "path": "/mnt/aspen",
    }
    assert json.loads(json_line(TOP, FeedEvent(8, EventKind.REMOVED, b"x", 0)))["type"] == "unknown"
