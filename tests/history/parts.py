"""What the workers use together: parts of one directory that have nothing in common. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

FILES: Final = ("a", "b", "c")
DIRECTORIES: Final = ("d", "e")
TREE_FILES: Final = (*FILES[:2], "d/a", "d/b", "e/a", "d/e/a")
TREE_DIRECTORIES: Final = (*DIRECTORIES, "d/e", "e/d")
LISTED: Final = ("", *TREE_DIRECTORIES)


class Part(NamedTuple):
    """One of them."""

    name: str
    kind: str
    """``flat``: files in one directory; ``tree``: also directories; ``log``: lines; or how a value
    is written: ``replaced`` by rename, ``truncated`` and written anew, or ``overwritten``."""
    value_bytes: int = 0


PARTS: Final = (
    Part("flat", "flat"),
    Part("tree", "tree"),
    Part("log", "log"),
    Part("replaced", "replaced", 100),
    Part("replaced large", "replaced", 300_000),  # more than one request, and chunks
    Part("truncated", "truncated", 100),
    Part("truncated large", "truncated", 20_000),
    Part("overwritten", "overwritten", 100),
    Part("overwritten large", "overwritten", 20_000),
)
KINDS: Final = {part.name: part.kind for part in PARTS}
