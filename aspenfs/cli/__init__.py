"""The commands ``aspenfs`` and ``mount.aspenfs``: argv in, one line or a table and a code out."""

from aspenfs.cli.app import main
from aspenfs.cli.fstab import mount_helper

__all__ = ["main", "mount_helper"]
