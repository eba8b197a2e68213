"""Writers on both mounts at once, of one file: nobody loses a byte, and some serial order holds."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Final

import pytest

from tests.coherence.pairs import Pair, at_once, opened

pytestmark = pytest.mark.mount

CHUNK_BYTES: Final = 65536
ROUNDS: Final = 20
CUT_ROUNDS: Final = 60
SIZES: Final = pytest.mark.parametrize("size", [2_000, CHUNK_BYTES, 5 * CHUNK_BYTES + 1000])


def write_pieces(path: Path, pieces: list[tuple[int, bytes]], *, sync_each: bool = False) -> None:
    """Write pieces, each at its offset, and close."""
    with opened(path, os.O_WRONLY) as file:
        for offset, piece in pieces:
            assert os.pwrite(file, piece, offset) == len(piece)
            if sync_each:
                os.fsync(file)


@SIZES
@pytest.mark.parametrize("sync_each", [True, False])
def test_different_ranges_of_one_file(pair: Pair, size: int, sync_each: bool) -> None:
    """Stripes that alternate, in any order, within one chunk and across."""
    dice = random.Random(size)
    for number in range(ROUNDS if not sync_each else ROUNDS // 5):
        name = f"{number}"
        (pair.first / name).touch()
        bounds = [0, *sorted(dice.sample(range(1, size), 39)), size]
        content = dice.randbytes(size)
        spans = list(itertools.pairwise(bounds))
        halves = []
        for half in (spans[::2], spans[1::2]):
            pieces = [(start, content[start:end]) for start, end in half]
            dice.shuffle(pieces)
            halves.append(pieces)
        ours, theirs = halves
        at_once(
            lambda: write_pieces(pair.first / name, ours, sync_each=sync_each),  # noqa: B023
            lambda: write_pieces(pair.second / name, theirs, sync_each=sync_each),  # noqa: B023
        )
        for each in (pair.first, pair.second):
            assert (each / name).read_bytes() == content


@SIZES
def test_a_writer_that_has_the_file_open_keeps_what_another_wrote(pair: Pair, size: int) -> None:
    """In turns, with both files open all the time, each flushed by a sync."""
    dice = random.Random(size)
    content = bytearray(size)
    (pair.first / "file").write_bytes(content)
    with (
        opened(pair.first / "file", os.O_RDWR) as one,
        opened(pair.second / "file", os.O_RDWR) as other,
    ):
        for number in range(10 * ROUNDS):
            file = (one, other)[number % 2]
            piece = dice.randbytes(dice.randrange(1, size // 4))
            offset = dice.randrange(size - len(piece))
            os.pwrite(file, piece, offset)
            os.fsync(file)
            content[offset : offset + len(piece)] = piece
    for each in (pair.first, pair.second):
        assert (each / "file").read_bytes() == content


@SIZES
def test_truncate_and_write_at_once_end_as_some_order_of_them(pair: Pair, size: int) -> None:
    dice = random.Random(size)
    for number in range(CUT_ROUNDS):
        name = f"{number}"
        old, piece = dice.randbytes(size), dice.randbytes(dice.randrange(1, size))
        offset, length = dice.randrange(size), dice.randrange(2 * size)
        (pair.first / name).write_bytes(old)
        cutter, writer = (pair.first, pair.second)[:: dice.choice((1, -1))]
        at_once(
            lambda: os.truncate(cutter / name, length),  # noqa: B023
            lambda: write_pieces(writer / name, [(offset, piece)]),  # noqa: B023
        )
        written_last = written(cut(old, length), piece, offset)
        cut_last = cut(written(old, piece, offset), length)
        found = (pair.first / name).read_bytes()
        assert found in {written_last, cut_last}
        assert (pair.second / name).read_bytes() == found


def cut(content: bytes, length: int) -> bytes:
    return content[:length].ljust(length, b"\0")


def written(content: bytes, piece: bytes, offset: int) -> bytes:
    start = content[:offset].ljust(offset, b"\0")
    return start + piece + content[offset + len(piece) :]
