"""What a change of a file takes from it: the set-ID bits and its capability, as on tmpfs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.mount.mounts import mounting

pytestmark = pytest.mark.mount

CAPABILITY: Final = "security.capability"
# struct vfs_cap_data of linux/capability.h: version 2, effective, CAP_CHOWN permitted.
CHOWN_CAPABILITY: Final = bytes.fromhex("01000002 01000000 00000000 00000000 00000000")
NOBODY: Final = 65534
CONTENT: Final = b"a" * 10_000

# It starts as root: the interpreter of the tests may be where no other user can go.
OPEN: Final = (
    "import os, sys\n"
    "path, user = sys.argv[1], int(sys.argv[2])\n"
    "os.setgroups([])\n"
    "os.setresgid(user, user, user)\n"
    "os.setresuid(user, user, user)\n"
)
READ_WRITE: Final = OPEN + "fd = os.open(path, os.O_RDWR)\n"
CHANGES: Final = {
    "write through a write-only handle": OPEN + "os.write(os.open(path, os.O_WRONLY), b'x')",
    "append": OPEN + "os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b'x')",
    "write": READ_WRITE + "os.pwrite(fd, b'x', 5000)",
    "second write": READ_WRITE + "os.pwrite(fd, b'x', 5000)\nos.pwrite(fd, b'y', 6000)",
    "write of nothing": READ_WRITE + "os.write(fd, b'')",
    "open that cuts": OPEN + "os.open(path, os.O_RDWR | os.O_TRUNC)",
    "write-only open that cuts": OPEN + "os.open(path, os.O_WRONLY | os.O_TRUNC)",
    "create that finds it": OPEN + "os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)",
    "truncate": OPEN + "os.truncate(path, 100)",
    "truncate to the same size": OPEN + "os.truncate(path, 10000)",
    "ftruncate": READ_WRITE + "os.ftruncate(fd, 20000)",
    "fallocate": READ_WRITE + "os.posix_fallocate(fd, 0, 20000)",
    "copy": READ_WRITE + "assert os.copy_file_range(fd, fd, 100, 0, 200) == 100",
    "read": READ_WRITE + "os.read(fd, 10)",
    "times": OPEN + "os.utime(path)",
}
ROOTS_CHANGES: Final = {
    "chown": OPEN + "os.chown(path, 1, 1)",
    "chown to the same": OPEN + "os.chown(path, os.stat(path).st_uid, -1)",
    "chgrp": OPEN + "os.chown(path, -1, 1)",
    "chmod": OPEN + "os.chmod(path, 0o6755)",
}
MODES: Final = (0o6777, 0o2767, 0o777)


class Privileges(NamedTuple):
    """What a file gives to who runs it."""

    mode: int
    has_capability: bool


def privileges(path: Path) -> Privileges:
    has_capability = False
    with suppress(OSError):  # ENODATA
        os.getxattr(path, CAPABILITY)
        has_capability = True
    assert has_capability == (CAPABILITY in os.listxattr(path))
    return Privileges(stat.S_IMODE(path.stat().st_mode), has_capability)


def run_as(user: int, source: str, *arguments: str | Path) -> str:
    """Run a program that begins with OPEN; return what it prints."""
    command = [sys.executable, "-c", source, arguments[0], str(user), *arguments[1:]]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def after(change: str, path: Path, mode: int, user: int) -> Privileges:
    """Return what a file has after a change by a user, who may write to it."""
    path.write_bytes(CONTENT)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(mode)
    os.setxattr(path, CAPABILITY, CHOWN_CAPABILITY)
    assert privileges(path) == (mode, True)
    run_as(user, change, path)
    found = privileges(path)
    path.unlink()
    return found


# What is None among the modules cannot be imported: as if it had not been built.
WITHOUT_EXTENSION: Final = "import sys\nsys.modules['aspenfs.fuse_extension._native'] = None\n"


@pytest.fixture(scope="module", params=[True, False], ids=["extension", "no extension"])
def places(request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """A directory of a mount and one of a tmpfs, where every user may go."""
    with tempfile.TemporaryDirectory(prefix="aspenfs-test-", dir="/dev/shm") as local:
        Path(local).chmod(0o755)
        work = Path(local) / "work"
        work.mkdir()
        prefix: tuple[str, ...] = ()
        if not request.param:
            (work / "sitecustomize.py").write_text(WITHOUT_EXTENSION)
            prefix = ("env", f"PYTHONPATH={work}")
        with mounting(work, "-o", "allow_other", prefix=prefix) as mount:
            if not request.param:
                mount.expected_log.append("without the FUSE extension")
            yield mount.mountpoint, Path(local)


def assert_as_on_tmpfs(places: tuple[Path, Path], change: str, user: int) -> None:
    mounted, local = places
    for mode in MODES:
        expected = after(change, local / "file", mode, user)
        assert after(change, mounted / "file", mode, user) == expected, oct(mode)


@pytest.mark.parametrize("user", [0, NOBODY])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_takes_what_it_takes_on_tmpfs(
    places: tuple[Path, Path], change: str, user: int
) -> None:
    assert_as_on_tmpfs(places, CHANGES[change], user)


@pytest.mark.parametrize("change", ROOTS_CHANGES)
def test_a_change_by_root_takes_what_it_takes_on_tmpfs(
    places: tuple[Path, Path], change: str
) -> None:
    assert_as_on_tmpfs(places, ROOTS_CHANGES[change], 0)


EXECUTED: Final = OPEN + "os.execv(path, ['id', '-u'])\n"
EXECUTED_AT_ONCE: Final = OPEN + (
    "fd = os.open(path, int(sys.argv[3]))\n"
    "assert os.pwrite(fd, b'\\x7f', 0) == 1\n"
    "os.close(fd)\n"
    "os.execv(path, ['id', '-u'])\n"
)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_who_writes_a_program_does_not_run_it_as_its_owner(
    places: tuple[Path, Path], flags: int
) -> None:
    program = places[0] / "program"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4777)
    assert program.stat().st_uid == 0
    assert run_as(NOBODY, EXECUTED, program).strip() == "0"
    assert run_as(NOBODY, EXECUTED_AT_ONCE, program, str(flags)).strip() == str(NOBODY)
    program.unlink()


COUNTING: Final = """
import aspenfs.fuse_extension  # before pyfuse3
from aspenfs.operations import Operations

def note(name):
    handler = getattr(Operations, name)
    async def noting(self, *args):
        with open({log!r}, "a") as log:
            log.write(name + " ")
        return await handler(self, *args)
    setattr(Operations, name, noting)

for name in ("getattr", "setattr", "getxattr", "listxattr", "write"):
    note(name)
"""


def test_a_small_write_through_the_page_cache_is_one_request(workplace: Path) -> None:
    log = workplace / "requests"
    (workplace / "sitecustomize.py").write_text(COUNTING.format(log=str(log)))
    with mounting(workplace, prefix=("env", f"PYTHONPATH={workplace}")) as mount:
        assert mount.status()["why_no_extension"] is None
        fd = os.open(mount.mountpoint / "file", os.O_RDWR | os.O_CREAT)
        try:
            os.pwrite(fd, b"first", 0)  # here the kernel asks for a capability, once
            log.write_text("")
            for at in range(10):
                os.pwrite(fd, b"x", at)
            assert log.read_text().split() == ["write"] * 10
        finally:
            os.close(fd)
