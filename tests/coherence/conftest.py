"""What the tests of coherence share: two mounts, for all tests of one module."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.coherence.pairs import ROUNDS, Carrier, Pair, Volume, two_mounts


@pytest.fixture(scope="module", params=list(Carrier))
def volume(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Volume]:
    carrier: Carrier = request.param
    with two_mounts(tmp_path_factory.mktemp("coherence"), carrier) as (first, second):
        yield Volume(carrier, first, second)


@pytest.fixture
def pair(volume: Volume, request: pytest.FixtureRequest) -> Pair:
    """A new directory on the two mounts of the module."""
    name = re.sub(r"\W", "-", request.node.name)
    (volume.first.mountpoint / name).mkdir()
    return Pair(
        volume.first.mountpoint / name,
        volume.second.mountpoint / name,
        ROUNDS[volume.carrier],
        volume.first.store_option,
    )
