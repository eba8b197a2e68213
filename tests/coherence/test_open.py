"""Close-to-open: who opens a file after a close elsewhere reads what was written."""

from __future__ import annotations

import mmap
import os
import random
from typing import Final

import pytest

from tests.coherence.files import CHUNK_BYTES, content_of, replace, small
from tests.coherence.pairs import Pair, opened

pytestmark = pytest.mark.mount

CHUNKS_MAX: Final = 5
LARGE_ROUNDS: Final = 100
ROUNDS: Final = 200


def test_a_file_that_was_rewritten(pair: Pair) -> None:
    for number, writer, reader in pair.turns():
        (writer / "file").write_bytes(small(number))
        assert (reader / "file").read_bytes() == small(number)


def test_a_file_that_was_replaced(pair: Pair) -> None:
    for number, writer, reader in pair.turns():
        replace(writer / "file", small(number))
        assert (reader / "file").read_bytes() == small(number)


def test_a_file_that_changed_places_with_another(pair: Pair) -> None:
    """Both live on, each under the name that the other had."""
    for each in ("one", "other"):
        (pair.first / each).write_bytes(each.encode())
    held = [b"one", b"other"]
    for _, writer, reader in pair.turns(ROUNDS):
        (writer / "one").rename(writer / "aside")
        (writer / "other").rename(writer / "one")
        (writer / "aside").rename(writer / "other")
        held.reverse()
        assert [(reader / each).read_bytes() for each in ("one", "other")] == held


def test_a_large_file_that_was_rewritten(pair: Pair) -> None:
    dice = random.Random(1)
    for number, writer, reader in pair.turns(LARGE_ROUNDS):
        content = content_of(number, dice.randrange(CHUNKS_MAX * CHUNK_BYTES))
        (writer / "file").write_bytes(content)
        assert (reader / "file").read_bytes() == content


def test_a_large_file_that_was_replaced(pair: Pair) -> None:
    dice = random.Random(2)
    for number, writer, reader in pair.turns(LARGE_ROUNDS):
        content = content_of(number, dice.randrange(CHUNKS_MAX * CHUNK_BYTES))
        replace(writer / "file", content)
        assert (reader / "file").read_bytes() == content


def test_a_part_of_a_large_file_that_was_overwritten(pair: Pair) -> None:
    dice = random.Random(3)
    content = bytearray(content_of(0, CHUNKS_MAX * CHUNK_BYTES))
    (pair.first / "file").write_bytes(content)
    for number, writer, reader in pair.turns(LARGE_ROUNDS):
        offset = dice.randrange(len(content) - CHUNK_BYTES)
        part = content_of(number, dice.randrange(CHUNK_BYTES))
        with (writer / "file").open("r+b") as file:
            file.seek(offset)
            file.write(part)
        content[offset : offset + len(part)] = part
        assert (reader / "file").read_bytes() == content


def test_bytes_that_were_synced_and_not_closed(pair: Pair) -> None:
    with opened(pair.first / "file", os.O_WRONLY | os.O_CREAT) as file:
        for number in range(ROUNDS):
            os.pwrite(file, content_of(number, 1000), 0)
            os.fsync(file)
            assert (pair.second / "file").read_bytes() == content_of(number, 1000)


def test_bytes_that_were_written_through_a_mapping(pair: Pair) -> None:
    size = 2 * CHUNK_BYTES
    (pair.first / "file").write_bytes(bytes(size))
    with opened(pair.first / "file", os.O_RDWR) as file, mmap.mmap(file, size) as mapping:
        for number in range(ROUNDS // 4):
            mapping[:] = content_of(number, size)
            mapping.flush()  # msync(2)
            assert (pair.second / "file").read_bytes() == content_of(number, size)
