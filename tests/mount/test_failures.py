"""Whatever keeps a mount from starting: one line with the cure, its exit code, nothing left."""

from __future__ import annotations

import os
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from aspenfs.config import ExitCode
from aspenfs.control import serving_process
from aspenfs.metadata import FORMAT_VERSION
from aspenfs.mountpoint import read_mounts
from tests.mount.mounts import TIMEOUT_S, mounting, run_aspenfs, succeed

pytestmark = pytest.mark.mount

SUPERBLOCK = "fs:default:S"


def check_failure(
    done: subprocess.CompletedProcess[bytes], code: ExitCode, cure: str, place: Path
) -> None:
    """Check what the user got, and that nothing is mounted or serving below ``place``."""
    output = done.stderr.decode()
    assert done.returncode == code, output
    assert done.stdout == b""
    (line,) = output.splitlines()
    assert line.startswith("aspenfs: ")
    assert re.search(cure, line), line
    assert not [entry for entry in read_mounts() if entry.mountpoint.is_relative_to(place)]
    assert serving_process(place / "data") is None


def fail_to_mount(place: Path, code: ExitCode, cure: str, *arguments: str) -> None:
    """Mount ``mnt`` of a place on its ``data``, in the background and in the foreground; fail."""
    command = ("mount", str(place / "mnt"), f"--data={place / 'data'}", *arguments)
    check_failure(run_aspenfs(*command), code, cure, place)
    check_failure(run_aspenfs(*command, "--foreground"), code, cure, place)


def make_volume(place: Path) -> Path:
    """Mount and unmount once; return the data directory."""
    with mounting(place) as mount:
        (mount.mountpoint / "file").write_bytes(b"content")
    return place / "data"


def put(data_dir: Path, key: str, value: bytes) -> None:
    done = run_aspenfs("kv", "put", "--data", data_dir, key, "-", stdin=value)
    assert done.returncode == 0, done.stderr


def test_a_missing_mountpoint(workplace: Path) -> None:
    (workplace / "mnt").rmdir()
    fail_to_mount(workplace, ExitCode.MOUNTPOINT_MISSING, r"'mkdir -p /\S+/mnt'")
    assert not (workplace / "data").exists()


def test_a_mountpoint_that_is_a_file(workplace: Path) -> None:
    (workplace / "mnt").rmdir()
    (workplace / "mnt").touch()
    fail_to_mount(workplace, ExitCode.MOUNTPOINT_NOT_DIRECTORY, "name a directory")


def test_a_mountpoint_that_is_not_empty(workplace: Path) -> None:
    (workplace / "mnt" / "precious").touch()
    fail_to_mount(workplace, ExitCode.MOUNTPOINT_NOT_EMPTY, "'precious'.*-o nonempty")
    done = run_aspenfs("mount", workplace / "mnt", f"--data={workplace / 'data'}", "-ononempty")
    assert done.returncode == 0
    assert list((workplace / "mnt").iterdir()) == []
    succeed("umount", workplace / "mnt")
    assert [path.name for path in (workplace / "mnt").iterdir()] == ["precious"]


def test_a_mountpoint_with_a_mount_on_it(tmp_path: Path) -> None:
    with mounting(tmp_path) as mount:
        done = run_aspenfs("mount", mount.mountpoint, f"--data={tmp_path / 'other'}")
        assert done.returncode == ExitCode.MOUNTPOINT_IN_USE
        assert f"'aspenfs umount {mount.mountpoint}'".encode() in done.stderr


def test_data_that_another_mount_holds(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with mounting(tmp_path / "first") as mount:
        done = run_aspenfs("mount", tmp_path / "second", f"--data={mount.data_dir}")
        check_failure(
            done,
            ExitCode.DATA_LOCKED,
            f"mount on {mount.mountpoint} .process {mount.process.pid}.*"
            f"'aspenfs umount {mount.mountpoint}'.*--data DIR",
            tmp_path / "second",
        )


def test_data_below_the_mountpoint(workplace: Path) -> None:
    done = run_aspenfs("mount", workplace, f"--data={workplace / 'data'}")
    check_failure(done, ExitCode.USAGE, "lie in each other.*--data DIR", workplace)


def test_damaged_data(workplace: Path) -> None:
    data_dir = make_volume(workplace)
    for manifest in data_dir.glob("MANIFEST-*"):
        manifest.write_bytes(b"rubbish" * 100)
    fail_to_mount(workplace, ExitCode.DATA_DAMAGED, "restore .* from a backup")


def test_data_that_is_something_else(workplace: Path) -> None:
    (workplace / "data").mkdir()
    (workplace / "data" / "thesis.txt").write_text("mine")
    fail_to_mount(workplace, ExitCode.FAILURE, "not a database: name an empty directory")
    assert (workplace / "data" / "thesis.txt").read_text() == "mine"


def test_a_damaged_superblock(workplace: Path) -> None:
    put(make_volume(workplace), SUPERBLOCK, b"no")
    fail_to_mount(workplace, ExitCode.DATA_DAMAGED, "damaged record at key b'fs:default:S'")


def test_a_newer_format(workplace: Path) -> None:
    put(make_volume(workplace), SUPERBLOCK, struct.pack("<I", FORMAT_VERSION + 1) + bytes(60))
    fail_to_mount(workplace, ExitCode.DATA_NEWER_FORMAT, "newer than .* upgrade aspenfs")


def test_nothing_to_mount_read_only(workplace: Path) -> None:
    fail_to_mount(workplace, ExitCode.DATA_MISSING, "read-write", "--read-only")
    assert not (workplace / "data").exists()


def test_no_such_volume_to_mount_read_only(workplace: Path) -> None:
    make_volume(workplace)
    fail_to_mount(workplace, ExitCode.DATA_MISSING, "'raw'", "--read-only", "--volume=raw")


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (("-o", "noatim"), "did you mean 'noatime'"),
        (("-o", "remount"), "unmount and mount again"),
        (("--volume", "Not Valid"), "use 1 to 64 of"),
    ],
)
def test_a_wrong_option(workplace: Path, arguments: tuple[str, ...], cure: str) -> None:
    fail_to_mount(workplace, ExitCode.USAGE, cure, *arguments)
    assert not (workplace / "data").exists()


