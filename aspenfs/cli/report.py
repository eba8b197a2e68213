"""How a mount in the background tells the command that started it what came of it.

One JSON object on a pipe, once: what is mounted when it answers, or the line and the exit code of
the failure. A pipe that ends without one means that the process died.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from typing import Final

from aspenfs.cli.failures import Failure
from aspenfs.config import Mounted
from aspenfs.errors import StartupError
from aspenfs.limits import STARTUP_REPORT_BYTES_MAX

_MS_PER_S: Final = 1000


class Reporter:
    """The mount's end. Only the first report counts."""

    def __init__(self, descriptor: int | None) -> None:
        """Take the pipe, if somebody listens, and keep it from every program started here."""
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    def ready(self, mounted: Mounted) -> None:
        """Say that the mount answers, and what it is."""
        self._send({"mounted": mounted._asdict()})

    def failed(self, failure: Failure) -> None:
        """Say why there will be no mount."""
        self._send({"line": failure.line, "exit_code": int(failure.exit_code)})

    def _send(self, report: dict[str, object]) -> None:
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with contextlib.suppress(BrokenPipeError):  # whoever asked has gone
            os.write(descriptor, json.dumps(report).encode())
        os.close(descriptor)


def wait_for_report(descriptor: int, timeout_s: float) -> Mounted | None:
    """Wait for the report on a pipe's reading end.

    Returns:
        What is mounted, since it answers; None: the process ended without a report.

    Raises:
        StartupError: the mount failed, and said how.
        TimeoutError: nothing came in ``timeout_s`` seconds.
    """
    received = bytearray()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    deadline_s = time.monotonic() + timeout_s
    while len(received) < STARTUP_REPORT_BYTES_MAX:
        if not poll.poll(max(0.0, deadline_s - time.monotonic()) * _MS_PER_S):
            raise TimeoutError
        data = os.read(descriptor, STARTUP_REPORT_BYTES_MAX)
        if not data:
            break
        received += data
    if not received:
        return None
    report = json.loads(received)
    if "mounted" in report:
        return Mounted(**report["mounted"])
    raise StartupError(report["line"], report["exit_code"])
