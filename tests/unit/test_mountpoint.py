from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenfs.config import ExitCode, HostedStore, MountConfig
from aspenfs.errors import StartupError
from aspenfs.mountpoint import (
    Answer,
    MountEntry,
    mount_at,
    mount_of_device,
    mountinfo,
    parse_mountinfo,
    preparation,
    prepare_mountpoint,
    probe,
    read_mounts,
    resolve,
    unmount,
)

TABLE = rb"""
22 28 0:21 / /proc rw,relatime - proc proc rw
28 1 254:0 / / rw,relatime shared:1 master:7 - ext4 /dev/vda rw
90 28 0:52 / /mnt/a\040b\134c\012d rw,nosuid shared:2 - fuse.aspenfs aspenfs:/srv/x%20y rw,user_id=0
91 28 0:53 / /mnt/z rw - fuse.sshfs host: rw
92 91 0:54 / /mnt/z rw - fuse.aspenfs aspenfs:/srv/z rw
a line of another form
1 2 0:1 / /too/short rw -
93 28 no:device / /x rw - tmpfs none rw
"""


def test_the_mount_table_is_parsed() -> None:
    entries = parse_mountinfo(TABLE)
    assert [entry.mount_id for entry in entries] == [22, 28, 90, 91, 92]
    assert entries[1] == MountEntry(28, (254, 0), Path("/"), "ext4", "/dev/vda")
    assert entries[2] == MountEntry(
        90, (0, 52), Path("/mnt/a b\\c\nd"), "fuse.aspenfs", "aspenfs:/srv/x%20y"
    )


def test_only_our_mounts_have_a_data_directory() -> None:
    data_dirs = [entry.state_dir for entry in parse_mountinfo(TABLE)]
    assert data_dirs == [None, None, Path("/srv/x y"), None, Path("/srv/z")]


def test_of_two_mounts_on_one_place_the_upper_one_counts() -> None:
    entry = mount_at(Path("/mnt/z"), parse_mountinfo(TABLE))
    assert entry is not None
    assert entry.mount_id == 92
    assert mount_at(Path("/mnt"), parse_mountinfo(TABLE)) is None


@given(st.binary())
def test_no_mount_table_is_too_odd_to_parse(text: bytes) -> None:
    parse_mountinfo(text)


def test_the_real_table_has_proc() -> None:
    assert any(entry.mountpoint == Path("/proc") for entry in read_mounts())
    entry = mount_of_device(Path("/proc").stat().st_dev)
    assert entry is not None
    assert entry.filesystem_type == "proc"
    assert mount_of_device(os.makedev(4095, 1)) is None


def test_a_path_is_resolved_up_to_its_mountpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    mountpoint = tmp_path / "real" / "mnt"
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "direct").symlink_to("link/mnt")
    table = f"9 1 0:9 / {mountpoint} rw - fuse.aspenfs aspenfs:/x rw\n"
    fake = tmp_path / "mountinfo"
    fake.write_text(table)
    monkeypatch.setattr(mountinfo, "_MOUNTINFO", fake)
    # The mountpoint does not exist, so that a look at it would be noticed: it would be no link.
    assert resolve(tmp_path / "link" / "mnt") == mountpoint
    assert resolve(tmp_path / "direct") == mountpoint
    monkeypatch.chdir(tmp_path / "real")
    assert resolve(Path("mnt")) == mountpoint
    assert resolve(Path("mnt/..")) == tmp_path / "real"
    assert resolve(Path("/")) == Path("/")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert resolve(tmp_path / "a").parent == tmp_path


def config_for(tmp_path: Path, mountpoint: Path, *, nonempty: bool = False) -> MountConfig:
    return MountConfig(
        mountpoint=mountpoint, store=HostedStore(data_dir=tmp_path / "data"), nonempty=nonempty
    )


def refusal(config: MountConfig) -> tuple[int, str]:
    with pytest.raises(StartupError) as caught:
        prepare_mountpoint(config)
    assert "\n" not in str(caught.value)
    return caught.value.exit_code, str(caught.value)


def test_an_empty_directory_is_fine(tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    assert prepare_mountpoint(config_for(tmp_path, mountpoint)) is False


def test_a_missing_mountpoint_comes_with_its_cure(tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    code, line = refusal(config_for(tmp_path, mountpoint))
    assert code == ExitCode.MOUNTPOINT_MISSING
    assert f"mkdir -p {mountpoint}" in line


def test_a_file_is_no_mountpoint(tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.touch()
    assert refusal(config_for(tmp_path, mountpoint))[0] == ExitCode.MOUNTPOINT_NOT_DIRECTORY
    below = mountpoint / "below"
    assert refusal(config_for(tmp_path, below))[0] == ExitCode.MOUNTPOINT_MISSING


def test_a_full_directory_is_refused_unless_asked_for(tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    (mountpoint / "precious").touch()
    code, line = refusal(config_for(tmp_path, mountpoint))
    assert code == ExitCode.MOUNTPOINT_NOT_EMPTY
    assert "'precious'" in line
    assert prepare_mountpoint(config_for(tmp_path, mountpoint, nonempty=True)) is False


def test_data_and_mountpoint_must_not_lie_in_each_other(tmp_path: Path) -> None:
    (tmp_path / "data" / "mnt").mkdir(parents=True)
    for mountpoint in (tmp_path, tmp_path / "data", tmp_path / "data" / "mnt"):
        code, line = refusal(config_for(tmp_path, mountpoint, nonempty=True))
        assert code == ExitCode.USAGE
        assert "--data" in line


def test_a_silent_mount_is_told_from_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe(tmp_path) is Answer.ALIVE
    assert probe(tmp_path / "absent") is Answer.ALIVE  # somebody answered
    released = threading.Event()

    monkeypatch.setattr(os, "statvfs", lambda _path: released.wait(60))
    assert probe(tmp_path, timeout_s=0.01) is Answer.SILENT
    released.set()


def test_allow_other_needs_its_own_line_in_fuse_conf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(preparation, "_FUSE_CONF", conf)
    assert not preparation._user_may_allow_other()
    conf.write_text("#user_allow_other\nmount_max = 9\n")
    assert not preparation._user_may_allow_other()
    conf.write_text("mount_max = 9\n  user_allow_other \n")
    assert preparation._user_may_allow_other()


def test_what_is_not_mounted_cannot_be_unmounted(tmp_path: Path) -> None:
    with pytest.raises((OSError, StartupError)):
        unmount(tmp_path)
