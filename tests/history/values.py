"""What is written to files, so that what is read tells who wrote it, and if it is whole. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

from tests.history.history import OK
from tests.history.parts import Part
from tests.history.registers import EMPTY, MIXED

_FRAGMENTS_MAX: Final = 4


def content(value: str, size: int) -> bytes:
    """Return what a file that holds a value has in it: the value, again and again.

    All contents of one size differ from each other in every line.
    """
    line = f"{value:<15}\n".encode()
    return (line * (size // len(line) + 1))[:size]


def size_of(value: str, part: Part) -> int:
    """Return how much a file of a part holds: always the same if it is written in place."""
    more = zlib.crc32(value.encode()) % part.value_bytes if part.kind == "replaced" else 0
    return part.value_bytes + more


def value_of(data: bytes, part: Part) -> tuple[str, tuple[str, ...]]:
    """Return what a read found: an outcome, and the value, or what there is in place of one."""
    if not data:
        return EMPTY, ()
    value = data[:16].decode(errors="replace").strip()
    if data == content(value, size_of(value, part)):
        return OK, (value,)
    lines = sorted({line.strip().decode(errors="replace") for line in data.split(b"\n")})
    return MIXED, (f"{len(data)} bytes", *lines[:_FRAGMENTS_MAX])


def line(name: str, size: int) -> bytes:
    """Return a line for a log, which shows if it is torn."""
    return f"{name}:{'.' * size}:{name}\n".encode()


def lines_of(data: bytes) -> Sequence[str]:
    """Return the names of the lines of a log; of what is no whole line, all that is there."""
    return [_name(each) for each in data.decode(errors="replace").splitlines(keepends=True)]


def _name(text: str) -> str:
    name, _, rest = text.partition(":")
    dots = rest.removesuffix(f":{name}\n")
    return name if dots != rest and not dots.strip(".") else f"torn {text!r}"
