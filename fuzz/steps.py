"""What a target makes of its input when one input is several things: steps, numbers, bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

T = TypeVar("T")

STEPS_MAX: Final = 16  # of one input; more find nothing new, and are slow
_LENGTH_BYTES: Final = 2


class Step(NamedTuple):
    """One thing to do: which, and with what."""

    kind: int
    content: bytes


def encode_steps(steps: Sequence[Step]) -> bytes:
    """Return the input that consists of these steps."""
    return b"".join(
        bytes((kind,)) + len(content).to_bytes(_LENGTH_BYTES, "big") + content
        for kind, content in steps
    )


def decode_steps(data: bytes) -> Iterator[Step]:
    """Read the steps of an input; any bytes are some."""
    source = Source(data)
    for _ in range(STEPS_MAX):
        if not source.left:
            return
        yield Step(source.byte(), source.take(source.number(_LENGTH_BYTES)))


class Source:
    """Hands out the bytes of an input, and zeros after its end."""

    def __init__(self, data: bytes) -> None:
        """Begin with the first byte."""
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes were not handed out yet."""
        return max(0, len(self._data) - self._at)

    def take(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.take(self.left)

    def number(self, size: int) -> int:
        """Return the next bytes as a number, big-endian."""
        return int.from_bytes(self.take(size), "big")

    def byte(self) -> int:
        """Return the next byte as a number."""
        return self.number(1)

    def choose(self, choices: Sequence[T]) -> T:
        """Return the choice that the next byte makes."""
        return choices[self.byte() % len(choices)]
