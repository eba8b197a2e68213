"""From mount to unmount, and every way in which a mount can end."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from aspenfs.config import ExitCode
from aspenfs.control import serving_process
from aspenfs.limits import KERNEL_READAHEAD_KIB
from aspenfs.mountpoint import Answer, mount_at, probe, unmount
from tests.mount.carriers import OVER_EVERY_WAY
from tests.mount.mounts import Mount, mounting, run_aspenfs, succeed

pytestmark = pytest.mark.mount

CUT_OFF = "|".join(map(os.strerror, (errno.ENOTCONN, errno.ECONNABORTED)))
"""What a file says whose mount is gone; which of the two is the kernel's choice."""


def test_mount_returns_when_it_answers_and_umount_when_the_data_is_free(workplace: Path) -> None:
    mountpoint, data_dir = workplace / "mnt", workplace / "data"
    done = run_aspenfs("mount", mountpoint, "--data", data_dir)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["mounted", "data", "ticket", "unmount"]
    assert os.path.ismount(mountpoint)
    (mountpoint / "file").write_bytes(b"kept")
    pid = serving_process(data_dir)
    assert pid is not None

    done = run_aspenfs("umount", mountpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not os.path.ismount(mountpoint)
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()

    succeed("fsck", "--data", data_dir)
    succeed("mount", mountpoint, "--data", data_dir)
    assert (mountpoint / "file").read_bytes() == b"kept"
    succeed("umount", mountpoint)
    assert " WARNING " not in (data_dir / "aspenfs.log").read_text()


def test_a_mount_in_the_background_is_on_its_own(workplace: Path) -> None:
    # A module of this name in the working directory must not be imported.
    (workplace / "trio.py").write_text("raise SystemExit('imported from the working directory')")
    done = run_aspenfs("mount", "mnt", "--data", "data", cwd=workplace)
    assert done.returncode == 0, done.stderr
    process = Path(f"/proc/{serving_process(workplace / 'data')}")
    assert (process / "cwd").readlink() == Path("/")
    assert (process / "fd" / "0").readlink() == Path(os.devnull)
    assert (process / "fd" / "1").readlink() == workplace / "data" / "aspenfs.log"
    assert os.getsid(int(process.name)) == int(process.name)
    succeed("umount", "mnt", cwd=workplace)


@OVER_EVERY_WAY
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_flushes_unmounts_and_exits_with_0(mounted: Mount, number: signal.Signals) -> None:
    (mounted.mountpoint / "file").write_bytes(b"written just now" * 1000)
    mounted.process.send_signal(number)
    assert mounted.wait() == 0
    assert mount_at(mounted.mountpoint) is None
    mounted.start()
    assert (mounted.mountpoint / "file").read_bytes() == b"written just now" * 1000


@OVER_EVERY_WAY
def test_a_signal_ends_a_mount_that_is_in_use(mounted: Mount) -> None:
    mounted.expected_log.append("ending the mount all the same: .* is in use by process")
    file = os.open(mounted.mountpoint / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.write(file, b"accepted")
        mounted.process.terminate()
        assert mounted.wait() == 0
        assert mount_at(mounted.mountpoint) is None
        with pytest.raises(OSError, match=CUT_OFF):
            os.write(file, b"refused")
    finally:
        with suppress(OSError):
            os.close(file)
    mounted.start()
    assert (mounted.mountpoint / "file").read_bytes() == b"accepted"


def test_two_signals_are_as_good_as_one(mounted: Mount) -> None:
    mounted.process.terminate()
    mounted.process.send_signal(signal.SIGINT)
    assert mounted.wait() == 0


@OVER_EVERY_WAY
def test_an_unmount_by_others_ends_the_process(mounted: Mount) -> None:
    (mounted.mountpoint / "file").write_bytes(b"kept")
    unmount(mounted.mountpoint)
    assert mounted.wait() == 0
    mounted.start()
    assert (mounted.mountpoint / "file").read_bytes() == b"kept"


@OVER_EVERY_WAY
def test_changes_to_a_mapped_file_survive_the_unmount(mounted: Mount) -> None:
    path = mounted.mountpoint / "file"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        mapped[5000:5005] = b"dirty"
    mounted.remount()
    assert path.read_bytes()[5000:5005] == b"dirty"


def test_umount_of_a_busy_mount_names_who_is_in_the_way(mounted: Mount) -> None:
    with (mounted.mountpoint / "file").open("wb"):
        done = run_aspenfs("umount", mounted.mountpoint)
        assert done.returncode == ExitCode.BUSY
        (line,) = done.stderr.decode().splitlines()
        assert f"in use by process {os.getpid()} " in line
        assert "--force" in line
    assert probe(mounted.mountpoint) is Answer.ALIVE


@OVER_EVERY_WAY
def test_force_unmounts_although_it_is_in_use(mounted: Mount) -> None:
    (mounted.mountpoint / "before").write_bytes(b"kept")
    file = os.open(mounted.mountpoint / "file", os.O_RDWR | os.O_CREAT)
    done = run_aspenfs("umount", "--force", mounted.mountpoint)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"may be lost" in done.stdout
    assert mount_at(mounted.mountpoint) is None
    assert mounted.wait() == 0
    with pytest.raises(OSError, match=CUT_OFF):
        os.close(file)
    mounted.start()
    assert (mounted.mountpoint / "before").read_bytes() == b"kept"


def test_force_leaves_other_mounts_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with mounting(tmp_path / "one") as one, mounting(tmp_path / "two") as two:
        succeed("umount", "--force", one.mountpoint)
        assert one.wait() == 0
        (two.mountpoint / "file").write_bytes(b"alive")


def test_force_frees_the_tree_of_a_process_that_hangs(mounted: Mount) -> None:
    mounted.process.send_signal(signal.SIGSTOP)
    done = run_aspenfs("umount", "--force", mounted.mountpoint)
    assert done.returncode == ExitCode.STILL_RUNNING
    assert f"kill -9 {mounted.process.pid}".encode() in done.stderr
    assert mount_at(mounted.mountpoint) is None
    mounted.process.send_signal(signal.SIGCONT)
    assert mounted.wait() == 0


@OVER_EVERY_WAY
def test_after_a_kill_the_next_mount_cleans_up(mounted: Mount) -> None:
    with (mounted.mountpoint / "file").open("wb") as file:
        file.write(b"synced")
        file.flush()
        os.fsync(file.fileno())
    mounted.kill()
    with pytest.raises(OSError, match=CUT_OFF):
        (mounted.mountpoint / "file").read_bytes()
    done = run_aspenfs("status")
    assert b"dead: its process is gone" in done.stdout

    mounted.start()
    assert (mounted.mountpoint / "file").read_bytes() == b"synced"
    assert "took away the dead mount" in mounted.log.read_text()


def test_umount_takes_a_dead_mount_away(mounted: Mount) -> None:
    mounted.kill()
    done = run_aspenfs("umount", mounted.mountpoint)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"its process was gone" in done.stdout
    assert mount_at(mounted.mountpoint) is None


def test_the_data_of_a_dead_mount_can_be_mounted_elsewhere(tmp_path: Path) -> None:
    with mounting(tmp_path) as first:
        first.kill()
        other = tmp_path / "other"
        other.mkdir()
        succeed("mount", other, "--data", first.data_dir)
        # The process that serves the data now must not be taken for the dead mount's.
        succeed("umount", first.mountpoint)
        assert probe(other) is Answer.ALIVE
        succeed("umount", other)


@OVER_EVERY_WAY
def test_an_aborted_connection_leaves_no_dead_mount(mounted: Mount) -> None:
    entry = mount_at(mounted.mountpoint)
    assert entry is not None
    connections = mounted.data_dir.parent / "connections"
    connections.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "none", connections], check=True)
    try:
        (connections / str(entry.device[1]) / "abort").write_text("1")
    finally:
        subprocess.run(["umount", connections], check=True)
    assert mounted.wait() == 0
    assert mount_at(mounted.mountpoint) is None


