"""Servers and relays for tests: each in a child process, every wait bounded, none left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from aspenkv.tickets import Endpoint, Ticket, format_ticket, parse_ticket

TIMEOUT_S: Final = 60.0
_PYTHON: Final = (sys.executable, "-P", "-m")


class Server:
    """``aspenkv serve`` on a data directory. It keeps its port over restarts."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str] = (),
        *,
        listen: str = "127.0.0.1:0",
        prefix: Sequence[str] = (),
    ) -> None:
        self.data_dir = directory / "server"
        self.log = directory / "server.log"
        self.listen = listen
        self._arguments = tuple(arguments)
        self._prefix = tuple(prefix)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it does not run"
        return self._process

    @property
    def ticket_file(self) -> Path:
        return self.data_dir / "admin.ticket"

    @property
    def ticket(self) -> Ticket:
        return parse_ticket(self.ticket_file.read_text(encoding="ascii"))

    @property
    def port(self) -> int:
        return self.ticket.endpoints[0].port

    def start(self) -> None:
        """Serve, and return when clients can connect."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._prefix,
                    *_PYTHON,
                    "aspenkv",
                    "serve",
                    f"--data={self.data_dir}",
                    f"--listen={self.listen}",
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        output = self._process.stdout
        assert output is not None
        line = read_line(output)
        assert line.startswith(b"serving"), f"{line!r}: {self.log.read_text()}"

    def stop(self) -> None:
        """End it as an operator would."""
        self.process.terminate()
        assert self._wait() == 0, self.log.read_text()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        assert self._wait() == -signal.SIGKILL

    def abandon(self) -> None:
        """Leave nothing of it, in whatever state it is."""
        if self.is_running:
            self.process.kill()
            self._wait()

    def _wait(self) -> int:
        with self.process:  # closes its output
            code = self.process.wait(TIMEOUT_S)
        self._process = None
        return code

    @property
    def is_running(self) -> bool:
        return self._process is not None


@contextmanager
def serving(
    directory: Path,
    *arguments: str,
    listen: str = "127.0.0.1:0",
    prefix: Sequence[str] = (),
) -> Iterator[Server]:
    """Run a server, and end it with the block unless the test has."""
    server = Server(directory, arguments, listen=listen, prefix=prefix)
    server.start()
    try:
        yield server
        if server.is_running:
            server.stop()
    finally:
        server.abandon()


class RelayProcess:
    """A relay of its own process, steered by its input."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port

    def order(self, line: str) -> None:
        """Have it obey an order from now on; see :mod:`tests.network.relay`."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(line.encode() + b"\n")
        stdin.flush()


@contextmanager
def relaying(
    server_port: int, *, port: int = 0, loss: float = 0.0, delay_s: float = 0.0
) -> Iterator[RelayProcess]:
    """Relay between whoever comes to ``port`` (0: any) and a server on this machine."""
    process = subprocess.Popen(
        [
            sys.executable,
            Path(__file__).with_name("relay.py"),
            str(server_port),
            f"--port={port}",
            f"--loss={loss}",
            f"--delay={delay_s}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield RelayProcess(process, int(read_line(process.stdout)))
    finally:
        process.stdin.close()
        try:
            process.wait(TIMEOUT_S)
        finally:
            process.kill()
            process.wait(TIMEOUT_S)
            process.stdout.close()


def redirected(ticket: Ticket, port: int) -> str:
    """Return the text of a ticket for the same server by way of a relay."""
    return format_ticket(ticket._replace(endpoints=(Endpoint("127.0.0.1", port),)))


def read_line(pipe: IO[bytes]) -> bytes:
    """Read one line, in TIMEOUT_S at most; what comes before the end of the pipe if it ends."""
    line = bytearray()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    deadline_s = time.monotonic() + TIMEOUT_S
    while not line.endswith(b"\n"):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise TimeoutError(f"only {bytes(line)!r} came")
        byte = os.read(pipe.fileno(), 1)
        if not byte:
            break
        line += byte
    return bytes(line)
