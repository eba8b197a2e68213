"""Where the control socket is, and who is at its other end."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

SOCKET_NAME: Final = "control.sock"

_UCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Connection(Protocol):
    """A connected socket, plain or trio's."""

    def getsockopt(self, level: int, option: int, buffersize: int, /) -> bytes:
        """Return a socket option of at most ``buffersize`` bytes."""


class Peer(NamedTuple):
    """Who holds the other end of a connection, as the kernel knows it."""

    pid: int
    uid: int
    gid: int


@contextmanager
def socket_address(data_dir: Path) -> Iterator[str]:
    """Yield an address for the socket of a data directory, valid inside the ``with`` block only.

    A socket's address holds 107 bytes and a path may be far longer, so the address goes by way of
    an open descriptor of the directory.

    Raises:
        OSError: there is no such directory.
    """
    descriptor = os.open(data_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


def peer_of(connection: Connection) -> Peer:
    """Return who is at the other end: who connected or, seen by a client, who listened."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Peer(*_UCRED.unpack(data))


def serving_process(data_dir: Path) -> int | None:
    """Return the pid of the process that serves a data directory now; None if there is none.

    Answers even when that process hangs: the kernel accepts the connection for it.

    Raises:
        PermissionError: the directory or its socket belongs to someone else.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            with socket_address(data_dir) as address:
                connection.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return None
        return peer_of(connection).pid
