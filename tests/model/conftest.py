"""What the tests against the kernel need: a tmpfs, and modes that no umask changes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import mounted

__all__ = ["mounted"]  # a fixture is found where its name is


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Let modes reach the filesystem as they are."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """Mount a tmpfs for one test."""
    if os.geteuid() != 0:
        pytest.fail("this test mounts a tmpfs and changes owners; run it as root", pytrace=False)
    mountpoint = tmp_path / "tmpfs"
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", mountpoint], check=True)
    yield mountpoint
    subprocess.run(["umount", mountpoint], check=True)
