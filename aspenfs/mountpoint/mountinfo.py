"""The kernel's mount table, read without touching any mount.

Format: proc_pid_mountinfo(5). A dead or hanging mount can be looked up here when a stat of it fails
or never returns.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from aspenfs.config import SUBTYPE, state_dir_of
from aspenfs.limits import SYMLINKS_MAX

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_FILESYSTEM_TYPE: Final = f"fuse.{SUBTYPE}"
_OCTAL_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
# Before the separator: ids, device, root, mountpoint, options and any number of optional fields.
_FIELDS_BEFORE_SEPARATOR_MIN: Final = 6
_FIELDS_AFTER_SEPARATOR_MIN: Final = 2
_SEPARATOR: Final = b"-"


class MountEntry(NamedTuple):
    """One line of the mount table. ``device`` is (major, minor), as in st_dev of what it holds."""

    mount_id: int
    device: tuple[int, int]
    mountpoint: Path
    filesystem_type: str
    source: str

    @property
    def is_aspenfs(self) -> bool:
        """Whether aspenfs mounted it."""
        return self.filesystem_type == _FILESYSTEM_TYPE

    @property
    def state_dir(self) -> Path | None:
        """The data or state directory of an aspenfs mount; None: it is another's, or silent."""
        return state_dir_of(self.source) if self.is_aspenfs else None


def parse_mountinfo(text: bytes) -> list[MountEntry]:
    """Parse a mount table, in its order: of two mounts on one path the later one is on top.

    Lines of another form are left out, as proc(5) asks of readers.
    """
    return [entry for line in text.splitlines() if (entry := _parse_line(line)) is not None]


def _parse_line(line: bytes) -> MountEntry | None:
    fields = line.split(b" ")
    try:
        separator = fields.index(_SEPARATOR, _FIELDS_BEFORE_SEPARATOR_MIN)
        major, minor = fields[2].split(b":")
        mount_id, device = int(fields[0]), (int(major), int(minor))
    except ValueError:
        return None
    after = fields[separator + 1 :]
    if len(after) < _FIELDS_AFTER_SEPARATOR_MIN:
        return None
    return MountEntry(
        mount_id, device, Path(_unescape(fields[4])), _unescape(after[0]), _unescape(after[1])
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL_ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), field))


def read_mounts() -> list[MountEntry]:
    """Return the mounts that this process sees."""
    return parse_mountinfo(_MOUNTINFO.read_bytes())


def mount_at(path: Path, mounts: Iterable[MountEntry] | None = None) -> MountEntry | None:
    """Return the uppermost mount whose mountpoint is exactly ``path``; None if there is none.

    Args:
        path: as :func:`resolve` returns it.
        mounts: a mount table that was read before; None reads it.
    """
    found = None
    for entry in read_mounts() if mounts is None else mounts:
        if entry.mountpoint == path:
            found = entry
    return found


def mount_of_device(device_number: int) -> MountEntry | None:
    """Return the mount that an ``st_dev`` belongs to; None if this process sees none."""
    device = (os.major(device_number), os.minor(device_number))
    return next((entry for entry in read_mounts() if entry.device == device), None)


def resolve(path: Path) -> Path:
    """Return ``path`` absolute and free of symbolic links, without touching a mount on it.

    Every part but the last is looked up; the last one only if nothing is mounted there, since a
    look at the root of a hanging mount never returns.
    """
    mountpoints = {entry.mountpoint for entry in read_mounts()}
    candidate = path.absolute()
    for _ in range(SYMLINKS_MAX):
        if candidate.name in {"", ".."}:
            return candidate.resolve()
        candidate = candidate.parent.resolve() / candidate.name
        if candidate in mountpoints or not candidate.is_symlink():
            return candidate
        candidate = candidate.parent / candidate.readlink()
    return candidate
