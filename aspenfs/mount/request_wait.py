"""A shorter way from one FUSE request to the next.

Between two requests pyfuse3 takes a lock and waits for the FUSE device by the scheduler. That costs
two passes of trio and a change of the epoll set: more than most answers from a cache do, as the
figures in docs/decisions/0003-request-wait.md show. But while one request is answered, the next has
often come. So before it waits, this asks the device, which is one system call.

pyfuse3 has no setting for it. Its loop looks up ``_wait_fuse_readable`` in its module each time, so
that one function is exchanged, for as long as a session lasts; a test fails if pyfuse3 renames it.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from aspenfs import limits

_HOOK: Final = "_wait_fuse_readable"
_DEVICE: Final = Path("/dev/fuse")


class RequestWait:
    """Waits for requests on behalf of all of pyfuse3's tasks.

    Lock: one task at a time waits by the scheduler, holding ``_waiting``; others may take a request
    meanwhile without it, so the holder asks the device again before it says that one is there.
    Nothing awaits between that answer and pyfuse3's read of the device.
    """

    def __init__(self, device_fd: int) -> None:
        """Take the descriptor of the session's FUSE device."""
        self._device_fd = device_fd
        self._device = select.poll()
        self._device.register(device_fd, select.POLLIN)
        self._waiting = trio.Lock()
        self._unyielding_count = 0
        self._is_closing = False

    async def __call__(self) -> bool:
        """Return True when the device can be read, False when the session is to end."""
        if self._unyielding_count < limits.FUSE_UNYIELDING_REQUESTS_MAX and self._device.poll(0):
            self._unyielding_count += 1
            return True
        self._unyielding_count = 0
        async with self._waiting:
            while not self._is_closing:
                try:
                    await trio.lowlevel.wait_readable(self._device_fd)
                except trio.ClosedResourceError:
                    self._is_closing = True
                    break
                if self._device.poll(0):
                    return True
        return False


@contextmanager
def short_request_wait() -> Iterator[None]:
    """Let pyfuse3's loop, run in this block, wait by a :class:`RequestWait`.

    Enter it when the session is mounted: the device must be open.
    """
    original = getattr(pyfuse3, _HOOK)
    setattr(pyfuse3, _HOOK, RequestWait(_device_fd()))
    try:
        yield
    finally:
        setattr(pyfuse3, _HOOK, original)


def _device_fd() -> int:
    """Return the descriptor of the FUSE device; a process has one session and so one of them."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if entry.readlink() == _DEVICE:
                return int(entry.name)
        except FileNotFoundError:
            continue  # the descriptor of this very listing
    raise RuntimeError("the FUSE session is not mounted: no descriptor of /dev/fuse is open")
