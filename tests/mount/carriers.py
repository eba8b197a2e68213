"""The ways by which a mount that hosts its store reaches it; a test may run over each."""

from __future__ import annotations

import enum
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.network.processes import relaying

_LOSS: Final = 0.05


class Way(enum.StrEnum):
    """From the filesystem of a mount to the store in the same process."""

    DIRECT = "in-process"
    QUIC = "quic"
    LOSSY = "quic-lossy"  # by a relay that loses one datagram in twenty


OVER_EVERY_WAY: Final = pytest.mark.parametrize("mounted", list(Way), indirect=True)
"""Marks a test whose mount is to go each way in turn."""


def over_every_way(
    name: str, size: object, *, lossy: object, slow: object = None
) -> pytest.MarkDecorator:
    """Mark a test that is to go each way, with a parameter that says how much it does.

    Args:
        name: of the parameter.
        size: its value.
        lossy: the value for the way that loses datagrams, where each call takes longer.
        slow: the value for one more run, in-process and marked as slow; None: no such run.
    """
    cases = [
        pytest.param(Way.DIRECT, size),
        pytest.param(Way.QUIC, size),
        pytest.param(Way.LOSSY, lossy),
    ]
    if slow is not None:
        cases.append(pytest.param(Way.DIRECT, slow, marks=pytest.mark.slow))
    return pytest.mark.parametrize(("mounted", name), cases, indirect=["mounted"])


@contextmanager
def arguments_for(way: Way) -> Iterator[tuple[str, ...]]:
    """Yield the arguments of a mount that goes this way, for as long as the way is open."""
    if way is Way.DIRECT:
        yield ()
    elif way is Way.QUIC:
        yield ("-o", "carrier=quic")
    else:
        port = _free_port()
        with relaying(port, loss=_LOSS) as relay:
            yield (
                *("-o", "carrier=quic"),
                f"--listen=127.0.0.1:{port}",
                f"--advertise=127.0.0.1:{relay.port}",
            )


def _free_port() -> int:
    """Return a port that nobody has now; the relay must know it before the mount listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
