"""Who makes a file: the umask applies, unless the directory has a default ACL; as on tmpfs."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from aspenfs import acl
from tests.mount.mounts import Mount

pytestmark = pytest.mark.mount

DEFAULT: Final = acl.DEFAULT_XATTR.decode()
DEFAULT_ACLS: Final = {
    "none": None,
    "three classes": (
        acl.Entry(acl.USER_OBJ, 7),
        acl.Entry(acl.GROUP_OBJ, 7),
        acl.Entry(acl.OTHER, 5),
    ),
    "a named user": (
        acl.Entry(acl.USER_OBJ, 7),
        acl.Entry(acl.USER, 7, 1000),
        acl.Entry(acl.GROUP_OBJ, 5),
        acl.Entry(acl.MASK, 7),
        acl.Entry(acl.OTHER, 5),
    ),
}
MAKERS: Final[dict[str, Callable[[Path], object]]] = {
    "open": lambda path: os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o6777)),
    "mkdir": lambda path: path.mkdir(0o777),
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o666),
    "mkfifo": lambda path: os.mkfifo(path, 0o666),
    "symlink": lambda path: path.symlink_to("target"),
}


@contextmanager
def umask_of(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def made(make: Callable[[Path], object], parent: Path, mask: int) -> tuple[int, dict[str, bytes]]:
    """Return the mode and the ACLs of what is made in a directory."""
    path = parent / "made"
    with umask_of(mask):
        make(path)
    names = os.listxattr(path, follow_symlinks=False)
    acls = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in names
        if name.startswith("system.")
    }
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        path.rmdir()
    else:
        path.unlink()
    return mode, acls


def test_what_is_made_has_the_mode_and_the_acls_that_it_has_on_tmpfs(mounted: Mount) -> None:
    with tempfile.TemporaryDirectory(prefix="aspenfs-test-", dir="/dev/shm") as local:
        for default in DEFAULT_ACLS.values():
            if default is not None:
                for place in (Path(local), mounted.mountpoint):
                    os.setxattr(place, DEFAULT, acl.encode(default))
            for name, make in MAKERS.items():
                for mask in (0, 0o022, 0o077):
                    expected = made(make, Path(local), mask)
                    assert made(make, mounted.mountpoint, mask) == expected, (name, oct(mask))
