"""Mounting with tickets: good ones of every kind, and each way in which one can be no good."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from aspenfs.config import TICKET_VARIABLE, ExitCode
from aspenfs.control import serving_process
from aspenfs.mountpoint import mount_at
from aspenkv.tickets import Ticket, format_ticket, parse_ticket
from tests.mount.mounts import (
    TIMEOUT_S,
    eventually,
    mounting,
    run_aspenfs,
    succeed,
)
from tests.network.processes import Server, serving

pytestmark = pytest.mark.mount

HELPER: Final = (sys.executable, "-P", "-c", "from aspenfs.cli import mount_helper; mount_helper()")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


def environment(ticket: str) -> Mapping[str, str]:
    return {**os.environ, TICKET_VARIABLE: ticket}


def make_ticket(server: Server, path: Path, *arguments: str) -> Path:
    """Have the command make a ticket; return the file that holds it."""
    path.write_bytes(succeed("ticket", "create", f"--ticket={server.ticket_file}", *arguments))
    return path


def fail_to_mount(
    place: Path, code: ExitCode, cure: str, *arguments: str | Path, **options: Any
) -> None:
    """Mount ``mnt`` of a place in the background and in the foreground, and fail both times."""
    (place / "mnt").mkdir(exist_ok=True)
    for more in ((), ("--foreground",)):
        done = run_aspenfs("mount", place / "mnt", "--timeout=1", *arguments, *more, **options)
        output = done.stderr.decode()
        assert (done.returncode, done.stdout) == (code, b""), output
        # In the foreground the log comes to the same place.
        said = [line for line in output.splitlines() if line.startswith("aspenfs: ")]
        assert len(said) == 1, output
        assert len(output.splitlines()) == 1 or more, output
        assert re.search(cure, said[0]), output
        assert "Traceback" not in output
        assert mount_at(place / "mnt") is None


# --- no ticket, or none that can be read --------------------------------------------------------


def test_a_file_that_is_not_there(workplace: Path) -> None:
    cure = r"cannot be read \(No such file.*--ticket"
    fail_to_mount(workplace, ExitCode.TICKET_UNREADABLE, cure, f"--ticket={workplace / 'no'}")
    fail_to_mount(workplace, ExitCode.TICKET_UNREADABLE, "directory", f"--ticket={workplace}")


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        (b"", "is empty: ask for a new one"),
        (b"\n\n", "is empty"),
        (b"the cat sat on the mat\n", "a ticket is one line that starts with aspen1"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "a ticket is one line"),
        (bytes(10**6), "more than 4096 characters are no ticket"),
        (b"aspen1.AAAA", "damaged or cut off: copy the whole line"),
        (b"aspen2.AAAA", "newer version of aspenfs: install"),
    ],
)
def test_a_text_that_is_no_ticket(workplace: Path, text: bytes, cure: str) -> None:
    ticket_file = workplace / "ticket"
    ticket_file.write_bytes(text)
    fail_to_mount(workplace, ExitCode.TICKET_DAMAGED, cure, f"--ticket={ticket_file}")


def test_a_ticket_that_was_cut_off(workplace: Path, server: Server) -> None:
    text = server.ticket_file.read_text()
    for length in (20, len(text) - 5):
        cut = environment(text[:length])
        cure = rf"\${TICKET_VARIABLE}: .*damaged or cut off"
        fail_to_mount(workplace, ExitCode.TICKET_DAMAGED, cure, env=cut)


def test_a_ticket_and_a_data_directory(workplace: Path, server: Server) -> None:
    arguments = (f"--ticket={server.ticket_file}", f"--data={workplace / 'data'}")
    fail_to_mount(workplace, ExitCode.USAGE, "exclude each other", *arguments)
    arguments = (f"--ticket={server.ticket_file}", "--listen=127.0.0.1:0")
    fail_to_mount(workplace, ExitCode.USAGE, "leave them out", *arguments)


# --- tickets that the server does not accept ----------------------------------------------------


def test_a_ticket_that_the_server_does_not_know(workplace: Path, server: Server) -> None:
    good = server.ticket
    for bad in (good._replace(ticket_id=bytes(16)), good._replace(secret=bytes(32))):
        fail_to_mount(
            workplace, ExitCode.TICKET_UNKNOWN, "ask for a new one", env=environment_of(bad)
        )


def environment_of(ticket: Ticket) -> Mapping[str, str]:
    return environment(format_ticket(ticket))


def test_a_ticket_that_was_revoked(workplace: Path, server: Server) -> None:
    ticket_file = make_ticket(server, workplace / "ticket")
    revoke(server, ticket_file)
    fail_to_mount(workplace, ExitCode.TICKET_REVOKED, "revoked: ask for", f"--ticket={ticket_file}")


def revoke(server: Server, ticket_file: Path) -> None:
    ticket_id = parse_ticket(ticket_file.read_text()).ticket_id.hex()
    succeed("ticket", "revoke", ticket_id, f"--ticket={server.ticket_file}")


def test_a_ticket_whose_time_is_over(workplace: Path, server: Server) -> None:
    ticket_file = make_ticket(server, workplace / "ticket", "--expires=1s")
    end_s = time.monotonic() + 1
    eventually(lambda: time.monotonic() > end_s, "the ticket has expired")
    fail_to_mount(workplace, ExitCode.TICKET_EXPIRED, "expired: ask for", f"--ticket={ticket_file}")


def test_a_ticket_for_another_volume(workplace: Path, server: Server) -> None:
    ticket_file = make_ticket(server, workplace / "ticket", "--volume=photos")
    arguments = (f"--ticket={ticket_file}", "--volume=music")
    cure = "for volume 'photos', not 'music': leave out --volume"
    fail_to_mount(workplace, ExitCode.TICKET_OF_OTHER_VOLUME, cure, *arguments)


def test_a_read_only_ticket_for_a_volume_that_is_not_there(workplace: Path, server: Server) -> None:
    ticket_file = make_ticket(server, workplace / "ticket", "--read-only", "--volume=photos")
    fail_to_mount(workplace, ExitCode.DATA_MISSING, "'photos'", f"--ticket={ticket_file}")


# --- servers that are not the ticket's ----------------------------------------------------------


def test_a_server_with_another_key(workplace: Path, server: Server) -> None:
    kept = environment(server.ticket_file.read_text())
    server.listen = f"127.0.0.1:{server.port}"
    server.stop()
    shutil.rmtree(server.data_dir)
    server.start()
    fail_to_mount(workplace, ExitCode.SERVER_KEY_WRONG, "key", env=kept)


def test_a_server_that_does_not_run(workplace: Path, server: Server) -> None:
    server.stop()
    start_s = time.monotonic()
    fail_to_mount(
        workplace,
        ExitCode.SERVER_UNREACHABLE,
        f"127.0.0.1:{server.port}",
        f"--ticket={server.ticket_file}",
    )
    assert time.monotonic() - start_s < TIMEOUT_S / 4


# --- good tickets -------------------------------------------------------------------------------


def test_a_read_only_ticket_makes_a_read_only_mount(workplace: Path, server: Server) -> None:
    with mounting(workplace / "owner", ticket_file=server.ticket_file) as owner:
        (owner.mountpoint / "file").write_bytes(b"content")
        ticket_file = make_ticket(server, workplace / "ticket", "--read-only")
        mountpoint = workplace / "mnt"
        output = succeed("mount", mountpoint, f"--ticket={ticket_file}").decode()
        assert "(volume default, read-only)" in output
        assert (mountpoint / "file").read_bytes() == b"content"
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            (mountpoint / "new").touch()
        assert "mounted, read-only" in succeed("status", mountpoint).decode()
        succeed("umount", mountpoint)


def test_a_ticket_in_the_environment(workplace: Path, server: Server) -> None:
    mountpoint, text = workplace / "mnt", server.ticket_file.read_text().strip()
    succeed("mount", mountpoint, env=environment(text))
    (mountpoint / "file").touch()
    commands = [each.read_bytes() for each in Path("/proc").glob("[0-9]*/cmdline")]
    assert any(os.fsencode(mountpoint) in command for command in commands)
    assert not any(text.encode() in command for command in commands)
    state_dir = Path(json.loads(succeed("status", "--json", mountpoint))[0]["data"])
    succeed("umount", mountpoint)
    assert text not in (state_dir / "aspenfs.log").read_text()


def test_a_ticket_in_fstab(workplace: Path, server: Server) -> None:
    mountpoint = workplace / "mnt"
    words = f"ticket={server.ticket_file},_netdev,nofail,timeout=20"
    done = subprocess.run(
        [*HELPER, "aspenfs", mountpoint, "-v", "-o", words],
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"server   127.0.0.1:{server.port} (volume default)".encode() in done.stdout
    (mountpoint / "file").touch()
    succeed("umount", mountpoint)


def test_the_state_of_a_mount_goes_with_it(workplace: Path, server: Server) -> None:
    with mounting(workplace / "one", ticket_file=server.ticket_file) as mount:
        assert serving_process(mount.state_dir) == mount.process.pid
        assert mount.state_dir.stat().st_mode & 0o777 == 0o700
        mount.end()
        assert not mount.state_dir.exists()


def test_a_mount_whose_ticket_is_revoked_is_cut_off(workplace: Path, server: Server) -> None:
    ticket_file = make_ticket(server, workplace / "ticket")
    with mounting(workplace / "one", "--timeout=2", ticket_file=ticket_file) as mount:
        mount.expected_log += [
            "revoked",
            "no server can be reached",
            "power cut",
            "its lease will lapse",
        ]
        (mount.mountpoint / "file").touch()
        revoke(server, ticket_file)
        with pytest.raises(OSError, match=os.strerror(errno.EACCES)):
            (mount.mountpoint / "new").touch()
        succeed("umount", mount.mountpoint)
        assert mount.wait() == 0
