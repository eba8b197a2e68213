"""Names that are handed to and fro: each mount at once goes on with what the other has done."""

from __future__ import annotations

from typing import Final

import pytest

from tests.coherence.pairs import Pair

pytestmark = pytest.mark.mount

ROUNDS: Final = 100


def test_what_one_makes_the_other_removes_and_makes_again(pair: Pair) -> None:
    """No call fails for what was there a moment ago."""
    for _, one, other in pair.turns(ROUNDS):
        (one / "directory").mkdir()
        (other / "directory").rmdir()
        (other / "directory").mkdir()
        (one / "directory").rename(one / "moved")
        (other / "moved").rename(other / "directory")
        (one / "directory").rmdir()
        (one / "file").touch(exist_ok=False)
        (other / "file").unlink()
        (other / "file").touch(exist_ok=False)
        (one / "file").rename(one / "link")
        (one / "file").symlink_to("link")
        (other / "link").rename(other / "file")
        (one / "file").unlink()
