"""What people do with a filesystem, on a real mount, and again after unmounting and mounting."""

from __future__ import annotations

import mmap
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.model.calls import run_now
from tests.model.kernel_calls import KernelCalls
from tests.model.tree import Tree, take_tree
from tests.mount.carriers import OVER_EVERY_WAY, over_every_way
from tests.mount.mounts import Mount, succeed

pytestmark = pytest.mark.mount

TIMEOUT_S: Final = 300
STANDARD_LIBRARY: Final = Path(sysconfig.get_path("stdlib"))
TAR: Final = ("tar", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner")


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run a program that must succeed; return what it prints."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def snapshot(directory: Path) -> Tree:
    """Return all that stat(2) and read(2) show below a directory, without what reading changes."""
    tree = run_now(take_tree(KernelCalls(os.fsencode(directory))))
    return {path: entry._replace(atime_ns=0) for path, entry in tree.items()}


def check(mount: Mount) -> None:
    """Check the records of an unmounted volume."""
    succeed("fsck", "--data", mount.data_dir)


def make_tree(tree: Path, library: Path) -> None:
    """Make a real tree out of some library, with one of each thing that a copy can lose."""
    left_out = shutil.ignore_patterns("site-packages", "test", "tests", "__pycache__", "config-*")
    shutil.copytree(library, tree, symlinks=True, ignore=left_out)
    extra = tree / "extra"
    extra.mkdir()
    file = extra / "file"
    file.write_bytes(b"content")
    (extra / "hard link").hardlink_to(file)
    (tree / "hard link elsewhere").hardlink_to(file)
    (extra / "symlink").symlink_to("file")
    (extra / "dangling").symlink_to("/nowhere/" + "x" * 200)
    (extra / "directory symlink").symlink_to("..")
    os.mkfifo(extra / "fifo", 0o640)
    (extra / "empty directory").mkdir(0o700)
    for mode in (0o000, 0o400, 0o4755, 0o2711, 0o1777, 0o666):
        each = extra / f"mode {mode:o}"
        each.touch()
        each.chmod(mode)
    os.setxattr(file, "user.colour", b"\0blue\xff")
    os.setxattr(extra, "user.empty", b"")
    run("setfacl", "-m", "u:1234:rw,g:4321:r", file)
    run("setfacl", "-d", "-m", "u:1234:rwx", extra / "empty directory")
    if os.geteuid() == 0:
        os.chown(extra / "symlink", 12, 34, follow_symlinks=False)
        os.chown(extra / "empty directory", 1234, 4321)
        os.setxattr(extra, "trusted.note", b"for root")
    for name, time_ns in (("file", 1), ("symlink", 10**18 + 1), ("empty directory", -(10**9) + 5)):
        os.utime(extra / name, ns=(time_ns, time_ns), follow_symlinks=False)


def assert_same_trees(original: Path, copy: Path) -> None:
    """Ask diff and rsync: both must find nothing to say."""
    # diff calls two FIFOs different whatever they are; rsync does not.
    assert run("diff", "-r", "--no-dereference", "--exclude=fifo", original, copy) == ""
    assert run("rsync", "-aHAXn", "--checksum", "--delete", "-i", f"{original}/", f"{copy}/") == ""


@over_every_way("library", STANDARD_LIBRARY, lossy=STANDARD_LIBRARY / "email")
def test_a_tree_is_unpacked_with_all_that_belongs_to_it(
    mounted: Mount, library: Path, tmp_path: Path
) -> None:
    source_tree = tmp_path / "source"
    make_tree(source_tree, library)
    archive = tmp_path / "source.tar"
    run(*TAR, "--format=posix", "-C", source_tree, "-cf", archive, ".")
    copy = mounted.mountpoint / "copy"
    copy.mkdir()
    run(*TAR, "-C", copy, "-xpf", archive)
    assert_same_trees(source_tree, copy)
    mounted.end()
    check(mounted)
    mounted.start()
    assert_same_trees(source_tree, copy)
    synced = mounted.mountpoint / "synced"
    run("rsync", "-aHAX", f"{copy}/", f"{synced}/")
    assert_same_trees(source_tree, synced)
    shutil.rmtree(copy)
    assert_same_trees(source_tree, synced)


@OVER_EVERY_WAY
def test_git_keeps_a_repository(mounted: Mount, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()

    def git(*arguments: str | Path, cwd: Path) -> str:
        names = {f"GIT_{who}_NAME": "A. Tester" for who in ("AUTHOR", "COMMITTER")}
        mails = {f"GIT_{who}_EMAIL": "tester@example.org" for who in ("AUTHOR", "COMMITTER")}
        return run("git", *arguments, cwd=cwd, HOME=str(home), **names, **mails)

    work = mounted.mountpoint / "work"
    work.mkdir()
    git("init", "--quiet", "-b", "main", ".", cwd=work)
    for version in range(20):
        for number in range(10):
            (work / f"file{number}").write_text(f"version {version}\n" * (number + 1) * 50)
        git("add", ".", cwd=work)
        git("commit", "--quiet", "-m", f"version {version}", cwd=work)
    git("branch", "old", "HEAD~10", cwd=work)
    git("gc", "--quiet", cwd=work)
    git("fsck", "--full", "--strict", cwd=work)
    clone = mounted.mountpoint / "clone"
    git("clone", "--quiet", work, clone, cwd=mounted.mountpoint)
    mounted.end()
    check(mounted)
    mounted.start()
    for repository in (work, clone):
        git("fsck", "--full", "--strict", cwd=repository)
        assert git("status", "--porcelain", cwd=repository) == ""
        assert git("rev-list", "--count", "HEAD", cwd=repository).strip() == "20"
    git("checkout", "--quiet", "-b", "back", "origin/old", cwd=clone)
    assert (clone / "file0").read_text() == "version 9\n" * 50


MAKEFILE: Final = """\
OBJECTS := main.o greet.o count.o
program: $(OBJECTS) libextra.a
\t$(CC) -o $@ $(OBJECTS) -L. -lextra
libextra.a: extra.o
\t$(AR) rcs $@ $^
%.o: %.c all.h
\t$(CC) -O1 -c -o $@ $<
"""
SOURCES: Final = {
    "all.h": "int greet(void); int count(void); int extra(void);\n",
    "main.c": '#include "all.h"\nint main(void) { return greet() + count() + extra() - 6; }\n',
    "greet.c": '#include <stdio.h>\n#include "all.h"\nint greet(void) { puts("hi"); return 1; }\n',
    "count.c": '#include "all.h"\nint count(void) { return 2; }\n',
    "extra.c": '#include "all.h"\nint extra(void) { return 3; }\n',
}


@OVER_EVERY_WAY
def test_make_builds_and_knows_what_is_up_to_date(mounted: Mount) -> None:
    project = mounted.mountpoint / "project"
    project.mkdir()
    (project / "Makefile").write_text(MAKEFILE)
    for name, text in SOURCES.items():
        (project / name).write_text(text)
    run("make", "-j2", cwd=project)
    assert run("./program", cwd=project) == "hi\n"
    run("make", "--question", cwd=project)
    mounted.remount()
    run("make", "--question", cwd=project)
    assert run("./program", cwd=project) == "hi\n"
    (project / "greet.c").write_text(SOURCES["greet.c"].replace("hi", "hello"))
    assert "greet.o" in run("make", cwd=project)
    assert run("./program", cwd=project) == "hello\n"


TRANSACTIONS: Final = """
import sqlite3, sys
path, mode, first, last = sys.argv[1:]
with sqlite3.connect(path, isolation_level=None, timeout=60) as database:
    assert database.execute("pragma journal_mode").fetchone()[0] == mode
    for number in range(int(first), int(last)):
        database.execute("begin immediate")
        database.execute("insert into lines values (?, ?)", (number, "x" * (number % 500)))
        database.execute("update lines set text = text || 'y' where number = ?", (number // 2,))
        database.execute("rollback" if number % 10 == 9 else "commit")
"""


@pytest.mark.parametrize("mode", ["wal", "delete"])
@over_every_way("transactions", 500, lossy=100, slow=10_000)
def test_sqlite_keeps_its_transactions(mounted: Mount, mode: str, transactions: int) -> None:
    path = mounted.mountpoint / "database"
    half = transactions // 2
    # Before both start: sqlite does not wait for a lock when it changes the mode.
    with closing(sqlite3.connect(path)) as database:
        assert database.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
        database.execute("create table lines (number integer primary key, text)")
    programs = [
        subprocess.Popen([sys.executable, "-c", TRANSACTIONS, path, mode, str(first), str(last)])
        for first, last in ((0, half), (half, transactions))
    ]
    try:
        assert [program.wait(TIMEOUT_S) for program in programs] == [0, 0]
    finally:
        for program in programs:
            program.kill()
            program.wait()
    for _ in range(2):
        database = sqlite3.connect(path)
        try:
            assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
            kept = transactions - transactions // 10
            assert database.execute("select count(*) from lines").fetchone() == (kept,)
        finally:
            database.close()
        mounted.remount()


def _wheel(directory: Path) -> Path:
    """Make the smallest package that pip installs."""
    path = directory / "speck-1.0-py3-none-any.whl"
    info = "speck-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("speck.py", "def say():\n    return 'it runs'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: speck\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@over_every_way("has_own_pip", True, lossy=False)
def test_a_virtual_environment_is_made_and_used(
    mounted: Mount, has_own_pip: bool, tmp_path: Path
) -> None:
    environment = mounted.mountpoint / "environment"
    python = environment / "bin" / "python"
    if has_own_pip:
        run(sys.executable, "-m", "venv", environment)
        pip: Sequence[str | Path] = (python, "-m", "pip", "--isolated")
    else:
        run(sys.executable, "-m", "venv", "--without-pip", environment)
        pip = (sys.executable, "-m", "pip", "--isolated", "--python", python)
    run(*pip, "install", "--no-index", _wheel(tmp_path))
    before = snapshot(environment)
    mounted.remount()
    assert snapshot(environment) == before
    assert run(python, "-c", "import speck; print(speck.say())") == "it runs\n"
    run(*pip, "uninstall", "--yes", "speck")
    assert not list(environment.glob("lib/python*/site-packages/speck*"))


@OVER_EVERY_WAY
def test_a_file_that_is_appended_to_can_be_written_through_a_mapping(mounted: Mount) -> None:
    path = mounted.mountpoint / "log"
    with path.open("ab+") as file:
        file.write(b"0123456789")
        file.flush()
        # The kernel hands the page back through whatever handle there is: here one that appends.
        with mmap.mmap(file.fileno(), 0) as mapping:
            mapping[:3] = b"abc"
            mapping.flush()
        file.write(b"!")
    mounted.remount()
    assert path.read_bytes() == b"abc3456789!"


@OVER_EVERY_WAY
def test_what_is_executed_and_mapped_is_what_was_written(mounted: Mount) -> None:
    program = mounted.mountpoint / "program"
    shutil.copy(shutil.which("true") or "/bin/true", program)
    run(program)
    assert stat.S_IMODE(program.stat().st_mode) & stat.S_IXUSR
    mounted.remount()
    run(program)
