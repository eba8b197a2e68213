"""What the other levels of coherence promise: strict more than the default, ttl less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from aspenfs.limits import KERNEL_TTL_S, META_CACHE_TTL_S, READ_CACHE_TTL_S
from tests.coherence.files import content_of, small
from tests.coherence.pairs import Carrier, Pair, opened, seconds_until, two_mounts
from tests.mount.mounts import succeed

pytestmark = pytest.mark.mount

ROUNDS: Final = 150
TTL_ROUNDS: Final = 2
BUSY_S: Final = 1.0  # what a busy machine adds
NAMES_S: Final = KERNEL_TTL_S + META_CACHE_TTL_S + BUSY_S
CONTENT_S: Final = NAMES_S + READ_CACHE_TTL_S


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Pair]:
    with two_mounts(tmp_path, Carrier.TICKETS, "--coherence=strict") as (first, second):
        yield Pair(first.mountpoint, second.mountpoint, ROUNDS, first.store_option)


@pytest.fixture
def ttl(tmp_path: Path) -> Iterator[Pair]:
    with two_mounts(tmp_path, Carrier.TICKETS, "--coherence=ttl") as (first, second):
        yield Pair(first.mountpoint, second.mountpoint, TTL_ROUNDS, first.store_option)


# --- strict ---------------------------------------------------------------------------------------


def test_strict_attributes_are_those_of_the_last_change(strict: Pair) -> None:
    (strict.first / "file").touch()
    for number, writer, reader in strict.turns():
        (writer / "file").write_bytes(bytes(number))
        assert (reader / "file").stat().st_size == number
        (writer / "file").chmod(0o600 + number % 64)
        assert (reader / "file").stat().st_mode & 0o777 == 0o600 + number % 64


def test_strict_names_are_those_of_the_last_change(strict: Pair) -> None:
    for _, writer, reader in strict.turns():
        assert not (reader / "file").exists()
        (writer / "file").touch()
        assert (reader / "file").exists()
        (writer / "file").rename(writer / "moved")
        assert [(reader / each).exists() for each in ("file", "moved")] == [False, True]
        (writer / "moved").unlink()
        assert not (reader / "moved").exists()


def test_strict_attributes_of_an_open_file_are_those_of_the_last_change(strict: Pair) -> None:
    for writer, reader in ((strict.first, strict.second), (strict.second, strict.first)):
        (writer / "file").write_bytes(b"")
        with opened(reader / "file", os.O_RDONLY) as file:
            for number in range(ROUNDS // 2):
                (writer / "file").write_bytes(small(number))
                assert os.fstat(file).st_size == len(small(number))


# --- ttl ------------------------------------------------------------------------------------------


def test_ttl_shows_a_change_when_its_time_to_live_is_over(ttl: Pair) -> None:
    (ttl.first / "file").write_bytes(b"")
    for number, writer, reader in ttl.turns(2 * TTL_ROUNDS):
        (reader / "file").read_bytes()  # now it is cached
        content = content_of(number, 1000 * (number + 1))
        (writer / "file").write_bytes(content)
        (writer / f"{number}").touch()
        seconds_until(
            lambda: (reader / "file").stat().st_size == len(content),  # noqa: B023
            NAMES_S,
        )
        seconds_until(
            lambda: (reader / "file").read_bytes() == content,  # noqa: B023
            CONTENT_S,
        )
        seconds_until((reader / f"{number}").exists, NAMES_S)


def test_ttl_loses_no_bytes_and_no_names_all_the_same(ttl: Pair) -> None:
    """What is changed is changed upon what is there, whatever a cache says."""
    expected = bytearray()
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with opened(ttl.first / "log", append) as one, opened(ttl.second / "log", append) as other:
        for number in range(ROUNDS):
            file = (one, other)[number % 2]
            line = b"%d\n" % number
            os.write(file, line)
            os.fsync(file)
            expected += line
    for number, writer, reader in ttl.turns(20):
        os.close(os.open(writer / f"{number}", os.O_CREAT | os.O_EXCL))
        with pytest.raises(FileExistsError):
            os.close(os.open(reader / f"{number}", os.O_CREAT | os.O_EXCL))
    for each in (ttl.first, ttl.second):
        seconds_until(
            lambda: (each / "log").read_bytes() == expected,  # noqa: B023
            CONTENT_S,
        )
    succeed("fsck", ttl.store_option)