def test_a_bind_mount_keeps_the_mount_alive(mounted: Mount) -> None:
    bound = mounted.data_dir.parent / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", mounted.mountpoint, bound], check=True)
    done = run_aspenfs("umount", mounted.mountpoint)
    assert done.returncode == 0
    assert f"still mounted on {bound}".encode() in done.stdout
    (bound / "file").write_bytes(b"still served")
    succeed("umount", bound)
    assert mounted.wait() == 0


@contextmanager
def cloned_namespace() -> Iterator[None]:
    """Keep a copy of all mounts alive, as a container does."""
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", "echo; read end"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as clone:
        assert clone.stdout is not None
        assert clone.stdout.readline() == b"\n"
        try:
            yield
        finally:
            clone.communicate(timeout=60)


def test_umount_tells_of_a_mount_that_lives_on_in_a_container(mounted: Mount) -> None:
    with cloned_namespace():
        done = run_aspenfs("umount", mounted.mountpoint)
        assert done.returncode == ExitCode.STILL_RUNNING
        assert f"'kill {mounted.process.pid}'".encode() in done.stderr
        assert mount_at(mounted.mountpoint) is None
        assert mounted.process.poll() is None
    assert mounted.wait() == 0


def test_a_signal_ends_a_mount_that_a_container_holds(mounted: Mount) -> None:
    mounted.expected_log.append("is mounted elsewhere too")
    (mounted.mountpoint / "file").write_bytes(b"kept")
    with cloned_namespace():
        mounted.process.terminate()
        assert mounted.wait() == 0
    mounted.start()
    assert (mounted.mountpoint / "file").read_bytes() == b"kept"


