"""The extension on a session of libfuse's, with a fake kernel at its other end."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import struct
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from aspenfs.fuse_extension import (
    OPEN_KILL_SUIDGID,
    RELEASE_FLOCK_UNLOCK,
    SETATTR_KILL_SUIDGID,
    WRITE_KILL_SUIDGID,
    _native,
)
from aspenfs.fuse_extension._native import Request
from tests.unit.fake_kernel import PROTOCOL, Answer, FakeKernel, InitAnswer, Opcode

NODE: Final = 2
FH: Final = 7
OWNER: Final = 2**63 + 5  # as the kernel's numbers: all 64 bits are used
PID: Final = 4242
END_OF_FILE: Final = 2**63 - 1
FLOCK: Final = 1  # FUSE_LK_FLOCK
ALL: Final = ("getlk", "setlk", "flock", "fallocate", "lseek", "copy_file_range")

# Of FUSE_INIT.
POSIX_LOCKS: Final = 1 << 1
DONT_MASK: Final = 1 << 6
FLOCK_LOCKS: Final = 1 << 10
HANDLE_KILLPRIV_V2: Final = 1 << 28
INIT_EXT: Final = 1 << 30
DIRECT_IO_ALLOW_MMAP: Final = 1 << 4  # of flags2


def lock(kind: int, start: int = 0, end: int = END_OF_FILE, flags: int = 0) -> bytes:
    """struct fuse_lk_in."""
    return struct.pack("<QQQQIIII", FH, OWNER, start, end, kind, PID, flags, 0)


READ_LOCK: Final = lock(fcntl.F_RDLCK)


def lseek(offset: int, whence: int) -> bytes:
    """struct fuse_lseek_in."""
    return struct.pack("<QQII", FH, offset, whence, 0)


def arm(
    receiver: Callable[[Request], None], *, operations: Sequence[str] = ALL, **changes: Any
) -> None:
    settings: dict[str, Any] = {
        "want": 0,
        "do_not_want": 0,
        "max_background": 0,
        "congestion_threshold": 0,
        "kill_privileges": False,
        "direct_mmap": False,
        "interrupted": lambda _unique: None,
    }
    _native.arm(receiver=receiver, operations=operations, **{**settings, **changes})


@pytest.fixture
def received() -> Iterator[list[Request]]:
    """The requests of a session that is made next."""
    received: list[Request] = []
    arm(received.append)
    yield received
    _native.disarm()


@pytest.fixture
def kernel(received: list[Request]) -> Iterator[FakeKernel]:
    """A kernel that has made contact with an extended session."""
    del received  # armed by now
    with FakeKernel(_native) as kernel:
        kernel.init()
        yield kernel


# --- requests and answers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "body", "operation", "arguments"),
    [
        (
            Opcode.GETLK,
            lock(fcntl.F_WRLCK, 10, 19),
            "getlk",
            (NODE, FH, OWNER, fcntl.F_WRLCK, 10, 19, PID),
        ),
        (
            Opcode.SETLK,
            lock(fcntl.F_WRLCK, 0, 0),
            "setlk",
            (NODE, FH, OWNER, fcntl.F_WRLCK, 0, 0, PID, False),
        ),
        (
            Opcode.SETLKW,
            lock(fcntl.F_RDLCK, 5),
            "setlk",
            (NODE, FH, OWNER, fcntl.F_RDLCK, 5, END_OF_FILE, PID, True),
        ),
        (
            Opcode.SETLK,
            lock(fcntl.F_WRLCK, flags=FLOCK),
            "flock",
            (NODE, FH, OWNER, fcntl.LOCK_EX | fcntl.LOCK_NB),
        ),
        (
            Opcode.SETLKW,
            lock(fcntl.F_RDLCK, flags=FLOCK),
            "flock",
            (NODE, FH, OWNER, fcntl.LOCK_SH),
        ),
        (
            Opcode.SETLKW,
            lock(fcntl.F_UNLCK, flags=FLOCK),
            "flock",
            (NODE, FH, OWNER, fcntl.LOCK_UN),
        ),
        (
            Opcode.FALLOCATE,
            struct.pack("<QQQII", FH, 2**40, 2**41, 3, 0),
            "fallocate",
            (NODE, FH, 3, 2**40, 2**41),
        ),
        (Opcode.LSEEK, lseek(2**40, os.SEEK_HOLE), "lseek", (NODE, FH, 2**40, os.SEEK_HOLE)),
        (
            Opcode.COPY_FILE_RANGE,
            struct.pack("<7Q", FH, 2**40, 3, 8, 2**41, 2**31, 0),
            "copy_file_range",
            (NODE, FH, 2**40, 3, 8, 2**41, 2**31, 0),
        ),
        (
            # As many bytes as its answer can tell of, in whole pages.
            Opcode.COPY_FILE_RANGE,
            struct.pack("<7Q", FH, 0, 3, 8, 0, 2**33, 0),
            "copy_file_range",
            (NODE, FH, 0, 3, 8, 0, 2**32 - 4096, 0),
        ),
    ],
)
def test_a_request_comes_with_all_that_the_kernel_said(
    kernel: FakeKernel,
    received: list[Request],
    opcode: Opcode,
    body: bytes,
    operation: str,
    arguments: tuple[int, ...],
) -> None:
    unique = kernel.send(opcode, body, NODE)
    [request] = received
    assert (request.operation, request.arguments, request.unique) == (operation, arguments, unique)
    answered = [request.is_answered]
    assert kernel.answer() is None
    assert request.reply_done() == 0
    answered.append(request.is_answered)
    assert answered == [False, True]
    assert kernel.answer() == Answer(unique, 0, b"")


@pytest.mark.parametrize(
    ("opcode", "body", "reply", "answer"),
    [
        (Opcode.LSEEK, lseek(0, 3), ("reply_offset", 2**40), struct.pack("<Q", 2**40)),
        (
            Opcode.COPY_FILE_RANGE,
            struct.pack("<7Q", FH, 0, 3, 8, 0, 9, 0),
            ("reply_count", 2**32 - 1),
            struct.pack("<II", 2**32 - 1, 0),
        ),
        (
            Opcode.GETLK,
            READ_LOCK,
            ("reply_lock", fcntl.F_WRLCK, 10, 19, PID),
            struct.pack("<QQII", 10, 19, fcntl.F_WRLCK, PID),
        ),
        (
            Opcode.GETLK,
            READ_LOCK,
            ("reply_lock", fcntl.F_WRLCK, 2**40, END_OF_FILE, PID),
            struct.pack("<QQII", 2**40, END_OF_FILE, fcntl.F_WRLCK, PID),
        ),
        (
            Opcode.GETLK,
            READ_LOCK,
            ("reply_lock", fcntl.F_UNLCK, 0, 0, 0),
            struct.pack("<QQII", 0, 0, fcntl.F_UNLCK, 0),
        ),
    ],
)
def test_an_answer_reaches_the_kernel_in_full(
    kernel: FakeKernel,
    received: list[Request],
    opcode: Opcode,
    body: bytes,
    reply: tuple[Any, ...],
    answer: bytes,
) -> None:
    unique = kernel.send(opcode, body)
    name, *values = reply
    assert getattr(received[0], name)(*values) == 0
    assert kernel.answer() == Answer(unique, 0, answer)


@pytest.mark.parametrize(
    ("number", "answered"), [(errno.EAGAIN, errno.EAGAIN), (0, errno.EIO), (1000, errno.EIO)]
)
def test_an_error_is_an_errno_and_never_success(
    kernel: FakeKernel, received: list[Request], number: int, answered: int
) -> None:
    unique = kernel.send(Opcode.SETLK, READ_LOCK)
    received[0].reply_error(number)
    assert kernel.answer() == Answer(unique, answered, b"")


@pytest.mark.parametrize(
    "reply",
    [
        ("reply_done",),
        ("reply_error", errno.EIO),
        ("reply_count", 1),
        ("reply_offset", 1),
        ("reply_lock", fcntl.F_UNLCK, 0, 0, 0),
    ],
)
def test_a_request_is_answered_once(
    kernel: FakeKernel, received: list[Request], reply: tuple[Any, ...]
) -> None:
    kernel.send(Opcode.SETLK, READ_LOCK)
    received[0].reply_done()
    assert kernel.answer() is not None
    name, *values = reply
    with pytest.raises(RuntimeError, match="setlk was answered before"):
        getattr(received[0], name)(*values)
    assert kernel.answer() is None


@pytest.mark.parametrize(
    "reply", [("reply_count", -1), ("reply_offset", 2**63), ("reply_lock", 1), ("reply_error", "")]
)
def test_an_answer_that_makes_no_sense_leaves_the_request_as_it_is(
    kernel: FakeKernel, received: list[Request], reply: tuple[Any, ...]
) -> None:
    kernel.send(Opcode.GETLK, READ_LOCK)
    name, *values = reply
    with pytest.raises((TypeError, OverflowError)):
        getattr(received[0], name)(*values)
    assert not received[0].is_answered
    received[0].reply_done()


def test_requests_are_answered_in_any_order(kernel: FakeKernel, received: list[Request]) -> None:
    sent = [kernel.send(Opcode.SETLK, READ_LOCK) for _ in range(4)]
    for index in (1, 3, 0, 2):
        received[index].reply_done()
        assert kernel.answer() == Answer(sent[index], 0, b"")


def test_a_request_that_is_dropped_is_answered(kernel: FakeKernel, received: list[Request]) -> None:
    unique = kernel.send(Opcode.SETLK, READ_LOCK)
    received.clear()
    assert kernel.answer() == Answer(unique, errno.EIO, b"")


def test_a_request_that_cannot_be_received_is_answered(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda hook: unraisable.append(str(hook.exc_value)))
    arm(_fail)
    unique = kernel.send(Opcode.SETLK, READ_LOCK)
    assert kernel.answer() == Answer(unique, errno.EIO, b"")
    arm(_fail, interrupted=_fail)
    kernel.send(Opcode.INTERRUPT, struct.pack("<Q", unique))
    assert unraisable == ["a bug of the receiver"] * 2


def _fail(_value: object) -> None:
    raise LookupError("a bug of the receiver")


def test_requests_are_answered_when_the_session_ends(
    kernel: FakeKernel, received: list[Request]
) -> None:
    sent = [kernel.send(Opcode.SETLKW, READ_LOCK) for _ in range(2)]
    kernel.end_session()
    assert not _native.is_extended()
    answers = [kernel.answer() for _ in sent]
    assert {answer.unique for answer in answers if answer} == set(sent)
    assert {answer.errno for answer in answers if answer} == {errno.ENOTCONN}
    assert all(request.is_answered for request in received)
    received.clear()  # which must not touch what libfuse has freed


def test_a_request_for_nobody_is_answered(kernel: FakeKernel) -> None:
    _native.disarm()
    answer = kernel.call(Opcode.SETLK, READ_LOCK)
    assert (answer.errno, answer.body) == (errno.ENOTCONN, b"")


# --- the session --------------------------------------------------------------------------------


def contact(**settings: Any) -> InitAnswer:
    arm(_fail, **settings)
    try:
        with FakeKernel(_native) as kernel:
            answer = kernel.init()
            assert _native.is_extended()
            return answer
    finally:
        _native.disarm()


def test_the_kernel_is_asked_for_locks_that_somebody_takes() -> None:
    with_locks = contact(operations=ALL).flags
    without = contact(operations=["fallocate"]).flags
    assert with_locks & POSIX_LOCKS
    assert with_locks & FLOCK_LOCKS
    assert not without & (POSIX_LOCKS | FLOCK_LOCKS)


def test_the_kernel_is_told_what_is_wanted_and_what_is_not() -> None:
    as_it_was = contact()
    wanted = contact(want=_native.CAP_DONT_MASK, do_not_want=_native.CAP_AUTO_INVAL_DATA)
    assert not as_it_was.flags & DONT_MASK
    assert wanted.flags & DONT_MASK
    assert as_it_was.flags & ~wanted.flags == 1 << 12  # FUSE_AUTO_INVAL_DATA
    limited = contact(max_background=64, congestion_threshold=60)
    assert (limited.max_background, limited.congestion_threshold) == (64, 60)
    assert contact(max_background=64).congestion_threshold == 48


def test_the_kernel_leaves_privileges_to_us_if_it_can() -> None:
    assert not contact().flags & HANDLE_KILLPRIV_V2
    assert contact(kill_privileges=True).flags & HANDLE_KILLPRIV_V2
    arm(_fail, kill_privileges=True)
    try:
        with FakeKernel(_native) as old:
            assert not old.init(minor=32).flags & HANDLE_KILLPRIV_V2
        with FakeKernel(_native) as refused:
            # A version that libfuse refuses is answered with an error, or none that is patched.
            body = struct.pack("<IIII", PROTOCOL[0] - 2, 0, 0, 0)
            assert refused.call(Opcode.INIT, body).errno == errno.EPROTO
    finally:
        _native.disarm()


def test_the_kernel_shares_mappings_of_direct_files_if_it_can() -> None:
    assert contact().flags2 == 0
    arm(_fail, direct_mmap=True)
    try:
        assert not _native.allows_direct_mmap()
        with FakeKernel(_native) as kernel:
            answer = kernel.init()
            assert (answer.flags & INIT_EXT, answer.flags2) == (INIT_EXT, DIRECT_IO_ALLOW_MMAP)
            assert _native.allows_direct_mmap()
        with FakeKernel(_native) as old:
            assert old.init(minor=38).flags2 == 0
            assert not _native.allows_direct_mmap()
    finally:
        _native.disarm()


def test_a_session_is_left_alone_unless_armed(received: list[Request]) -> None:
    _native.disarm()
    with FakeKernel(_native) as kernel:
        kernel.init()
        assert not _native.is_extended()
        assert kernel.call(Opcode.LSEEK, lseek(0, 3)).errno == errno.ENOSYS
    assert not received


def test_what_has_no_handler_is_left_to_the_kernel() -> None:
    arm(_fail, operations=["lseek"])
    try:
        with FakeKernel(_native) as kernel:
            kernel.init()
            fallocate = struct.pack("<QQQII", FH, 0, 1, 0, 0)
            assert kernel.call(Opcode.FALLOCATE, fallocate).errno == errno.ENOSYS
    finally:
        _native.disarm()


def test_an_operation_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown operation: lseeek"):
        arm(_fail, operations=["lseek", "lseeek"])
    with pytest.raises(TypeError):
        arm(_fail, operations=[b"lseek"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="must be a sequence"):
        arm(_fail, operations=5)  # type: ignore[arg-type]


# --- what the kernel says beside the handlers' arguments ----------------------------------------


@pytest.mark.parametrize(
    ("opcode", "body", "flags", "lock_owner"),
    [
        (
            Opcode.SETATTR,
            struct.pack("<I84x", SETATTR_KILL_SUIDGID | 1),
            SETATTR_KILL_SUIDGID | 1,
            0,
        ),
        (Opcode.OPEN, struct.pack("<II", os.O_RDWR, OPEN_KILL_SUIDGID), OPEN_KILL_SUIDGID, 0),
        (
            Opcode.CREATE,
            struct.pack("<IIII", os.O_RDWR, 0o644, 0, OPEN_KILL_SUIDGID) + b"name\0",
            OPEN_KILL_SUIDGID,
            0,
        ),
        (
            Opcode.WRITE,
            struct.pack("<QQIIQII", FH, 0, 1, WRITE_KILL_SUIDGID, OWNER, 0, 0) + b"x",
            WRITE_KILL_SUIDGID,
            OWNER,
        ),
        (Opcode.FLUSH, struct.pack("<QIIQ", FH, 0, 0, OWNER), 0, OWNER),
        (
            Opcode.RELEASE,
            struct.pack("<QIIQ", FH, 0, RELEASE_FLOCK_UNLOCK, OWNER),
            RELEASE_FLOCK_UNLOCK,
            OWNER,
        ),
        (Opcode.GETATTR, struct.pack("<IIQ", 0, 0, 0), 0, 0),
    ],
)
def test_what_only_the_wire_says_is_noted(
    kernel: FakeKernel, opcode: Opcode, body: bytes, flags: int, lock_owner: int
) -> None:
    kernel.call(Opcode.FLUSH, struct.pack("<QIIQ", FH, 0, 0, 1))  # must leave nothing behind
    unique = kernel.send(opcode, body)
    assert _native.last_request() == (unique, flags, lock_owner)


def test_an_interrupt_is_no_request_of_its_own(kernel: FakeKernel) -> None:
    numbers: list[int] = []
    arm(_fail, interrupted=numbers.append)
    unique = kernel.send(Opcode.FLUSH, struct.pack("<QIIQ", FH, 0, 0, OWNER))
    kernel.send(Opcode.INTERRUPT, struct.pack("<Q", unique))
    assert numbers == [unique]
    assert _native.last_request() == (unique, 0, OWNER)
    _native.disarm()
    kernel.send(Opcode.INTERRUPT, struct.pack("<Q", unique))
    assert numbers == [unique]


# --- the build --------------------------------------------------------------------------------


def test_it_compiles_without_a_warning(tmp_path: Path) -> None:
    source = Path(_native.__file__ or "").parent
    flags = subprocess.run(
        ["pkg-config", "--cflags", "fuse3"], check=True, capture_output=True, text=True
    ).stdout
    include = sysconfig.get_paths()["include"]
    strict = ["-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
    sources = [str(path) for path in sorted(source.glob("*.c"))]
    assert sources
    subprocess.run(
        ["gcc", *strict, "-O2", f"-I{include}", *shlex.split(flags), "-c", *sources],
        check=True,
        cwd=tmp_path,
    )
