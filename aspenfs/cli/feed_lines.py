"""The lines that ``aspenfs watch`` prints: for people, and JSON for programs."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from aspenfs.change_feed import FeedEvent
from aspenfs.cli.output import displayed

_TYPE_NAMES: Final = {
    stat.S_IFREG >> 12: "file",
    stat.S_IFDIR >> 12: "directory",
    stat.S_IFLNK >> 12: "symlink",
    stat.S_IFIFO >> 12: "fifo",
    stat.S_IFSOCK >> 12: "socket",
    stat.S_IFCHR >> 12: "character device",
    stat.S_IFBLK >> 12: "block device",
}
_EVENT_COLUMNS: Final = len("exchanged")


class Mark(NamedTuple):
    """A place in the feed: every change above ``revision`` is told from here on.

    ``name`` is "ready" in the beginning, and "gap" after changes may have been lost: look again.
    """

    name: str
    revision: int


Line = Callable[[Path, FeedEvent | Mark], bytes | None]
"""Takes the watched path as the user wrote it; returns a whole line, or None if there is none."""


def readable_line(top: Path, event: FeedEvent | Mark) -> bytes | None:
    """Return an event for the screen. Marks are none: they go to standard error."""
    if isinstance(event, Mark):
        return None
    slash = "/" if stat.S_IFMT(event.file_type << 12) == stat.S_IFDIR else ""
    path = displayed(os.fsdecode(_path(top, event.path))) + slash
    if event.old_path is not None:
        arrow = "<->" if event.kind == "exchanged" else "->"
        path = f"{displayed(os.fsdecode(_path(top, event.old_path)))}{slash} {arrow} {path}"
    return f"{event.kind:{_EVENT_COLUMNS}}  {path}\n".encode()


def json_line(top: Path, event: FeedEvent | Mark) -> bytes:
    """Return an event as a JSON object on one line, in ASCII; docs/operations.md has its fields."""
    if isinstance(event, Mark):
        fields = {"revision": event.revision, "event": event.name}
        fields |= _named("path", os.fsencode(top))
    else:
        fields = {"revision": event.revision, "event": event.kind.value}
        fields |= _named("path", _path(top, event.path))
        if event.old_path is not None:
            fields |= _named("old_path", _path(top, event.old_path))
        fields["type"] = _TYPE_NAMES.get(event.file_type, "unknown")
    return json.dumps(fields).encode("ascii") + b"\n"


def _named(field: str, path: bytes) -> dict[str, str]:
    """Return a path as text; where it is no UTF-8, also exactly."""
    try:
        return {field: path.decode("utf-8")}
    except UnicodeDecodeError:
        return {
            field: path.decode("utf-8", "replace"),
            f"{field}_base64": base64.b64encode(path).decode("ascii"),
        }


def _path(top: Path, path: bytes) -> bytes:
    return os.path.join(os.fsencode(top), path) if path else os.fsencode(top)  # noqa: PTH118 - bytes
