"""How the command that mounts deals with a serving process that does not do its part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from aspenfs.cli import background
from aspenfs.cli.background import mount_in_background
from aspenfs.config import ExitCode, HostedStore, MountConfig, Mounted
from aspenfs.errors import StartupError
from aspenfs.mountpoint import Answer

MOUNTED = Mounted(volume="v", read_only=False, addresses=["a:1"], ticket_file=None)
READY = (
    "import os, sys; os.write({fd}, b'"
    + json.dumps({"mounted": MOUNTED._asdict()}).replace("{", "{{").replace("}", "}}")
    + "'); os.close({fd}); sys.stdin.read()"
)
FAILED = """import os; os.write({fd}, b'{{"line": "no luck", "exit_code": 41}}')"""
MUTE = "import signal; signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
DYING = "raise SystemExit('the last\\nwords')"


class Servers:
    """Starts scripts in place of the serving process, and remembers them."""

    def __init__(self) -> None:
        self.script = MUTE
        self.started: list[subprocess.Popen[bytes]] = []

    def start(
        self, _config: MountConfig, report_to: int, said: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        server = subprocess.Popen(
            [sys.executable, "-c", self.script.format(fd=report_to)],
            stdin=subprocess.PIPE,
            stderr=said,
            pass_fds=(report_to,),
        )
        self.started.append(server)
        return server


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    servers = Servers()
    monkeypatch.setattr(background, "_start", servers.start)
    return servers


@pytest.fixture
def config(tmp_path: Path) -> MountConfig:
    return MountConfig(mountpoint=tmp_path / "mnt", store=HostedStore(data_dir=tmp_path / "data"))


def failure(config: MountConfig, servers: Servers) -> tuple[int, str]:
    with pytest.raises(StartupError) as caught:
        mount_in_background(config)
    (server,) = servers.started
    assert server.returncode is not None, "it still runs"
    assert server.stdin is not None
    server.stdin.close()
    return caught.value.exit_code, str(caught.value)


def test_a_mount_that_answers(config: MountConfig, servers: Servers) -> None:
    servers.script = READY
    used, mounted = mount_in_background(config)
    assert used.log_file == config.state_dir / "aspenfs.log"
    assert mounted == MOUNTED
    (server,) = servers.started
    server.communicate(timeout=60)  # its standard input ends, and with it the process


def test_a_failure_is_passed_on(config: MountConfig, servers: Servers) -> None:
    servers.script = FAILED
    assert failure(config, servers) == (41, "no luck")


def test_a_death_without_a_report(config: MountConfig, servers: Servers) -> None:
    servers.script = DYING
    code, line = failure(config, servers)
    assert code == ExitCode.INTERNAL
    assert "ended at once with 1 (words)" in line


def test_no_report_in_time(
    config: MountConfig, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MOUNT_READY_TIMEOUT_S", 0.01)
    code, line = failure(config, servers)
    assert code == ExitCode.MOUNT_SILENT
    assert "not ready" in line


def test_a_report_but_no_answer(
    config: MountConfig, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.script = READY
    monkeypatch.setattr(background, "probe", lambda _mountpoint: Answer.SILENT)
    code, line = failure(config, servers)
    assert code == ExitCode.MOUNT_SILENT
    assert "does not answer" in line


@pytest.mark.parametrize("script", [MUTE, DEAF])
def test_ctrl_c_ends_the_process_too(
    config: MountConfig, servers: Servers, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    def interrupt(_descriptor: int, _timeout_s: float) -> bool:
        raise KeyboardInterrupt

    servers.script = script
    monkeypatch.setattr(background, "wait_for_report", interrupt)
    monkeypatch.setattr(background, "FORCED_UNMOUNT_WAIT_S", 0.05)
    with pytest.raises(KeyboardInterrupt):
        mount_in_background(config)
    (server,) = servers.started
    assert server.returncode is not None
    assert server.stdin is not None
    server.stdin.close()
