"""Fixtures of tests that need a server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.aspenkv.ends import Host, hosted
from tests.virtual_time import run_in_virtual_time


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> None:
    run_in_virtual_time(request.node)


@pytest.fixture
async def host(virtual_time: None) -> AsyncIterator[Host]:
    """A server of an empty store, in virtual time."""
    del virtual_time
    async with hosted() as host:
        yield host
