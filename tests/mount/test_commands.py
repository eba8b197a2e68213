"""The commands that look inside, on a live mount and on a directory that nobody serves."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aspenfs import limits
from aspenfs.cli.output import escaped
from aspenfs.config import ExitCode
from aspenfs.keys import Keys
from aspenfs.metadata import Times, encode_times
from aspenfs.types import Ino
from aspenkv.limits import VALUE_BYTES_MAX
from tests.mount.mounts import TIMEOUT_S, Mount, eventually, run_aspenfs, succeed

pytestmark = pytest.mark.mount

KEYS = Keys("default")


def json_of(*arguments: str | Path) -> Any:
    return json.loads(succeed(*arguments, "--json"))


def test_status_of_one_mount_and_of_all(mounted: Mount) -> None:
    (mounted.mountpoint / "file").write_bytes(b"x")
    (status,) = json_of("status", mounted.mountpoint)
    assert status["state"] == "mounted"
    assert status["mountpoint"] == str(mounted.mountpoint)
    assert status["data"] == str(mounted.data_dir)
    assert status["volume"] == "default"
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", status["uuid"])
    assert status["format_version"] == 1
    assert status["pid"] == mounted.process.pid
    assert status["uptime_s"] > 0
    assert status["store"]["engine"] == "rocksdb"
    assert status["store"]["revision"] > 0
    assert status["store"]["available_bytes"] > 0
    assert set(status["statistics"]["caches"]) == {"names", "read", "meta", "scan"}
    assert status["statistics"]["transactions"]["commits"] > 0
    assert status["bugs"] == 0
    assert status["pid"] in [each.get("pid") for each in json_of("status")]
    text = succeed("status", mounted.mountpoint).decode()
    assert re.search(rf"^data +{re.escape(str(mounted.data_dir))}$", text, re.MULTILINE)
    assert re.search(r"^dirty +\d+", text, re.MULTILINE)


def test_info_of_every_kind_of_file(mounted: Mount) -> None:
    small, large = mounted.mountpoint / "small", mounted.mountpoint / "large"
    small.write_bytes(b"x" * 10)
    os.setxattr(small, "user.colour", b"green")
    os.utime(small, ns=(1, -1))
    with large.open("wb") as file:
        file.truncate(limits.CHUNK_BYTES * 5)
        file.write(bytes(limits.CHUNK_BYTES + 1))
    (mounted.mountpoint / "link").symlink_to("small")
    (mounted.mountpoint / "dir").mkdir()
    os.mknod(mounted.mountpoint / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))

    info = json_of("info", small)
    ino = Ino(small.stat().st_ino)
    assert (info["ino"], info["content"], info["mtime_ns"]) == (ino, "inline", -1)
    assert info["record"]["atime_ns"] == 1
    assert info["record"]["mode"] == small.stat().st_mode
    assert info["xattrs"] == {"user.colour": 5}
    assert {stored["key"] for stored in info["keys"]} == {
        escaped(KEYS.inode(ino)),
        escaped(KEYS.times(ino)),
        escaped(KEYS.xattr(ino, b"user.colour")),
    }

    info = json_of("info", large)
    assert (info["content"], info["chunk_count"]) == ("chunks", 2)
    assert info["record"]["allocated_bytes"] == 2 * limits.CHUNK_BYTES
    text = succeed("info", large).decode()
    assert re.search(r"^content +2 chunks$", text, re.MULTILINE)
    assert text.count("\nkey ") == 4

    assert json_of("info", mounted.mountpoint / "link")["content"] == "symlink target"
    assert json_of("info", mounted.mountpoint / "dir")["content"] == "none"
    assert "1:3" in succeed("info", mounted.mountpoint / "null").decode()
    assert "1970-01-01 00:00:00.000000001 UTC" in succeed("info", small).decode()


def test_info_counts_every_chunk_and_names_some(mounted: Mount) -> None:
    path = mounted.mountpoint / "file"
    path.write_bytes(bytes(limits.CHUNK_BYTES * (limits.INFO_CHUNKS_NAMED_MAX + 3)))
    info = json_of("info", path)
    assert info["chunk_count"] == limits.INFO_CHUNKS_NAMED_MAX + 3
    assert len(info["keys"]) == limits.INFO_CHUNKS_NAMED_MAX + 2


@pytest.mark.parametrize("is_mounted", [True, False])
def test_keys_are_written_and_read_back(mounted: Mount, is_mounted: bool) -> None:
    if not is_mounted:
        mounted.end()
    data = ("--data", mounted.data_dir)
    raw = bytes(range(256)) * 3
    succeed("kv", "put", *data, "app:raw", "-", stdin=raw)
    succeed("kv", "put", *data, r"app:\x00\\", r"a\x0ab\\x41")
    succeed("kv", "put", *data, "app:empty", "")
    assert succeed("kv", "get", *data, "app:raw", "--raw") == raw
    assert succeed("kv", "get", *data, r"app:\x00\\") == b"a\\x0ab\\\\x41\n"
    assert succeed("kv", "get", *data, r"app:\x00\\", "--raw") == b"a\nb\\x41"
    records = json_of("kv", "scan", *data, "app:")
    assert [record["key"] for record in records] == [r"app:\x00\\", "app:empty", "app:raw"]
    assert [len(record["value"]) > 0 for record in records] == [True, False, True]
    lines = succeed("kv", "scan", *data, "app:", "--reverse", "--limit=2").decode().splitlines()
    assert [line.split()[1] for line in lines] == ["app:raw", "app:empty"]
    assert lines[0].endswith("...")
    assert not any(record["value"] for record in json_of("kv", "scan", *data, "--keys-only"))
    succeed("kv", "delete", *data, "app:raw")
    succeed("kv", "delete", *data, "app:raw")
    done = run_aspenfs("kv", "get", *data, "app:raw")
    assert done.returncode == ExitCode.KEY_ABSENT
    assert b"there is no key app:raw" in done.stderr


def test_a_value_that_is_too_large_is_refused(mounted: Mount) -> None:
    data = ("--mount", mounted.mountpoint)
    succeed("kv", "put", *data, "app:most", "-", stdin=bytes(VALUE_BYTES_MAX))
    assert len(succeed("kv", "get", *data, "app:most", "--raw")) == VALUE_BYTES_MAX
    done = run_aspenfs("kv", "put", *data, "app:more", "-", stdin=bytes(VALUE_BYTES_MAX + 1))
    assert done.returncode == ExitCode.FAILURE
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_has_enough_is_no_reason_for_a_traceback(mounted: Mount) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "aspenfs", "kv", "scan", "--mount", mounted.mountpoint],
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert (done.returncode, done.stderr) == (ExitCode.FAILURE, b"")


def test_the_mount_sees_what_is_put_beside_it(mounted: Mount) -> None:
    """Another client's commit reaches the kernel, which would keep its copy for an hour."""
    path = mounted.mountpoint / "file"
    path.touch()
    ino = Ino(path.stat().st_ino)
    times = encode_times(Times(1_234_567_890_000_000_001, 7))
    data = ("--data", mounted.data_dir)
    succeed("kv", "put", *data, escaped(KEYS.times(ino)), "-", stdin=times)
    eventually(lambda: path.stat().st_mtime_ns == 1_234_567_890_000_000_001, "the new mtime")
    assert path.stat().st_ctime_ns == 7