def test_a_read_only_mount_changes_nothing(tmp_path: Path) -> None:
    with mounting(tmp_path) as mount:
        (mount.mountpoint / "file").write_bytes(b"kept")
    with mounting(tmp_path, "--read-only") as mount:
        assert (mount.mountpoint / "file").read_bytes() == b"kept"
        for change, path in (
            (Path.touch, mount.mountpoint / "new"),
            (Path.mkdir, mount.mountpoint / "new"),
            (Path.unlink, mount.mountpoint / "file"),
            (os.utime, mount.mountpoint / "file"),
        ):
            with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
                change(path)
        assert mount.status()["read_only"] is True


def test_volumes_of_one_directory_are_apart(tmp_path: Path) -> None:
    for volume in ("one", "two"):
        with mounting(tmp_path, f"--volume={volume}") as mount:
            assert list(mount.mountpoint.iterdir()) == []
            (mount.mountpoint / volume).touch()


def test_options_reach_the_kernel(tmp_path: Path) -> None:
    with mounting(tmp_path, "-o", "noatime,nodev,_netdev,x-systemd.automount") as mount:
        (line,) = [
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if f" {mount.mountpoint} " in line
        ]
        own, shared = line.split(" - ")
        assert "noatime" in own
        assert "nodev" in own
        assert "nosuid" not in own
        assert "default_permissions" in shared
        assert "allow_other" in shared
        assert f"aspenfs:{mount.data_dir}" in shared


def test_the_kernel_reads_far_ahead(mounted: Mount) -> None:
    entry = mount_at(mounted.mountpoint)
    assert entry is not None
    setting = Path("/sys/class/bdi/{}:{}/read_ahead_kb".format(*entry.device))
    assert int(setting.read_text()) == KERNEL_READAHEAD_KIB


def test_names_of_every_kind_can_be_mounted(workplace: Path) -> None:
    odd = " a,b\\c'd\"e\nf\u00e4[red]#%41"
    mountpoint = workplace / os.fsdecode(odd.encode() + b"\xff")
    data_dir = workplace / odd / ("long" * 50)
    mountpoint.mkdir(parents=True)
    done = run_aspenfs("mount", mountpoint, "--data", data_dir)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    (mountpoint / "file").write_bytes(b"x")
    for arguments in (
        ("status",),
        ("status", mountpoint, "--json"),
        ("info", mountpoint / "file"),
        ("info", mountpoint / "file", "--json"),
        ("kv", "scan", "--mount", mountpoint, "--keys-only"),
        ("fsck", "--mount", mountpoint),
    ):
        done = run_aspenfs(*arguments)
        assert (done.returncode, done.stderr) == (0, b""), arguments
    done = run_aspenfs("mount", mountpoint, "--data", data_dir)
    assert done.returncode == ExitCode.MOUNTPOINT_IN_USE
    assert len(done.stderr.splitlines()) == 1
    succeed("umount", mountpoint)


def test_an_interrupted_mount_leaves_nothing(workplace: Path) -> None:
    mountpoint, data_dir = workplace / "mnt", workplace / "data"
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "aspenfs", "mount", mountpoint, "--data", data_dir],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as command:
        # It makes the directory first of all; from then on the mount is on its way.
        while not data_dir.exists() and command.poll() is None:
            pass
        command.send_signal(signal.SIGINT)
        exit_code = command.wait(60)
    if exit_code == 0:  # it was ready before the signal came
        succeed("umount", mountpoint)
    assert mount_at(mountpoint) is None
    assert serving_process(data_dir) is None
