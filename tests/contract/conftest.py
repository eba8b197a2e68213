"""One suite for every engine: each test sees a service, and clients of its direct carrier."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from aspenkv.contract import KeyValue
from aspenkv.embedded import open_embedded
from aspenkv.engine import Engine
from aspenkv.engine.memory import MemoryEngine
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.service import Service
from tests.contract.directories import new_directory

OpenServer = Callable[[], AbstractAsyncContextManager[Service]]


@pytest.fixture
def data_path() -> Iterator[Path]:
    directory = new_directory()
    yield directory / "data"
    shutil.rmtree(directory)


@pytest.fixture(params=["memory", "rocksdb"])
def open_server(request: pytest.FixtureRequest, data_path: Path) -> OpenServer:
    """Start a server on the same data each time it is called; one at a time."""
    memory = MemoryEngine()

    @asynccontextmanager
    async def open_engine() -> AsyncIterator[Engine]:
        if request.param == "memory":
            yield memory  # what is opened again is the engine that the last server left
        else:
            async with RocksdbEngine.open(data_path) as engine:
                yield engine

    @asynccontextmanager
    async def open_one() -> AsyncIterator[Service]:
        async with open_engine() as engine, open_embedded(engine) as service:
            yield service

    return open_one


@pytest.fixture
async def service(open_server: OpenServer) -> AsyncIterator[Service]:
    async with open_server() as service:
        yield service


@pytest.fixture
async def kv(service: Service) -> KeyValue:
    return service.connect()


@pytest.fixture
async def other(service: Service) -> KeyValue:
    """A second client of the same server."""
    return service.connect()
