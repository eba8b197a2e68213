"""Network namespaces for tests: machines of their own on one link, as far as the network goes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

import pytest

_NAME: Final = "aspenfs-{pid}-{number}"
_BRIDGE: Final = "bridge"
_PORT: Final = "port{number}"
_DEVICE: Final = "eth0"
_ADDRESS: Final = "192.0.2.{host}"  # TEST-NET-1, RFC 5737: nobody's
_PREFIX_BITS: Final = 24
_TIMEOUT_S: Final = 30.0


class Machine(NamedTuple):
    """A namespace. ``prefix`` runs the command after it there, in the mounts of everybody."""

    address: str
    prefix: tuple[str, ...]


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """Make machines that reach each other; remove them with all their links."""
    if os.geteuid() != 0:
        pytest.fail("this test makes network namespaces; run it as root", pytrace=False)
    if shutil.which("ip") is None:
        pytest.fail("ip is not installed; run: apt-get install iproute2", pytrace=False)
    with ExitStack() as stack:
        # The bridge has a namespace too, so that this machine's own network stays as it is.
        switch, *names = (
            stack.enter_context(_namespace(_NAME.format(pid=os.getpid(), number=number)))
            for number in range(count + 1)
        )
        _ip("-n", switch, "link", "add", _BRIDGE, "up", "type", "bridge")
        yield [_plug_in(switch, name, number) for number, name in enumerate(names, start=1)]


def _plug_in(switch: str, name: str, number: int) -> Machine:
    port, address = _PORT.format(number=number), _ADDRESS.format(host=number)
    _ip("-n", switch, "link", "add", port, "type", "veth", "peer", _DEVICE, "netns", name)
    _ip("-n", switch, "link", "set", port, "master", _BRIDGE, "up")
    _ip("-n", name, "address", "add", f"{address}/{_PREFIX_BITS}", "dev", _DEVICE)
    for device in ("lo", _DEVICE):
        _ip("-n", name, "link", "set", device, "up")
    # `ip netns exec` would give the command mounts of its own.
    return Machine(address, ("nsenter", f"--net=/run/netns/{name}", "--"))


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    _ip("netns", "add", name)
    try:
        yield name
    finally:
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    command: Sequence[str] = ("ip", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
