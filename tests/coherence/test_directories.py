"""Directories that both mounts make, remove and move through each other: no tree is ever lost."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Final

import pytest

from tests.coherence.pairs import Pair, at_once
from tests.mount.mounts import succeed

pytestmark = pytest.mark.mount

TREASURES: Final = 8
EMPTY: Final = 4
DEPTH_MAX: Final = 12
REFUSALS: Final = frozenset(
    {
        errno.ENOENT,  # the other has moved or removed it
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.EINVAL,  # into itself
        errno.ESTALE,  # the other has moved it again while Linux walked the path once more
    }
)


def some_directory(root: Path, dice: random.Random) -> Path:
    """Walk down from the root for a while, and return where that led."""
    path = root
    for _ in range(dice.randrange(DEPTH_MAX)):
        below = [each.name for each in os.scandir(path) if each.is_dir()]
        if not below:
            break
        path /= dice.choice(below)
    return path


def change(root: Path, dice: random.Random, operations: int) -> int:
    """Do random operations on directories; return how many were done."""
    done = 0
    for _ in range(operations):
        try:
            one, other = some_directory(root, dice), some_directory(root, dice)
            match dice.randrange(4):
                case 0:
                    (one / f"empty{dice.randrange(EMPTY)}").mkdir()
                case 1 if one != root:
                    one.rmdir()
                case _ if one != root:
                    one.rename(other / one.name)
            done += 1
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
    return done


def treasures(root: Path) -> list[str]:
    """Return every treasure that is found below, each as often as it is found."""
    found = []
    for path, directories, files in os.walk(root, onerror=fail):
        found += [f"{Path(path).name}: {file}" for file in files]
        directories.sort()
    return sorted(found)


def fail(error: OSError) -> None:
    raise error


def test_crossing_moves_lose_no_tree_and_make_no_cycle(pair: Pair) -> None:
    for number in range(TREASURES):
        (pair.first / f"{number}").mkdir()
        (pair.first / f"{number}" / f"treasure{number}").write_bytes(b"%d" % number)
    expected = [f"{number}: treasure{number}" for number in range(TREASURES)]
    done = at_once(
        lambda: change(pair.first, random.Random(1), pair.rounds),
        lambda: change(pair.second, random.Random(2), pair.rounds),
    )
    assert min(done) > pair.rounds / 4, "they have hindered each other"
    for root in (pair.first, pair.second):
        assert treasures(root) == expected
    succeed("fsck", pair.store_option)


def test_two_directories_that_each_mount_moves_into_the_other(pair: Pair) -> None:
    """One of the two moves is refused: else both would be cut off from the root."""
    for number in range(pair.rounds // 5):
        one, other = f"{number}a", f"{number}b"
        (pair.first / one).mkdir()
        (pair.first / other).mkdir()
        done = at_once(
            lambda: move(pair.first, one, other),  # noqa: B023
            lambda: move(pair.second, other, one),  # noqa: B023
        )
        assert sum(done) == 1
        survivor = other if done[0] else one
        for root in (pair.first, pair.second):
            assert os.listdir(root / survivor) == [one if done[0] else other]
    succeed("fsck", pair.store_option)


def move(root: Path, name: str, into: str) -> bool:
    """Move a directory into another; tell whether that was possible."""
    try:
        (root / name).rename(root / into / name)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.EINVAL}:
            raise
        return False
    return True


def test_a_directory_is_filled_or_removed_never_both(pair: Pair) -> None:
    """mkdir or create in a directory on one mount, while the other removes that."""
    for number in range(pair.rounds // 5):
        name = f"{number}"
        (pair.first / name).mkdir()
        filled, removed = at_once(
            lambda: fill(pair.first / name),  # noqa: B023
            lambda: remove(pair.second / name),  # noqa: B023
        )
        assert filled != removed
        for root in (pair.first, pair.second):
            assert (
                (sorted(os.listdir(root / name)) == ["file"])
                if filled
                else (name not in os.listdir(root))
            )


def fill(directory: Path) -> bool:
    try:
        os.close(os.open(directory / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileNotFoundError:
        return False
    return True


def remove(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return False
    return True
