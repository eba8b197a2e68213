"""Links: a path that leads over a symlink, and a file that has a second name."""

from __future__ import annotations

from typing import Final

import pytest

from tests.coherence.files import opens, small
from tests.coherence.pairs import Pair

pytestmark = pytest.mark.mount

ROUNDS: Final = 200


def test_a_symlink_that_was_switched(pair: Pair) -> None:
    """As a release is put live: the path through it leads to the new directory at once."""
    for which in ("even", "odd"):
        (pair.first / which).mkdir()
        (pair.first / which / "file").write_text(which)
    for number, writer, reader in pair.turns(ROUNDS):
        which = ("even", "odd")[number % 2]
        (writer / "new").symlink_to(which)
        (writer / "new").rename(writer / "current")
        assert (reader / "current" / "file").read_text() == which


def test_a_hard_link_that_comes_and_goes(pair: Pair) -> None:
    for number, writer, reader in pair.turns(ROUNDS):
        (writer / f"{number}").write_bytes(small(number))
        (writer / "link").hardlink_to(writer / f"{number}")
        assert (reader / "link").read_bytes() == small(number)
        (writer / "link").unlink()
        assert not opens(reader / "link")
