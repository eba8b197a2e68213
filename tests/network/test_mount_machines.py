"""Two mounts and a server, each on a machine with a network of its own."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Final

import pytest

from aspenfs.limits import POOL_CONNECTIONS_MAX
from tests.mount.mounts import Mount, eventually, mounting, succeed
from tests.network.namespaces import machines
from tests.network.processes import serving

pytestmark = pytest.mark.mount

LARGE: Final = bytes(range(256)) * 4096  # 1 MiB
FILES: Final = 50


def test_two_machines_share_a_volume_on_a_third(tmp_path: Path) -> None:
    with machines(3) as (host, first, second):
        address = f"{host.address}:7400"
        with (
            serving(tmp_path, listen=address, prefix=host.prefix) as server,
            mounting(tmp_path / "one", ticket_file=server.ticket_file, prefix=first.prefix) as one,
            mounting(tmp_path / "two", ticket_file=server.ticket_file, prefix=second.prefix) as two,
        ):
            see_each_other(one, two)
            see_each_other(two, one)
            for mount in (one, two):
                (status,) = json.loads(succeed("status", "--json", mount.mountpoint))
                assert status["addresses"] == [address]
                sessions = status["store"]["sessions"]
                hosts = {session["address"].rpartition(":")[0] for session in sessions}
                assert hosts == {first.address, second.address}
                for session in sessions:
                    assert 1 <= session["connections"] <= POOL_CONNECTIONS_MAX


def see_each_other(writer: Mount, reader: Mount) -> None:
    """Have one make, write, move and remove, and look from the other until it sees that."""
    theirs, ours = writer.mountpoint / "directory", reader.mountpoint / "directory"
    theirs.mkdir()
    for number in range(FILES):
        (theirs / f"{number}").write_text(f"content {number}")
    names = sorted(map(str, range(FILES)))
    eventually(lambda: sorted(_names(ours)) == names, "all names are there")
    _see(ours / "0", b"content 0")
    _see(ours / "7", b"content 7")
    (theirs / "large").write_bytes(LARGE)
    _see(ours / "large", LARGE)
    (theirs / "large").write_bytes(b"changed")
    _see(ours / "large", b"changed")
    (theirs / "7").rename(theirs / "0")
    _see(ours / "0", b"content 7")
    for path in ours.iterdir():
        path.unlink()
    eventually(lambda: not _names(theirs), "the other has removed all")
    theirs.rmdir()
    eventually(lambda: not ours.exists(), "the other has removed it")


def _see(path: Path, content: bytes) -> None:
    eventually(lambda: _content(path) == content, f"{path} has what the other wrote")


def _content(path: Path) -> bytes | None:
    """Read a file that the other may be replacing: nothing waits for what it did."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ESTALE}:
            raise
        return None


def _names(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.exists() else []
