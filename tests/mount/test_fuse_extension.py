"""The extension under a real kernel: a filesystem of one file, used by processes of its own."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import pytest

from aspenfs.fuse_extension import WRITE_KILL_SUIDGID, WRITE_OF_PAGE_CACHE
from aspenfs.mountpoint import mount_at, unmount
from tests.mount.mounts import TIMEOUT_S, Mount, mounting, succeed

pytestmark = pytest.mark.mount

FILESYSTEM: Final = Path(__file__).parent / "extension_filesystem.py"
CONTENT: Final = b"0123456789" * 10
NOBODY: Final = 65534
END_OF_FILE: Final = 2**63 - 1


class MemoryMount:
    """A mount of the filesystem in memory, and what it says of its requests."""

    def __init__(self, mountpoint: Path, **settings: object) -> None:
        self.mountpoint = mountpoint
        self.file = mountpoint / "file"
        self._process = subprocess.Popen(
            [sys.executable, FILESYSTEM, mountpoint, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        # Whoever waits for a line that never comes reads the end of all lines in its place.
        self._limit = threading.Timer(TIMEOUT_S, self._process.kill)
        self._limit.start()

    def __enter__(self) -> Self:
        try:
            assert self.wait_for("mounted") == [True], "the extension has no part in the session"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if mount_at(self.mountpoint) is not None:
            unmount(self.mountpoint, lazy=True)
        self.end()
        assert self._process.wait() == 0
        self._limit.cancel()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def end(self) -> None:
        """Let it end its session, mounted or not."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def said(self) -> Iterator[list[Any]]:
        """Yield what it says, until it has ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)

    def wait_for(self, name: str) -> list[Any]:
        """Wait until it says something; return the values said with it."""
        for said in self.said():
            if said[0] == name:
                return said[1:]
        raise AssertionError(f"it ended without a word of {name}")

    def names_until_end(self) -> list[str]:
        """Unmount, and return the names of all that was not waited for."""
        unmount(self.mountpoint)
        return [said[0] for said in self.said()]


@pytest.fixture
def mount(open_workplace: Path) -> Iterator[MemoryMount]:
    with MemoryMount(open_workplace / "mnt") as mount:
        yield mount


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def program(mount: MemoryMount, source: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that has the file open as ``fd`` and ends by itself."""
    preamble = (
        f"import errno, fcntl, os, signal, sys\nfd = os.open({str(mount.file)!r}, os.O_RDWR)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", preamble + source], **options)
    limit = threading.Timer(TIMEOUT_S, process.kill)
    limit.start()
    try:
        yield process
        process.wait()
    finally:
        limit.cancel()
        process.kill()
        process.wait()


# --- each request -------------------------------------------------------------------------------


def test_fallocate_reaches_its_handler(mount: MemoryMount) -> None:
    with opened(mount.file) as fd:
        os.posix_fallocate(fd, 50, 150)
        assert mount.wait_for("fallocate") == [2, 7, 0, 50, 150]
        assert os.fstat(fd).st_size == 200


def test_seeking_for_data_and_holes_reaches_its_handler(mount: MemoryMount) -> None:
    with opened(mount.file) as fd:
        assert os.lseek(fd, 5, os.SEEK_DATA) == 5
        assert mount.wait_for("lseek") == [2, 7, 5, os.SEEK_DATA]
        assert os.lseek(fd, 5, os.SEEK_HOLE) == len(CONTENT)
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            os.lseek(fd, 1000, os.SEEK_DATA)


def test_a_bug_of_a_handler_is_eio_and_the_mount_lives_on(mount: MemoryMount) -> None:
    with opened(mount.file) as fd:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.lseek(fd, 13, os.SEEK_DATA)
        assert mount.wait_for("bug") == ["lseek", "KeyError('a bug of the handler')"]
        assert os.lseek(fd, 5, os.SEEK_DATA) == 5


def test_copies_reach_their_handler(mount: MemoryMount) -> None:
    with opened(mount.file) as fd:
        assert os.copy_file_range(fd, fd, 10, 5, 50) == 10
        assert mount.wait_for("copy_file_range") == [2, 7, 5, 2, 7, 50, 10, 0]
        assert os.pread(fd, 10, 50) == CONTENT[5:15]


