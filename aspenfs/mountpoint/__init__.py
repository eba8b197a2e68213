"""Everything about a place in the tree before, around and after a mount; no FUSE library needed."""

from aspenfs.mountpoint.mountinfo import (
    MountEntry,
    mount_at,
    mount_of_device,
    parse_mountinfo,
    read_mounts,
    resolve,
)
from aspenfs.mountpoint.preparation import Answer, check_fuse, prepare_mountpoint, probe
from aspenfs.mountpoint.unmount import unmount, unmount_by_force

__all__ = [
    "Answer",
    "MountEntry",
    "check_fuse",
    "mount_at",
    "mount_of_device",
    "parse_mountinfo",
    "prepare_mountpoint",
    "probe",
    "read_mounts",
    "resolve",
    "unmount",
    "unmount_by_force",
]
