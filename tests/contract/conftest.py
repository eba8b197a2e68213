"""One suite for every engine and carrier: a test sees clients, or the service itself."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

from aspenkv.contract import KeyValue
from aspenkv.embedded import open_embedded
from aspenkv.engine import Engine
from aspenkv.engine.memory import MemoryEngine
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.service import Service
from tests.contract.carriers import (
    CARRIERS,
    DIRECT,
    Carrier,
    Connect,
    Serve,
    carried,
)
from tests.contract.directories import new_directory
from tests.virtual_time import run_in_virtual_time

T = TypeVar("T")

OpenServer = Callable[[], AbstractAsyncContextManager[Service]]


@pytest.fixture
def data_path() -> Iterator[Path]:
    directory = new_directory()
    yield directory / "data"
    shutil.rmtree(directory)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what needs clients over each carrier, and what needs the service on each engine."""
    marks = metafunc.definition.iter_markers("parametrize")
    chosen = any("carrier" in mark.args[0] for mark in marks)
    if "carrier" in metafunc.fixturenames and not chosen:
        needs_clients = {"connect", "serve"} & set(metafunc.fixturenames)
        carriers = CARRIERS if needs_clients else DIRECT
        metafunc.parametrize("carrier", carriers, ids=str)


async def call_in_place(function: Callable[..., T], *arguments: Any, **_options: object) -> T:
    """Stand in for :func:`trio.to_thread.run_sync`: threads know no virtual time."""
    await trio.lowlevel.checkpoint()
    return function(*arguments)


@pytest.fixture
def open_server(
    carrier: Carrier,
    data_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> OpenServer:
    """Start a server on the same data each time it is called; one at a time."""
    memory = MemoryEngine()
    if carrier.over_quic:
        run_in_virtual_time(request.node)
        monkeypatch.setattr("trio.to_thread.run_sync", call_in_place)

    @asynccontextmanager
    async def open_engine() -> AsyncIterator[Engine]:
        if carrier.engine == "memory":
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
def clock(carrier: Carrier, mock_clock: MockClock, autojump_clock: MockClock) -> MockClock:
    """Stand still until the test turns it, but for the time that datagrams take."""
    return autojump_clock if carrier.over_quic else mock_clock


@pytest.fixture
async def service(open_server: OpenServer) -> AsyncIterator[Service]:
    async with open_server() as service:
        yield service


@pytest.fixture
async def connect(carrier: Carrier, service: Service) -> AsyncIterator[Connect]:
    async with carried(carrier, service) as connect:
        yield connect


@pytest.fixture
def serve(carrier: Carrier, open_server: OpenServer) -> Serve:
    """Start a server on the same data each time, and let clients reach it."""

    @asynccontextmanager
    async def serve_one() -> AsyncIterator[Connect]:
        async with open_server() as service, carried(carrier, service) as connect:
            yield connect

    return serve_one


@pytest.fixture
async def kv(connect: Connect) -> KeyValue:
    return await connect()


@pytest.fixture
async def other(connect: Connect) -> KeyValue:
    """A second client of the same server."""
    return await connect()