def test_a_posix_lock_is_seen_by_others_and_goes_with_its_file(mount: MemoryMount) -> None:
    with opened(mount.file) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 8, 4)
        *where, owner, kind, start, end, pid, wait = mount.wait_for("setlk")
        assert (where, kind, start, end) == ([2, 7], fcntl.F_WRLCK, 4, 11)
        assert (pid, wait) == (os.getpid(), True)
        other = (
            "import struct\n"
            "query = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)\n"
            "found = struct.unpack('hhqqi4x', fcntl.fcntl(fd, fcntl.F_GETLK, query))\n"
            f"assert found == (fcntl.F_WRLCK, 0, 3, 7, {os.getpid()}), found\n"
            "try:\n"
            "    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            "except BlockingIOError:\n"
            "    sys.exit(0)\n"
            "sys.exit('it was locked twice')\n"
        )
        with program(mount, other) as process:
            pass
        assert process.returncode == 0
        # POSIX: closing any descriptor of the file drops all locks of the process.
        with opened(mount.file):
            pass
        while mount.wait_for("flush") != [0, owner]:
            pass  # the other program's, and that of the fork between
        with program(mount, "fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)") as process:
            pass
        assert process.returncode == 0


def test_locks_of_an_open_file_description_are_told_apart(mount: MemoryMount) -> None:
    ofd_setlk = 37  # F_OFD_SETLK, which the module fcntl lacks before 3.14
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with opened(mount.file) as fd, opened(mount.file) as other:
        fcntl.fcntl(fd, ofd_setlk, whole)
        said = mount.wait_for("setlk")
        assert said[3:6] == [fcntl.F_WRLCK, 0, END_OF_FILE]
        with pytest.raises(BlockingIOError):
            fcntl.fcntl(other, ofd_setlk, whole)
        assert mount.wait_for("setlk")[2] != said[2]


def test_a_bsd_lock_goes_with_its_open_file_description(mount: MemoryMount) -> None:
    with opened(mount.file) as fd:
        duplicate = os.dup(fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        _, _, owner, operation = mount.wait_for("flock")
        assert operation == fcntl.LOCK_EX
    with opened(mount.file) as fd:
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(duplicate)
        flags, released = mount.wait_for("release")
        assert (flags, released) == (2, owner)  # FUSE_RELEASE_FLOCK_UNLOCK
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)


# --- waiting ------------------------------------------------------------------------------------

WAIT_FOR_LOCK: Final = "fcntl.{call}(fd, fcntl.LOCK_EX)\n"
EITHER_LOCK: Final = pytest.mark.parametrize("call", ["lockf", "flock"])


@EITHER_LOCK
def test_who_waits_for_a_lock_gets_it_and_the_mount_serves_others(
    mount: MemoryMount, call: str
) -> None:
    with opened(mount.file) as fd:
        getattr(fcntl, call)(fd, fcntl.LOCK_EX)
        with program(mount, WAIT_FOR_LOCK.format(call=call)) as process:
            mount.wait_for("waits")
            assert os.pread(fd, 10, 0) == CONTENT[:10]
            assert process.poll() is None
            getattr(fcntl, call)(fd, fcntl.LOCK_UN)
        assert process.returncode == 0


@EITHER_LOCK
def test_a_signal_ends_the_wait_for_a_lock(mount: MemoryMount, call: str) -> None:
    class_of_handler = (
        "class Signalled(Exception): pass\n"
        "def handle(*_): raise Signalled\n"
        "signal.signal(signal.SIGUSR1, handle)\n"
        "try:\n"
        f"    {WAIT_FOR_LOCK.format(call=call)}"
        "except Signalled:\n"
        "    sys.exit(3)\n"
    )
    with opened(mount.file) as fd:
        getattr(fcntl, call)(fd, fcntl.LOCK_EX)
        with program(mount, class_of_handler) as process:
            mount.wait_for("waits")
            process.send_signal(signal.SIGUSR1)
        assert process.returncode == 3


@EITHER_LOCK
def test_who_waits_for_a_lock_can_be_killed(mount: MemoryMount, call: str) -> None:
    with opened(mount.file) as fd:
        getattr(fcntl, call)(fd, fcntl.LOCK_EX)
        with program(mount, WAIT_FOR_LOCK.format(call=call)) as process:
            mount.wait_for("waits")
            process.kill()
        assert process.returncode == -signal.SIGKILL


