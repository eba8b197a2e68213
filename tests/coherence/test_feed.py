"""What is seen without an open: attributes, entries and bytes, by the feed or by time alone."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import Final

import pytest

from aspenfs.limits import META_CACHE_TTL_S, READ_CACHE_TTL_S
from tests.coherence import cut_feed
from tests.coherence.pairs import FEED_S, Carrier, Pair, opened, seconds_until, two_mounts
from tests.mount.mounts import Mount, eventually

pytestmark = pytest.mark.mount

ROUNDS: Final = 100
CUT_ROUNDS: Final = 2
BUSY_S: Final = 1.0  # what a busy machine adds
SIZE: Final = 300_000


def size_of(path: Path) -> int:
    return path.stat().st_size


# --- while the feed is live -----------------------------------------------------------------------


def test_a_new_size_is_seen(pair: Pair) -> None:
    (pair.first / "file").touch()
    for number, writer, reader in pair.turns(ROUNDS):
        assert size_of(reader / "file") == number  # now the kernel knows it
        with (writer / "file").open("ab") as file:
            file.write(b"+")
        seconds_until(lambda: size_of(reader / "file") == number + 1, FEED_S)  # noqa: B023


def test_a_new_mode_is_seen(pair: Pair) -> None:
    (pair.first / "file").touch()
    for number, writer, reader in pair.turns(ROUNDS):
        mode = 0o600 + number % 64
        (reader / "file").stat()
        (writer / "file").chmod(mode)
        seconds_until(lambda: (reader / "file").stat().st_mode & 0o777 == mode, FEED_S)  # noqa: B023


def test_a_name_that_comes_and_goes_is_seen(pair: Pair) -> None:
    for _, writer, reader in pair.turns(ROUNDS):
        assert not (reader / "file").exists()
        (writer / "file").touch()
        seconds_until((reader / "file").exists, FEED_S)
        (writer / "file").unlink()
        seconds_until(lambda: not (reader / "file").exists(), FEED_S)  # noqa: B023


def test_the_time_of_a_directory_that_changed_is_seen(pair: Pair) -> None:
    for number, writer, reader in pair.turns(ROUNDS):
        before = reader.stat().st_mtime_ns
        (writer / f"{number}").touch()
        seconds_until(lambda: reader.stat().st_mtime_ns != before, FEED_S)  # noqa: B023


@pytest.mark.parametrize("size", [1000, SIZE])
def test_new_bytes_are_seen_by_who_has_the_file_open(pair: Pair, size: int) -> None:
    (pair.first / "file").write_bytes(bytes(size))
    for number, writer, reader in pair.turns(20):
        with opened(reader / "file", os.O_RDONLY) as file:
            os.pread(file, size, 0)  # now the kernel has the pages
            content = bytes([number + 1]) * size
            with (writer / "file").open("r+b") as other:
                other.write(content)
            seconds_until(lambda: os.pread(file, size, 0) == content, FEED_S)  # noqa: B023


def test_new_bytes_are_seen_in_a_mapping(pair: Pair) -> None:
    (pair.first / "file").write_bytes(bytes(SIZE))
    with (
        opened(pair.second / "file", os.O_RDONLY) as file,
        mmap.mmap(file, SIZE, prot=mmap.PROT_READ) as mapping,
    ):
        for number in range(20):
            content = bytes([number + 1]) * SIZE
            with (pair.first / "file").open("r+b") as other:
                other.write(content)
            seconds_until(lambda: mapping[:] == content, FEED_S)  # noqa: B023


# --- when it is cut -------------------------------------------------------------------------------


def test_when_the_feed_is_cut_the_times_to_live_hold_until_it_is_back(tmp_path: Path) -> None:
    launcher = (sys.executable, cut_feed.__file__)
    with two_mounts(tmp_path, Carrier.TICKETS, second_prefix=launcher) as (first, second):
        second.expected_log.append("changes by others cannot be followed: the feed is cut")
        content = b"."

        def change() -> bytes:
            nonlocal content
            content += b"."
            (first.mountpoint / "file").write_bytes(content)
            return content

        def sees() -> bool:
            return (second.mountpoint / "file").read_bytes() == content

        change()
        assert sees()
        for cut in range(1, 3):
            order(second, cut_feed.CUT, cut_feed.NOT_FOLLOWED, cut)
            for _ in range(CUT_ROUNDS):
                sees()  # now it is cached
                change()
                seconds_until(
                    lambda: size_of(second.mountpoint / "file") == len(content),
                    META_CACHE_TTL_S + BUSY_S,
                )
                seconds_until(sees, READ_CACHE_TTL_S + BUSY_S)
            (first.mountpoint / f"{cut}").touch()
            assert (second.mountpoint / f"{cut}").exists()
            change()  # while nobody hears of it
            order(second, cut_feed.HEAL, cut_feed.FOLLOWED, cut + 1)
            assert sees()
            for _ in range(ROUNDS):
                change()
                assert sees()


def order(mount: Mount, signal_number: int, answer: str, times: int) -> None:
    """Send a mount a signal, and wait until it has said for so many times what it means."""
    mount.process.send_signal(signal_number)
    eventually(
        lambda: mount.log.read_text().splitlines().count(answer) == times,
        f"the mount says that {answer}",
    )
