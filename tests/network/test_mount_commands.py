"""The commands that look inside, on a mount with a ticket and on the server of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aspenfs.config import ExitCode
from tests.mount.mounts import Mount, mounting, run_aspenfs, succeed
from tests.network.processes import Server, serving

pytestmark = pytest.mark.mount


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


@pytest.fixture
def mount(server: Server, tmp_path: Path) -> Iterator[Mount]:
    with mounting(tmp_path / "mount", ticket_file=server.ticket_file) as mount:
        yield mount


def fail(code: ExitCode, cure: str, *arguments: str | Path) -> None:
    done = run_aspenfs(*arguments)
    (line,) = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (code, b""), line
    assert cure in line


def json_of(*arguments: str | Path) -> Any:
    return json.loads(succeed(*arguments, "--json"))


def test_a_mount_with_a_ticket_lets_look_but_not_touch(mount: Mount) -> None:
    (mount.mountpoint / "file").write_bytes(b"content")
    here = ("--mount", mount.mountpoint)
    assert json_of("info", mount.mountpoint / "file")["record"]["size"] == 7
    assert succeed("fsck", *here).endswith(b": clean\n")
    assert [each["name"] for each in json_of("volume", "list", *here)] == ["default"]
    for change in (("put", "app:key", "value"), ("delete", "app:key")):
        fail(ExitCode.FAILURE, "use --ticket", "kv", *change, *here)
    fail(ExitCode.TICKET_UNREADABLE, "use --ticket", "volume", "create", "photos", *here)
    there = f"--ticket={mount.ticket_file}"
    succeed("kv", "put", "app:key", "value", there)
    assert succeed("kv", "get", "app:key", *here) == b"value\n"


def test_volumes_are_made_and_listed_by_ticket(server: Server, tmp_path: Path) -> None:
    admin = f"--ticket={server.ticket_file}"
    succeed("volume", "create", "photos", admin)
    fail(ExitCode.FAILURE, "exists", "volume", "create", "photos", admin)
    succeed("volume", "create", "music", admin)
    assert [each["name"] for each in json_of("volume", "list", admin)] == ["music", "photos"]

    narrow = tmp_path / "photos.ticket"
    narrow.write_bytes(succeed("ticket", "create", admin, "--volume=photos", "--read-only"))
    assert [each["name"] for each in json_of("volume", "list", f"--ticket={narrow}")] == ["photos"]
    fail(ExitCode.TICKET_TOO_WEAK, "", "volume", "create", "books", f"--ticket={narrow}")
    fail(ExitCode.TICKET_TOO_WEAK, "admin.ticket", "ticket", "list", f"--ticket={narrow}")


def test_a_volume_is_made_beside_a_mount_that_hosts_its_data(tmp_path: Path) -> None:
    with mounting(tmp_path) as mount:
        succeed("volume", "create", "photos", f"--data={mount.data_dir}")
        found = json_of("volume", "list", "--mount", mount.mountpoint)
        assert [each["name"] for each in found] == ["default", "photos"]


def test_data_that_a_server_holds_is_reached_by_its_ticket(server: Server) -> None:
    cure = f"use --ticket {server.ticket_file}"
    for command in (("fsck",), ("kv", "scan")):
        fail(ExitCode.DATA_LOCKED, cure, *command, f"--data={server.data_dir}")
