"""The shorter wait for FUSE requests, on a socket in place of the FUSE device."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pyfuse3
import pytest
import trio
import trio.testing

from aspenfs import limits
from aspenfs.mount.request_wait import RequestWait, short_request_wait


class Device:
    """A descriptor that requests arrive on, one byte each."""

    def __init__(self) -> None:
        self.kernel, self.session = socket.socketpair()
        self.session.setblocking(False)
        self.wait = RequestWait(self.session.fileno())

    def take(self) -> bytes:
        return self.session.recv(1)


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    with device.kernel, device.session:
        yield device


async def test_a_request_that_is_there_is_taken_without_giving_way(device: Device) -> None:
    device.kernel.send(b"r")
    with trio.testing.assert_no_checkpoints():
        assert await device.wait()
    assert device.take() == b"r"


async def test_other_tasks_have_a_turn_in_an_endless_row_of_requests(device: Device) -> None:
    had_a_turn = trio.Event()
    device.kernel.send(b"r" * (limits.FUSE_UNYIELDING_REQUESTS_MAX + 1))
    async with trio.open_nursery() as nursery:

        async def other() -> None:
            had_a_turn.set()

        nursery.start_soon(other)
        for _ in range(limits.FUSE_UNYIELDING_REQUESTS_MAX):
            assert await device.wait()
            device.take()
        assert not had_a_turn.is_set()
        assert await device.wait()
        assert had_a_turn.is_set()


async def test_each_request_goes_to_one_of_the_tasks_that_wait(device: Device) -> None:
    taken: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def worker() -> None:
            while await device.wait():
                taken.append(device.take())  # would raise BlockingIOError if nothing were there

        for _ in range(3):
            nursery.start_soon(worker)
        for request in (b"1", b"2", b"3", b"4"):
            await trio.testing.wait_all_tasks_blocked()
            device.kernel.send(request)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(device.session)
    assert taken == [b"1", b"2", b"3", b"4"]


async def test_all_tasks_end_when_the_session_does(device: Device) -> None:
    answers: list[bool] = []
    async with trio.open_nursery() as nursery:

        async def worker() -> None:
            answers.append(await device.wait())

        for _ in range(3):
            nursery.start_soon(worker)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(device.session)
    assert answers == [False] * 3


def test_without_a_session_there_is_nothing_to_wait_for() -> None:
    with pytest.raises(RuntimeError, match="not mounted"), short_request_wait():
        pass


def test_pyfuse3_still_waits_by_the_function_that_is_exchanged() -> None:
    assert callable(pyfuse3._wait_fuse_readable)  # type: ignore[attr-defined]
