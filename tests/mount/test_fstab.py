"""``mount.aspenfs`` as mount(8) calls it, and mount(8) itself."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aspenfs.mountpoint import mount_at
from tests.mount.mounts import TIMEOUT_S, succeed

pytestmark = pytest.mark.mount

HELPER = (sys.executable, "-P", "-c", "from aspenfs.cli import mount_helper; mount_helper()")
MOUNT_FAILURE = 32  # mount(8)


def run_helper(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*HELPER, *arguments], capture_output=True, timeout=TIMEOUT_S, check=False
    )


def test_a_line_of_fstab_is_mounted(workplace: Path) -> None:
    mountpoint = workplace / "mnt"
    words = "rw,_netdev,nofail,x-systemd.requires=network.target,user=joe,noatime"
    done = run_helper(workplace / "data", mountpoint, "-n", "-o", words)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    entry = mount_at(mountpoint)
    assert entry is not None
    assert entry.state_dir == workplace / "data"
    succeed("umount", mountpoint)
    # What the mount table shows as the source is one, too.
    done = run_helper(entry.source, mountpoint, "-v")
    assert done.returncode == 0
    assert f"data     {workplace / 'data'}".encode() in done.stdout
    succeed("umount", mountpoint)


def test_a_data_directory_among_the_options(workplace: Path) -> None:
    mountpoint = workplace / "mnt"
    done = run_helper("aspenfs", mountpoint, "-o", f"data={workplace / 'data'},volume=v", "-v")
    assert done.returncode == 0, done.stderr
    assert b"(volume v)" in done.stdout
    succeed("umount", mountpoint)


def test_a_rehearsal_mounts_nothing(workplace: Path) -> None:
    done = run_helper(workplace / "data", workplace / "mnt", "-f")
    assert done.returncode == 0
    assert mount_at(workplace / "mnt") is None
    assert not (workplace / "data").exists()


def test_failures_are_mounts_failures(workplace: Path) -> None:
    data_dir, mountpoint = workplace / "data", workplace / "mnt"
    done = run_helper(data_dir, workplace / "missing")
    assert done.returncode == MOUNT_FAILURE
    assert b"'mkdir -p " in done.stderr
    assert run_helper(data_dir, mountpoint, "-o", "nonsense").returncode == 1
    assert run_helper("sda1", mountpoint).returncode == 1
    assert run_helper(data_dir).returncode == 1
    assert not data_dir.exists()


def test_sloppy_overlooks_unknown_words(workplace: Path) -> None:
    done = run_helper(workplace / "data", workplace / "mnt", "-s", "-o", "nonsense,quux=1")
    assert done.returncode == 0, done.stderr
    succeed("umount", workplace / "mnt")


def test_mount_itself_finds_the_helper(workplace: Path) -> None:
    """The way of ``mount -a``, in a world where the helper is installed and fstab has a line."""
    if os.geteuid() != 0:
        pytest.fail("this test makes a mount namespace; run it as root", pytrace=False)
    mountpoint, data_dir = workplace / "mnt", workplace / "data"
    (workplace / "fstab").write_text(
        f"{data_dir} {mountpoint} aspenfs defaults,nofail,noauto 0 0\n"
    )
    helper = workplace / "mount.aspenfs"
    helper.write_text(f'#!/bin/sh\nexec {shlex.join(HELPER)} "$@"\n')
    helper.chmod(0o755)
    # mount(8) looks for helpers in fixed places only: lay a layer with ours over one of them.
    aspenfs = shlex.join([sys.executable, "-P", "-m", "aspenfs"])
    script = f"""
        set -e
        mount -t tmpfs none {workplace}/upper
        mkdir {workplace}/upper/new {workplace}/upper/work
        cp {helper} {workplace}/upper/new/
        mount -t overlay none /usr/sbin \\
            -o lowerdir=/usr/sbin,upperdir={workplace}/upper/new,workdir={workplace}/upper/work
        mount --bind {workplace}/fstab /etc/fstab
        mount {mountpoint}
        echo content > {mountpoint}/file
        findmnt -n -o FSTYPE {mountpoint}
        {aspenfs} umount {mountpoint}
        mount -t aspenfs -o ro {data_dir} {mountpoint}
        cat {mountpoint}/file
        {aspenfs} umount {mountpoint}
    """
    (workplace / "upper").mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script],
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"fuse.aspenfs\ncontent\n"