def test_a_log_that_cannot_be_written(workplace: Path) -> None:
    fail_to_mount(workplace, ExitCode.FAILURE, "No such file", f"--log-file={workplace}/no/log")


def test_data_that_is_a_file(workplace: Path) -> None:
    (workplace / "data").touch()
    fail_to_mount(workplace, ExitCode.FAILURE, "Not a directory.*--data DIR")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("umount", "/nowhere"), ExitCode.NOT_MOUNTED),
        (("umount", "/proc"), ExitCode.NOT_MOUNTED),
        (("status", "/proc"), ExitCode.NOT_MOUNTED),
        (("info", "/proc/version"), ExitCode.NOT_MOUNTED),
        (("info", "/nowhere"), ExitCode.FAILURE),
        (("fsck", "--data", "/nowhere"), ExitCode.DATA_MISSING),
        (("kv", "get", "--mount", "/nowhere", "key"), ExitCode.NOT_MOUNTED),
        (("kv", "get", "--mount", "/proc", "--data", "/nowhere", "key"), ExitCode.USAGE),
    ],
)
def test_what_is_not_there(tmp_path: Path, arguments: tuple[str, ...], code: ExitCode) -> None:
    check_failure(run_aspenfs(*arguments), code, "", tmp_path)


def test_arguments_that_click_refuses() -> None:
    for arguments in ((), ("mount",), ("kv", "scan", "--limit=0"), ("what",), ("mount", "--what")):
        done = run_aspenfs(*arguments)
        assert done.returncode == ExitCode.USAGE, done
        assert b"Traceback" not in done.stderr


# --- as root in a world of its own, and as nobody ----------------------------------------------


def in_namespace(
    place: Path, preparation: str, command: Sequence[str], *, as_nobody: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """Run a command where mounts are private, after a shell script has prepared that world.

    Nobody keeps the right to read everything, since the tests may lie where only root can look.
    """
    if os.geteuid() != 0:
        pytest.fail("this test makes a mount namespace; run it as root", pytrace=False)
    drop = (
        "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=+dac_read_search "
        "--ambient-caps=+dac_read_search "
    )
    environment = dict(os.environ)
    if as_nobody:  # who could not write the measurements, and would say so
        environment.pop("COVERAGE_PROCESS_CONFIG", None)
    words = shlex.join(command)
    script = f"set -e\n{preparation}\n{drop if as_nobody else ''}{words}\n"
    return subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script],
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=place,
        env=environment,
    )


def aspenfs_mount(place: Path, *arguments: str) -> list[str]:
    own = [sys.executable, "-P", "-m", "aspenfs", "mount", str(place / "mnt")]
    return [*own, f"--data={place / 'data'}", *arguments]


OPEN_FUSE = """
mount -t tmpfs none /dev
mknod -m 666 /dev/fuse c 10 229
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/urandom c 1 9
mkdir /dev/shm && chmod 1777 /dev/shm
"""


def test_no_fuse_device(workplace: Path) -> None:
    done = in_namespace(workplace, "mount -t tmpfs none /dev", aspenfs_mount(workplace))
    check_failure(done, ExitCode.FUSE_MISSING, "modprobe fuse", workplace)


def test_a_fuse_device_without_a_driver(workplace: Path) -> None:
    preparation = "mount -t tmpfs none /dev && mknod -m 666 /dev/fuse c 10 254"
    done = in_namespace(workplace, preparation, aspenfs_mount(workplace))
    check_failure(done, ExitCode.FUSE_MISSING, "modprobe fuse", workplace)


def owned_by_nobody(place: Path) -> None:
    os.chown(place, 65534, 65534)
    os.chown(place / "mnt", 65534, 65534)


