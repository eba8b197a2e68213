"""Locks that a mount keeps to itself, by choice or because it has no session."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.mount.mounts import mounting

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("option", ["local_locks", "ro"])
def test_locks_are_kept_within_the_mount(tmp_path: Path, option: str) -> None:
    with mounting(tmp_path / "mount") as mount:
        (mount.mountpoint / "file").touch()
    with mounting(tmp_path / "mount", "-o", option) as mount:
        first, second = (os.open(mount.mountpoint / "file", os.O_RDONLY) for _ in range(2))
        try:
            fcntl.flock(first, fcntl.LOCK_EX)
            with pytest.raises(BlockingIOError):
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(first, fcntl.LOCK_UN)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(first)
            os.close(second)