@EITHER_LOCK
def test_a_lock_of_who_is_killed_is_free(mount: MemoryMount, call: str) -> None:
    holder = WAIT_FOR_LOCK.format(call=call) + "print(flush=True)\nsignal.pause()\n"
    with program(mount, holder, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
    process.stdout.close()
    with opened(mount.file) as fd:
        getattr(fcntl, call)(fd, fcntl.LOCK_EX)


def test_a_handler_of_pyfuse3_is_told_of_a_signal(mount: MemoryMount) -> None:
    with program(mount, "os.pwrite(fd, b'hang', 0)") as process:
        mount.wait_for("hangs")
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_who_waits_is_answered_when_the_session_ends(mount: MemoryMount) -> None:
    refused = (
        "try:\n"
        "    fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "except OSError as error:\n"
        "    assert error.errno == errno.ENOTCONN, error\n"
        "    sys.exit(3)\n"
    )
    fd = os.open(mount.file, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with program(mount, refused) as process:
            mount.wait_for("waits")
            mount.end()
        assert process.returncode == 3
        assert mount.wait_for("ended") == [False]
    finally:
        with suppress(OSError):  # the session of the file has ended
            os.close(fd)


# --- what the kernel is told and tells ----------------------------------------------------------


@pytest.mark.parametrize(("kill_privileges", "asked"), [(True, 1), (False, 3)])
def test_a_write_costs_no_question_for_a_capability(
    open_workplace: Path, *, kill_privileges: bool, asked: int
) -> None:
    with MemoryMount(open_workplace / "mnt", kill_privileges=kill_privileges) as mount:
        with opened(mount.file) as fd:
            for _ in range(3):
                assert os.pwrite(fd, b"x", 0) == 1
        said = mount.names_until_end()
        assert (said.count("write"), said.count("getxattr")) == (3, asked)


def test_the_kernel_says_whose_writes_clear_the_set_id_bits(open_workplace: Path) -> None:
    with MemoryMount(open_workplace / "mnt", kill_privileges=True) as mount:
        for user, flags in ((NOBODY, WRITE_KILL_SUIDGID), (0, 0)):
            mount.file.chmod(0o6777)
            script = 'printf x 1<>"$0"'  # opens it for reading and writing
            subprocess.run(["sh", "-c", script, mount.file], check=True, user=user)
            assert mount.wait_for("write")[0] == flags
        # The bits are left to the filesystem, and this one does not clear them.
        assert stat.S_IMODE(mount.file.stat().st_mode) == 0o6777


def test_a_page_of_a_mapping_is_told_from_a_write(mount: MemoryMount) -> None:
    with opened(mount.file) as fd:
        assert os.pwrite(fd, b"x", 0) == 1
        assert mount.wait_for("write")[0] == 0
        with mmap.mmap(fd, len(CONTENT)) as mapping:
            mapping[5] = 0
            mapping.flush()
        assert mount.wait_for("write")[0] == WRITE_OF_PAGE_CACHE


@pytest.mark.parametrize(("apply_umask", "mode"), [(True, 0o666), (False, 0o640)])
def test_the_umask_is_left_to_the_filesystem(
    open_workplace: Path, *, apply_umask: bool, mode: int
) -> None:
    with MemoryMount(open_workplace / "mnt", apply_umask=apply_umask) as mount:
        new = mount.mountpoint / "new"
        with subprocess.Popen(["touch", new], umask=0o027, stderr=subprocess.DEVNULL):
            pass
        assert mount.wait_for("create") == [stat.S_IFREG | mode, 0o027]


def test_locks_may_be_left_to_the_kernel(open_workplace: Path) -> None:
    with MemoryMount(open_workplace / "mnt", locks=False) as mount:
        with opened(mount.file) as fd, opened(mount.file) as other:
            fcntl.lockf(fd, fcntl.LOCK_EX)
            fcntl.flock(fd, fcntl.LOCK_EX)
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not {"setlk", "flock"} & set(mount.names_until_end())


# --- aspenfs itself -----------------------------------------------------------------------------


def test_a_mount_runs_with_the_extension(mounted: Mount) -> None:
    assert mounted.status()["why_no_extension"] is None
    assert b"extension" not in succeed("status", mounted.mountpoint)


def test_a_mount_runs_without_the_extension_and_says_so(workplace: Path) -> None:
    # What is None among the modules cannot be imported: as if it had not been built.
    hidden = "import sys\nsys.modules['aspenfs.fuse_extension._native'] = None\n"
    (workplace / "sitecustomize.py").write_text(hidden)
    prefix = ("env", f"PYTHONPATH={workplace}")
    with mounting(workplace, prefix=prefix) as mount:
        mount.expected_log.append(r"without the FUSE extension \(import of .* halted")
        file = mount.mountpoint / "file"
        file.write_bytes(CONTENT)
        with opened(file) as fd, opened(file) as other:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert "halted" in mount.status()["why_no_extension"]
        assert b"extension" in succeed("status", mount.mountpoint)