def test_no_permission_on_the_fuse_device(open_workplace: Path) -> None:
    owned_by_nobody(open_workplace)
    preparation = f"{OPEN_FUSE}\nchmod 600 /dev/fuse"
    done = in_namespace(open_workplace, preparation, aspenfs_mount(open_workplace), as_nobody=True)
    check_failure(
        done, ExitCode.FUSE_PERMISSION, "run as root.*chmod 666 /dev/fuse", open_workplace
    )


def test_no_fusermount_for_a_user(open_workplace: Path) -> None:
    owned_by_nobody(open_workplace)
    command = ["env", "PATH=/nowhere", *aspenfs_mount(open_workplace)]
    done = in_namespace(open_workplace, OPEN_FUSE, command, as_nobody=True)
    check_failure(done, ExitCode.FUSERMOUNT_MISSING, "apt-get install fuse3", open_workplace)


def test_a_fusermount_that_may_not_mount(open_workplace: Path) -> None:
    owned_by_nobody(open_workplace)
    powerless = open_workplace / "fusermount3"
    preparation = f"""{OPEN_FUSE}
        real=$(readlink -f "$(command -v fusermount3)")
        cp "$real" {powerless} && chmod 755 {powerless}
        mount --bind {powerless} "$real" """
    done = in_namespace(open_workplace, preparation, aspenfs_mount(open_workplace), as_nobody=True)
    check_failure(done, ExitCode.MOUNT_FAILED, "set-uid fusermount3", open_workplace)


def test_allow_other_for_a_user(open_workplace: Path) -> None:
    owned_by_nobody(open_workplace)
    preparation = f"""{OPEN_FUSE}
        echo '#user_allow_other' > {open_workplace}/fuse.conf
        mount --bind {open_workplace}/fuse.conf /etc/fuse.conf"""
    command = aspenfs_mount(open_workplace, "-o", "allow_other")
    done = in_namespace(open_workplace, preparation, command, as_nobody=True)
    check_failure(done, ExitCode.ALLOW_OTHER_FORBIDDEN, "user_allow_other", open_workplace)


def test_a_mountpoint_that_belongs_to_another(open_workplace: Path) -> None:
    os.chown(open_workplace, 65534, 65534)
    done = in_namespace(open_workplace, OPEN_FUSE, aspenfs_mount(open_workplace), as_nobody=True)
    check_failure(done, ExitCode.MOUNTPOINT_PERMISSION, "directory of your own", open_workplace)


def test_data_that_belongs_to_another(open_workplace: Path) -> None:
    owned_by_nobody(open_workplace)
    (open_workplace / "data").mkdir(mode=0o700)
    done = in_namespace(open_workplace, OPEN_FUSE, aspenfs_mount(open_workplace), as_nobody=True)
    check_failure(done, ExitCode.DATA_PERMISSION, "--data DIR", open_workplace)


def test_no_place_to_make_the_data(open_workplace: Path) -> None:
    os.chown(open_workplace / "mnt", 65534, 65534)
    done = in_namespace(open_workplace, OPEN_FUSE, aspenfs_mount(open_workplace), as_nobody=True)
    check_failure(done, ExitCode.DATA_PERMISSION, "--data DIR", open_workplace)


def test_a_user_mounts_uses_and_unmounts(open_workplace: Path) -> None:
    """The whole way of a user who is not root, by way of fusermount3."""
    owned_by_nobody(open_workplace)
    mountpoint, data_dir = open_workplace / "mnt", open_workplace / "data"
    aspenfs = f"{shlex.quote(sys.executable)} -P -m aspenfs"
    script = f"""
        set -e
        {aspenfs} mount {mountpoint} --data={data_dir}
        echo content > {mountpoint}/file
        grep " {mountpoint} " /proc/self/mountinfo | grep -q nosuid,nodev
        test "$(stat -c %u {mountpoint}/file)" = 65534
        {aspenfs} status {mountpoint}
        sleep 60 < {mountpoint}/file & holder=$!
        if {aspenfs} umount {mountpoint}; then exit 97; fi
        kill $holder; wait $holder || true
        {aspenfs} umount {mountpoint}
        {aspenfs} mount {mountpoint} --data={data_dir}
        pid=$({aspenfs} status {mountpoint} --json | grep '"pid"' | tr -dc 0-9)
        kill -9 $pid
        while kill -0 $pid 2> {open_workplace}/null; do :; done
        {aspenfs} mount {mountpoint} --data={data_dir}
        cat {mountpoint}/file
        {aspenfs} umount --force {mountpoint}
        {aspenfs} fsck --data={data_dir}
    """
    done = in_namespace(open_workplace, OPEN_FUSE, ["sh", "-c", script], as_nobody=True)
    assert done.returncode == 0, done.stderr
    assert b"content" in done.stdout
    assert b"clean" in done.stdout
    said = done.stderr.decode().splitlines()
    (line,) = (line for line in said if line.startswith("aspenfs: "))
    assert "is in use by process" in line
