"""The filesystem without a mount, on a memory engine, and a second client of the same store.

Each test that has a filesystem ends with a check of every record of the volume.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aspenfs import limits
from aspenfs.filesystem import Filesystem, open_filesystem
from aspenfs.types import Clock
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine
from aspenkv.service import Service
from tests.core.steering import ROOT, SteeredClient, WallClock, check

Open = Callable[..., AbstractAsyncContextManager[Filesystem]]


@pytest.fixture(autouse=True)
def _slow_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time make a commit only in a test that turns the clock, however slow the machine is."""
    if not {"mock_clock", "autojump_clock"} & set(request.fixturenames):
        for delay in ("WRITEBACK_DELAY_S", "WRITEBACK_SHARED_DELAY_S"):
            monkeypatch.setattr(limits, delay, 3600.0)


@pytest.fixture
def gives_delegations() -> bool:
    """Whether the store promises a lone client to let nobody else commit for a while.

    That holds up whoever comes second, for ever if the clock stands.
    """
    return False


@pytest.fixture
async def service(gives_delegations: bool) -> AsyncIterator[Service]:
    async with open_embedded(MemoryEngine()) as service:
        service.store._delegations._are_granted = gives_delegations
        yield service


@pytest.fixture
def wall() -> WallClock:
    return WallClock()


@pytest.fixture
def open_fs(wall: WallClock) -> Open:
    """Open the filesystem of a client: ``open_fs(kv, **options)``."""
    return partial(open_filesystem, owner=ROOT, clock=Clock(trio.current_time, wall))


@pytest.fixture
def store(service: Service) -> SteeredClient:
    """The client of ``fs``."""
    return SteeredClient(service)


@pytest.fixture
async def fs(service: Service, store: SteeredClient, open_fs: Open) -> AsyncIterator[Filesystem]:
    async with open_fs(store) as fs:
        yield fs
        await fs.sync()
        await wait_all_tasks_blocked()  # whoever heard that a peer has ended looks what it left
        await check(store, fs)
    report = await check(service.connect(), fs)
    assert report.counts.orphans == 0


@pytest.fixture
def peer_store(service: Service) -> SteeredClient:
    """The client of ``peer``."""
    return SteeredClient(service)


@pytest.fixture
async def peer(
    fs: Filesystem, peer_store: SteeredClient, open_fs: Open
) -> AsyncIterator[Filesystem]:
    """The same volume as another machine sees it."""
    del fs  # opened first
    async with open_fs(peer_store) as peer:
        yield peer