def test_fsck_on_a_live_mount_and_after_it(mounted: Mount) -> None:
    for number in range(20):
        (mounted.mountpoint / f"file{number}").write_bytes(bytes(number * 1000))
    for arguments in (("--mount", mounted.mountpoint), ("--data", mounted.data_dir)):
        assert succeed("fsck", *arguments).endswith(b": clean\n")
    mounted.end()
    report = json_of("fsck", "--data", mounted.data_dir)
    assert report["problem_count"] == 0
    assert report["counts"]["dentries"] == 20

    key = escaped(KEYS.dentry(Ino(1), b"file3"))
    succeed("kv", "delete", "--data", mounted.data_dir, key)
    done = run_aspenfs("fsck", "--data", mounted.data_dir)
    assert done.returncode == ExitCode.CHECK_FOUND_PROBLEMS
    assert b"unreachable: " in done.stdout
    assert done.stdout.endswith(b" problems\n")


def test_every_command_explains_itself() -> None:
    for command in ("", "mount", "umount", "status", "info", "fsck", "kv"):
        text = succeed(*command.split(), "--help").decode()
        assert "Examples:" in text
        assert f"aspenfs {command}".strip() in text
    for command in ("get", "put", "delete", "scan"):
        assert f"aspenfs kv {command} " in succeed("kv", command, "--help").decode()
    assert succeed("--version").startswith(b"aspenfs, version ")
