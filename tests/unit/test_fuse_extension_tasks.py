"""Requests of the extension as tasks of trio: errors, signals, limits, and the end of a mount."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any, Final

import pytest
import trio
import trio.testing

from aspenfs import limits
from aspenfs.errors import FilesystemError
from aspenfs.fuse_extension import FuseExtension, Settings, WireRequest, _native
from aspenfs.fuse_extension.native import load
from tests.unit.fake_kernel import Answer, FakeKernel, InitAnswer, Opcode

FLOCK: Final = 1  # FUSE_LK_FLOCK
SEEK: Final = struct.pack("<QQII", 7, 11, os.SEEK_DATA, 0)
FLUSH: Final = struct.pack("<QIIQ", 7, 0, 0, 5)


def lock(kind: int, flags: int = 0) -> bytes:
    """struct fuse_lk_in."""
    return struct.pack("<QQQQIIII", 7, 5, 0, 9, kind, 4242, flags, 0)


class Handlers:
    """Answers as a test says: with a value, with an error, or after an event."""

    def __init__(self) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self.go: trio.Event | None = None
        self.calls = 0

    async def getlk(self, *_: int) -> Any:
        return await self._answer()

    async def setlk(self, *_: int) -> Any:
        return await self._answer()

    async def flock(self, *_: int) -> Any:
        return await self._answer()

    async def fallocate(self, *_: int) -> Any:
        return await self._answer()

    async def lseek(self, *_: int) -> Any:
        return await self._answer()

    async def copy_file_range(self, *_: int) -> Any:
        return await self._answer()

    async def _answer(self) -> Any:
        self.calls += 1
        if self.go is not None:
            await self.go.wait()
        if self.error is not None:
            raise self.error
        return self.result


class Served:
    """An extension that runs, with a kernel before it and handlers behind it."""

    def __init__(self, settings: Settings) -> None:
        self.handlers = Handlers()
        self.explained: list[tuple[str, Exception]] = []
        self.extension = FuseExtension(self.handlers, self._explain, settings)

    def _explain(self, handler: str, error: Exception) -> int:
        self.explained.append((handler, error))
        return errno.EIO

    async def answer(self, kernel: FakeKernel, opcode: Opcode, body: bytes) -> Answer:
        unique = kernel.send(opcode, body)
        await trio.testing.wait_all_tasks_blocked()
        answer = kernel.answer()
        assert answer is not None
        assert answer.unique == unique
        return answer


@asynccontextmanager
async def running(served: Served) -> AsyncIterator[FakeKernel]:
    """Serve a kernel that has made contact."""
    with served.extension.armed(), FakeKernel(_native) as kernel:
        kernel.init()
        async with trio.open_nursery() as nursery:
            await nursery.start(served.extension.run)
            yield kernel
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("opcode", "body", "result", "answer"),
    [
        (Opcode.LSEEK, SEEK, 2**40, struct.pack("<Q", 2**40)),
        (Opcode.COPY_FILE_RANGE, struct.pack("<7Q", *range(7)), 9, struct.pack("<II", 9, 0)),
        (Opcode.SETLK, lock(fcntl.F_WRLCK), None, b""),
        (Opcode.GETLK, lock(fcntl.F_WRLCK), None, struct.pack("<QQII", 0, 0, fcntl.F_UNLCK, 0)),
        (
            Opcode.GETLK,
            lock(fcntl.F_WRLCK),
            (fcntl.F_RDLCK, 3, 4, 77),
            struct.pack("<QQII", 3, 4, fcntl.F_RDLCK, 77),
        ),
    ],
)
async def test_what_a_handler_returns_is_the_answer(
    opcode: Opcode, body: bytes, result: object, answer: bytes
) -> None:
    served = Served(Settings())
    async with running(served) as kernel:
        served.handlers.result = result
        assert (await served.answer(kernel, opcode, body))[1:] == (0, answer)


async def test_what_a_handler_raises_is_the_answer() -> None:
    served = Served(Settings())
    async with running(served) as kernel:
        served.handlers.error = FilesystemError(errno.EDEADLK)
        answer = await served.answer(kernel, Opcode.SETLK, lock(fcntl.F_WRLCK))
        assert answer.errno == errno.EDEADLK
        assert not served.explained
        served.handlers.error = bug = LookupError("a bug")
        assert (await served.answer(kernel, Opcode.LSEEK, SEEK)).errno == errno.EIO
        assert served.explained == [("lseek", bug)]


async def test_a_result_of_the_wrong_type_is_a_bug() -> None:
    served = Served(Settings())
    async with running(served) as kernel:
        served.handlers.result = "eleven"
        assert (await served.answer(kernel, Opcode.LSEEK, SEEK)).errno == errno.EIO
        assert [name for name, _ in served.explained] == ["lseek"]


async def test_a_signal_ends_a_request_that_waits() -> None:
    served = Served(Settings())
    served.handlers.go = trio.Event()
    async with running(served) as kernel:
        others = kernel.send(Opcode.SETLKW, lock(fcntl.F_WRLCK))
        unique = kernel.send(Opcode.SETLKW, lock(fcntl.F_WRLCK))
        await trio.testing.wait_all_tasks_blocked()
        kernel.send(Opcode.INTERRUPT, struct.pack("<Q", unique))
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.answer() == Answer(unique, errno.EINTR, b"")
        kernel.send(Opcode.INTERRUPT, struct.pack("<Q", unique))  # it comes too late
        served.handlers.go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.answer() == Answer(others, 0, b"")


async def test_a_signal_counts_before_the_request_has_its_first_turn() -> None:
    served = Served(Settings())
    served.handlers.go = trio.Event()
    async with running(served) as kernel:
        unique = kernel.send(Opcode.SETLKW, lock(fcntl.F_WRLCK))
        kernel.send(Opcode.INTERRUPT, struct.pack("<Q", unique))
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.answer() == Answer(unique, errno.EINTR, b"")


async def test_a_lock_that_was_taken_in_the_face_of_a_signal_is_said_to_be_taken() -> None:
    served = Served(Settings())
    served.handlers.go = trio.Event()
    async with running(served) as kernel:
        unique = kernel.send(Opcode.SETLKW, lock(fcntl.F_WRLCK))
        await trio.testing.wait_all_tasks_blocked()
        served.handlers.go.set()  # it is taken: the task will run on
        kernel.send(Opcode.INTERRUPT, struct.pack("<Q", unique))
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.answer() == Answer(unique, 0, b"")


async def test_pyfuse3s_handlers_learn_of_signals_too() -> None:
    served = Served(Settings())
    async with running(served) as kernel:
        kernel.call(Opcode.FLUSH, FLUSH)
        request = served.extension.last_request()
        assert request is not None
        with trio.CancelScope() as scope:
            served.extension.begin(request.unique, scope)
            kernel.send(Opcode.INTERRUPT, struct.pack("<Q", request.unique))
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        served.extension.end(request.unique)


async def test_requests_end_with_the_mount() -> None:
    served = Served(Settings())
    served.handlers.go = trio.Event()
    with served.extension.armed(), FakeKernel(_native) as kernel:
        kernel.init()
        async with trio.open_nursery() as nursery:
            await nursery.start(served.extension.run)
            unique = kernel.send(Opcode.SETLKW, lock(fcntl.F_WRLCK))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            started_too_late = kernel.send(Opcode.SETLKW, lock(fcntl.F_WRLCK))
        ended = [kernel.answer(), kernel.answer()]
        assert {answer for answer in ended if answer} == {
            Answer(unique, errno.ENOTCONN, b""),
            Answer(started_too_late, errno.ENOTCONN, b""),
        }
        assert kernel.call(Opcode.SETLKW, lock(fcntl.F_WRLCK)).errno == errno.ENOTCONN


async def test_those_who_wait_for_locks_are_limited_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "FUSE_LOCK_WAITERS_MAX", 2)
    served = Served(Settings())
    served.handlers.go = trio.Event()
    async with running(served) as kernel:
        kernel.send(Opcode.SETLKW, lock(fcntl.F_WRLCK))
        kernel.send(Opcode.SETLKW, lock(fcntl.F_RDLCK, FLOCK))
        await trio.testing.wait_all_tasks_blocked()
        for body in (lock(fcntl.F_WRLCK), lock(fcntl.F_WRLCK, FLOCK)):
            answer = await served.answer(kernel, Opcode.SETLKW, body)
            assert answer.errno == errno.ENOLCK
        assert served.handlers.calls == 2
        waits_for_none = [
            (Opcode.SETLK, lock(fcntl.F_WRLCK)),
            (Opcode.SETLKW, lock(fcntl.F_UNLCK)),
            (Opcode.SETLK, lock(fcntl.F_WRLCK, FLOCK)),
            (Opcode.SETLKW, lock(fcntl.F_UNLCK, FLOCK)),
            (Opcode.GETLK, lock(fcntl.F_WRLCK)),
        ]
        for opcode, body in waits_for_none:
            kernel.send(opcode, body)
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.answer() is None
        served.handlers.go.set()
        await trio.testing.wait_all_tasks_blocked()
        answers = [kernel.answer() for _ in range(7)]
        assert [answer.errno for answer in answers if answer] == [0] * 7


@pytest.mark.logs("the answer to lseek was refused: Connection reset by peer|Broken pipe")
async def test_an_answer_that_the_device_refuses_is_logged(
    capfd: pytest.CaptureFixture[str],
) -> None:
    served = Served(Settings())
    served.handlers.go = trio.Event()
    async with running(served) as kernel:
        kernel.send(Opcode.LSEEK, SEEK)
        await trio.testing.wait_all_tasks_blocked()
        kernel.hang_up()
        served.handlers.go.set()
        served.handlers.result = 1
        await trio.testing.wait_all_tasks_blocked()
    assert "fuse: writing device" in capfd.readouterr().err


async def test_the_settings_reach_the_kernel() -> None:
    async def contact(**settings: Any) -> InitAnswer:
        served = Served(Settings(**settings))
        with served.extension.armed(), FakeKernel(_native) as kernel:
            return kernel.init()

    plain = await contact()
    changed = await contact(
        locks=False,
        apply_umask=True,
        kill_privileges=True,
        max_background=64,
        congestion_threshold=32,
    )
    assert plain.flags & ~changed.flags == 1 << 1 | 1 << 10  # POSIX_LOCKS, FLOCK_LOCKS
    assert changed.flags & ~plain.flags == 1 << 6 | 1 << 28  # DONT_MASK, HANDLE_KILLPRIV_V2
    assert changed[1:3] == (64, 32)


async def test_it_is_active_from_the_first_contact_to_the_end() -> None:
    extension = Served(Settings()).extension
    active = [extension.is_active]
    assert extension.why_inactive() == "pyfuse3 was loaded before it"
    with extension.armed():
        with FakeKernel(_native) as kernel:
            active.append(extension.is_active)
            assert extension.last_request() is None
            kernel.init()
            active.append(extension.is_active)
            assert extension.why_inactive() is None
            unique = kernel.send(Opcode.FLUSH, FLUSH)
            assert extension.last_request() == WireRequest(unique, 0, 5)
        active.append(extension.is_active)
    assert active == [False, False, True, False]


async def test_without_the_compiled_part_it_does_nothing(nursery: trio.Nursery) -> None:
    def refuse(name: str) -> ModuleType:
        raise ImportError(f"{name}: libfuse3.so.3: no such file")

    assert load(lambda _name: ModuleType("built long ago")) == (
        None,
        "it was built from other sources: install aspenfs anew",
    )
    native, why = load(refuse)
    assert native is None
    assert why == "aspenfs.fuse_extension._native: libfuse3.so.3: no such file"
    extension = FuseExtension(Handlers(), lambda _handler, _error: errno.EIO, Settings(), native)
    with extension.armed():
        await nursery.start(extension.run)
        assert not extension.is_active
        assert extension.why_inactive() is not None
        assert extension.last_request() is None
