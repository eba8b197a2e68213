"""A kernel's end of a FUSE session, for tests without a mount: requests and answers as bytes.

The session is libfuse's own, on a socket in place of the device; its table of handlers is empty but
for what the extension adds. The structures are those of <linux/fuse.h>.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from enum import IntEnum
from types import ModuleType
from typing import Final, NamedTuple, Self

PROTOCOL: Final = (7, 39)
_IN_HEADER: Final = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, 0
_OUT_HEADER: Final = struct.Struct("<IiQ")  # length, negated errno, unique
_HANDLERS_BYTES: Final = 8 * 40  # a table of pointers; any length will do
_ANSWER_BYTES_MAX: Final = 4096


class Opcode(IntEnum):
    """The requests that tests send."""

    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    WRITE = 16
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    CREATE = 35
    INTERRUPT = 36
    FALLOCATE = 43
    LSEEK = 46
    COPY_FILE_RANGE = 47


class Answer(NamedTuple):
    """What a request was answered with."""

    unique: int
    errno: int
    body: bytes


class InitAnswer(NamedTuple):
    """The answer to FUSE_INIT, as far as tests look at it."""

    flags: int
    max_background: int
    congestion_threshold: int
    flags2: int


class _Args(ctypes.Structure):
    _fields_ = (
        ("argc", ctypes.c_int),
        ("argv", ctypes.POINTER(ctypes.c_char_p)),
        ("allocated", ctypes.c_int),
    )


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("mem", ctypes.c_void_p),
        ("fd", ctypes.c_int),
        ("pos", ctypes.c_longlong),
        ("mem_size", ctypes.c_size_t),  # since libfuse 3.17
    )


class FakeKernel:
    """Makes a session through the extension, and plays the kernel to it."""

    def __init__(self, native: ModuleType) -> None:
        """Open the session; nothing is sent yet."""
        # PyDLL keeps the GIL, as pyfuse3 does.
        self._libfuse = ctypes.PyDLL(native.__file__)
        self._libfuse.fuse_session_new.restype = ctypes.c_void_p
        self._socket, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(0)  # everything is answered by the time that it is read
        arguments = _Args(1, (ctypes.c_char_p * 2)(b"test", None), 0)
        handlers = ctypes.create_string_buffer(_HANDLERS_BYTES)
        self._session = ctypes.c_void_p(
            self._libfuse.fuse_session_new(
                ctypes.byref(arguments), handlers, ctypes.c_size_t(_HANDLERS_BYTES), None
            )
        )
        assert self._session.value
        # libfuse takes the descriptor as it is, and closes it with the session.
        path = f"/dev/fd/{device.detach()}".encode()
        assert self._libfuse.fuse_session_mount(self._session, path) == 0
        self._buffer = _Buffer()
        self._unique = 100

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_session()
        self._socket.close()
        ctypes.CDLL(None).free(ctypes.c_void_p(self._buffer.mem))

    def end_session(self) -> None:
        """End it as pyfuse3.close() does."""
        if self._session.value:
            self._libfuse.fuse_session_destroy(self._session)
            self._session.value = None

    def hang_up(self) -> None:
        """Close the kernel's end: the session finds that out when it answers."""
        self._socket.close()

    def send(self, opcode: Opcode, body: bytes, node: int = 2) -> int:
        """Send a request and let the session take it; return its number."""
        self._unique += 2
        header = _IN_HEADER.pack(
            _IN_HEADER.size + len(body), opcode, self._unique, node, 1000, 1000, 4242, 0
        )
        self._socket.send(header + body)
        buffer = ctypes.byref(self._buffer)
        assert self._libfuse.fuse_session_receive_buf(self._session, buffer) > 0
        self._libfuse.fuse_session_process_buf(self._session, buffer)
        return self._unique

    def answer(self) -> Answer | None:
        """Return the next answer; None: there is none yet."""
        try:
            message = self._socket.recv(_ANSWER_BYTES_MAX)
        except BlockingIOError:
            return None
        if not message:
            return None  # the session has ended
        length, error, unique = _OUT_HEADER.unpack_from(message)
        assert length == len(message)
        return Answer(unique, -error, message[_OUT_HEADER.size :])

    def call(self, opcode: Opcode, body: bytes) -> Answer:
        """Send a request that is answered at once."""
        unique = self.send(opcode, body)
        answer = self.answer()
        assert answer is not None
        assert answer.unique == unique
        return answer

    def init(self, *, minor: int = PROTOCOL[1], flags: int = 0xFFFF_FFFF) -> InitAnswer:
        """Make contact, as a kernel that can do everything but FUSE_INIT_EXT."""
        flags &= ~(1 << 30)
        body = self.call(
            Opcode.INIT, struct.pack("<16I", PROTOCOL[0], minor, 1 << 17, flags, *[0] * 12)
        ).body
        answered = struct.unpack_from("<12xIHH12xI", body)
        return InitAnswer(*answered)
