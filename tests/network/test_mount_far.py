"""A mount whose server is far away, by a way that loses datagrams."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounts import mounting
from tests.network.processes import redirected, relaying, serving

pytestmark = pytest.mark.mount

ONE_WAY_S: Final = 0.025  # both ways together 50 ms
LOSS: Final = 0.01
GIT_TIMEOUT_S: Final = 120.0

DIRECTORIES: Final = 20
FILES: Final = 150
COMMITS: Final = 10


def git(*arguments: str | Path, home: Path) -> str:
    """Run git, which must succeed, without anybody's configuration."""
    who = {"NAME": "A. Tester", "EMAIL": "tester@example.org"}
    identity = {
        f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()
    }
    done = subprocess.run(
        ["git", *arguments],
        env={**os.environ, **identity, "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1"},
        capture_output=True,
        text=True,
        timeout=GIT_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_repository(place: Path, home: Path) -> None:
    """Make a repository with some history, and files as large as sources are."""
    dice = random.Random(2)
    git("init", "--quiet", "-b", "main", place, home=home)
    paths = [place / f"part{each % DIRECTORIES}" / f"file{each}.txt" for each in range(FILES)]
    for number in range(COMMITS):
        for path in paths if number == 0 else dice.sample(paths, 20):
            path.parent.mkdir(exist_ok=True)
            words = dice.choices(("commit", "tree", "blob", "tag", "\n"), k=dice.randrange(2000))
            path.write_text(" ".join(words))
        git("-C", place, "add", ".", home=home)
        git("-C", place, "commit", "--quiet", "-m", f"commit {number}", home=home)


@pytest.mark.slow
def test_git_clones_over_a_long_and_lossy_way(tmp_path: Path) -> None:
    source, ticket_file = tmp_path / "source", tmp_path / "relayed.ticket"
    make_repository(source, tmp_path)
    with (
        serving(tmp_path) as server,
        relaying(server.port, loss=LOSS, delay_s=ONE_WAY_S) as relay,
    ):
        ticket_file.write_text(redirected(server.ticket, relay.port))
        with mounting(tmp_path / "far", ticket_file=ticket_file) as mount:
            clone = mount.mountpoint / "clone"
            git("clone", "--quiet", "--no-local", source, clone, home=tmp_path)
            assert git("-C", clone, "status", "--porcelain", home=tmp_path) == ""
            mount.remount()  # what is read now comes from the server
            git("-C", clone, "fsck", "--full", "--strict", home=tmp_path)
            head = git("-C", source, "rev-parse", "HEAD", home=tmp_path)
            assert git("-C", clone, "rev-parse", "HEAD", home=tmp_path) == head
