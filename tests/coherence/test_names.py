"""Names: who opens, lists, makes or removes after a change elsewhere finds what there is."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

import pytest

from tests.coherence.files import opens
from tests.coherence.pairs import Pair, at_once
from tests.mount.mounts import TIMEOUT_S

pytestmark = pytest.mark.mount

ROUNDS: Final = 200


def test_a_file_that_was_created(pair: Pair) -> None:
    for number, writer, reader in pair.turns(ROUNDS):
        (writer / f"{number}").touch()
        assert opens(reader / f"{number}")


def test_a_name_that_comes_and_goes(pair: Pair) -> None:
    """The reader has always looked for it in vain, or found it, just before."""
    for _, writer, reader in pair.turns():
        assert not opens(reader / "file")
        (writer / "file").touch()
        assert opens(reader / "file")
        (writer / "file").unlink()
    assert not opens(pair.first / "file")


def test_a_directory_that_comes_and_goes(pair: Pair) -> None:
    for number, writer, reader in pair.turns(ROUNDS):
        (writer / "directory").mkdir()
        (writer / "directory" / f"{number}").touch()
        assert os.listdir(reader / "directory") == [f"{number}"]
        (writer / "directory" / f"{number}").unlink()
        assert os.listdir(reader / "directory") == []
        (writer / "directory").rmdir()
        with pytest.raises(FileNotFoundError):
            os.listdir(reader / "directory")


def test_a_directory_that_was_moved(pair: Pair) -> None:
    """What is below it is opened by the new path, and no longer by the old one."""
    (pair.first / "0").mkdir()
    (pair.first / "0" / "file").touch()
    for number, writer, reader in pair.turns(ROUNDS):
        assert opens(reader / f"{number}" / "file")
        (writer / f"{number}").rename(writer / f"{number + 1}")
        assert not opens(reader / f"{number}" / "file")
        assert opens(reader / f"{number + 1}" / "file")


def test_a_name_that_was_missing_is_there_once_it_was_made(pair: Pair) -> None:
    """For stat too: only that something is missing is never taken from a cache."""
    for number, writer, reader in pair.turns(ROUNDS):
        assert not (reader / f"{number}").exists()
        (writer / f"{number}").touch()
        assert (reader / f"{number}").exists()


def test_what_one_makes_the_other_removes_and_makes_again(pair: Pair) -> None:
    """No call fails for what was there a moment ago."""
    for _, one, other in pair.turns(ROUNDS // 2):
        (one / "directory").mkdir()
        (other / "directory").rmdir()
        (other / "directory").mkdir()
        (one / "directory").rename(one / "moved")
        (other / "moved").rename(other / "directory")
        (one / "directory").rmdir()
        (one / "file").touch(exist_ok=False)
        (other / "file").unlink()
        (other / "file").touch(exist_ok=False)
        (one / "link").hardlink_to(one / "file")
        (other / "file").unlink()
        (one / "file").symlink_to("link")
        (other / "link").rename(other / "file")
        (one / "file").unlink()


def test_a_refusal_is_for_what_there_is(pair: Pair) -> None:
    for _, writer, other in pair.turns(ROUNDS // 2):
        (writer / "directory").mkdir()
        with pytest.raises(FileExistsError):
            (other / "directory").mkdir()
        (writer / "directory" / "file").touch()
        with pytest.raises(OSError, match="not empty"):
            (other / "directory").rmdir()
        (writer / "directory" / "file").unlink()
        (other / "directory").rmdir()
        with pytest.raises(FileNotFoundError):
            (writer / "directory" / "file").touch()


def test_an_exclusive_creation_by_both_at_once_has_one_winner(pair: Pair) -> None:
    def create(directory: Path, number: int) -> bool:
        try:
            os.close(os.open(directory / f"{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    def race(directory: Path) -> list[bool]:
        won = []
        for number in range(pair.rounds):
            start.wait(TIMEOUT_S)
            won.append(create(directory, number))
        return won

    start = threading.Barrier(2)
    ours, theirs = at_once(lambda: race(pair.first), lambda: race(pair.second))
    assert [one + other for one, other in zip(ours, theirs, strict=True)] == [1] * pair.rounds
