"""Real programs that work on one mount and then on the other."""

from __future__ import annotations

import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.coherence.pairs import Pair
from tests.mount.test_workloads import run
from tests.network.test_mount_far import git, make_repository

pytestmark = pytest.mark.mount

COMMITS: Final = 4
TRANSACTIONS: Final = 30


def test_git_goes_on_where_the_other_mount_has_stopped(pair: Pair, tmp_path: Path) -> None:
    make_repository(tmp_path / "source", tmp_path)
    git("clone", "--quiet", "--no-local", tmp_path / "source", pair.first / "clone", home=tmp_path)
    for number, writer, reader in pair.turns(COMMITS):
        (writer / "clone" / "part0" / "file0.txt").write_text(f"changed {number}\n")
        (writer / "clone" / f"new{number}").write_text("new\n")
        git("-C", writer / "clone", "add", ".", home=tmp_path)
        git("-C", writer / "clone", "commit", "--quiet", "-m", f"change {number}", home=tmp_path)
        assert git("-C", reader / "clone", "status", "--porcelain", home=tmp_path) == ""
        log = git("-C", reader / "clone", "log", "-1", "--format=%s", home=tmp_path)
        assert log == f"change {number}\n"
    for each in (pair.first, pair.second):
        git("-C", each / "clone", "fsck", "--full", "--strict", home=tmp_path)


def test_sqlite_reads_what_the_other_mount_has_committed(pair: Pair) -> None:
    with closing(sqlite3.connect(pair.first / "database")) as database, database:
        database.execute("create table numbers (number integer primary key, text text)")
    for number, writer, reader in pair.turns(TRANSACTIONS):
        with closing(sqlite3.connect(writer / "database")) as database, database:
            database.execute("insert into numbers values (?, ?)", (number, "text" * number))
        with closing(sqlite3.connect(reader / "database")) as database:
            assert database.execute("select count(*) from numbers").fetchone() == (number + 1,)
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)


def test_tar_packs_the_tree_that_the_other_mount_has_unpacked(pair: Pair, tmp_path: Path) -> None:
    make_repository(tmp_path / "source", tmp_path)
    (tmp_path / "source").rename(tmp_path / "tree")
    run("tar", "-cf", tmp_path / "tree.tar", "-C", tmp_path, "tree")
    run("tar", "-xf", tmp_path / "tree.tar", "-C", pair.first)
    run("tar", "-cf", tmp_path / "again.tar", "-C", pair.second, "tree")
    with tarfile.open(tmp_path / "tree.tar") as one, tarfile.open(tmp_path / "again.tar") as other:
        for ours, theirs in zip(
            sorted(one.getmembers(), key=lambda member: member.name),
            sorted(other.getmembers(), key=lambda member: member.name),
            strict=True,
        ):
            assert (ours.name, ours.mode, ours.size) == (theirs.name, theirs.mode, theirs.size)
            if ours.isreg():
                read, reread = one.extractfile(ours), other.extractfile(theirs)
                assert read is not None
                assert reread is not None
                assert read.read() == reread.read()
