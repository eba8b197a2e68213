"""Readers of what the other mount goes on changing: whole, new enough, and no wrong error."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from typing import Final

import pytest

from tests.coherence.files import CHUNK_BYTES, content_of, replace, small
from tests.coherence.pairs import Pair, at_once, opened

pytestmark = pytest.mark.mount

LOOP_S: Final = 3.0


def test_a_file_that_is_replaced_all_the_time(pair: Pair) -> None:
    """Each open finds a whole file, and one that is no older than what was there before it."""
    done, is_over = 0, False
    replace(pair.first / "file", content_of(0, 1))

    def write() -> None:
        nonlocal done, is_over
        dice = random.Random(4)
        until_s = time.monotonic() + LOOP_S
        try:
            while time.monotonic() < until_s:
                size = dice.randrange(16, 3 * CHUNK_BYTES)
                replace(pair.first / "file", content_of(done + 1, size))
                done += 1
        finally:
            is_over = True

    def read() -> int:
        count = 0
        while not is_over:
            done_before = done
            content = (pair.second / "file").read_bytes()
            number = int(content[:16])
            assert content == content_of(number, len(content))
            assert number >= done_before
            count += 1
        return count

    _, count = at_once(write, read)
    assert min(done, count or 0) > LOOP_S, "they have hindered each other"


def test_a_file_that_is_rewritten_all_the_time(pair: Pair) -> None:
    """O_TRUNC cuts the file, and one write fills it: a reader finds all of that, or nothing."""
    done, is_over = 0, False
    (pair.first / "file").write_bytes(content_of(0, 16))

    def write() -> None:
        nonlocal done, is_over
        until_s = time.monotonic() + LOOP_S
        try:
            while time.monotonic() < until_s:
                (pair.first / "file").write_bytes(content_of(done + 1, 2000))
                done += 1
        finally:
            is_over = True

    def read() -> None:
        while not is_over:
            done_before = done
            content = (pair.second / "file").read_bytes()
            if content:
                number = int(content[:16])
                assert content == content_of(number, len(content))
                assert number >= done_before

    at_once(write, read)


def test_no_error_but_those_of_posix(pair: Pair) -> None:
    """Paths that are walked while others move and remove what they lead through."""
    names = [f"{number}" for number in range(4)]
    until_s = time.monotonic() + LOOP_S

    def change() -> None:
        dice = random.Random(5)
        while time.monotonic() < until_s:
            directory = pair.first / dice.choice(names)
            directory.mkdir(exist_ok=True)
            (directory / "file").write_bytes(b"content")
            if dice.randrange(2):
                (directory / "file").unlink()
                directory.rmdir()
            else:
                directory.rename(pair.first / "aside")
                (pair.first / "aside" / "file").unlink()
                (pair.first / "aside").rmdir()

    def look() -> None:
        dice = random.Random(6)
        while time.monotonic() < until_s:
            with suppress(FileNotFoundError):
                content = (pair.second / dice.choice(names) / "file").read_bytes()
                assert content in {b"content", b""}

    at_once(change, look)


def test_an_open_file_stays_open_when_its_name_is_taken(pair: Pair) -> None:
    for number, writer, reader in pair.turns(50):
        (writer / "file").write_bytes(small(number))
        with opened(reader / "file", os.O_RDONLY) as file:
            if number % 2:
                replace(writer / "file", b"another")
            else:
                (writer / "file").unlink()
            assert os.pread(file, 1000, 0) == small(number)
            assert os.fstat(file).st_size == len(small(number))
