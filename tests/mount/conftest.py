"""Mounts as fixtures. Other directories of tests import them from here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.carriers import Way, arguments_for
from tests.mount.mounts import Mount, clean_directory, mounting


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A fresh volume, mounted. At the end it is unmounted: exit 0, no bug counted, no warning.

    The mount calls its store directly, unless the test is marked :data:`OVER_EVERY_WAY`.
    """
    way: Way = getattr(request, "param", Way.DIRECT)
    with arguments_for(way) as arguments, mounting(tmp_path, *arguments) as mount:
        yield mount


@pytest.fixture
def open_workplace() -> Iterator[Path]:
    """As ``workplace``, where every user can go; pytest's own directories are private."""
    with tempfile.TemporaryDirectory(prefix="aspenfs-test-") as name, clean_directory(Path(name)):
        place = Path(name)
        place.chmod(0o755)
        (place / "mnt").mkdir()
        yield place


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """A directory with an empty ``mnt``; whatever a test leaves mounted below is taken away."""
    with clean_directory(tmp_path):
        (tmp_path / "mnt").mkdir()
        yield tmp_path
