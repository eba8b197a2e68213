"""``aspenfs`` with its cache coherence broken: it is deaf to what other clients change.

Run as ``deaf_mount.py PROGRAM OPTION… aspenfs ARGUMENT…``: it takes the place of the program. The
checker must find that out, or it would find nothing out.
"""

from __future__ import annotations

import sys

from aspenfs.cli import main
from aspenfs.watch import Watcher
from aspenkv.contract import WatchEvent


async def _pass_at_once(self: Watcher) -> bool:
    """Say that the caches have everything."""
    return self.is_live


def _ignore(self: Watcher, event: WatchEvent) -> None:
    """Leave the caches, and the kernel, as they are."""


def break_coherence() -> None:
    """Put the above in place of what does the work, which must exist under these names."""
    for name, broken in (("barrier", _pass_at_once), ("_apply_all", _ignore)):
        assert callable(getattr(Watcher, name, None)), f"Watcher has no {name}"
        setattr(Watcher, name, broken)


if __name__ == "__main__":
    break_coherence()
    sys.argv = ["aspenfs", *sys.argv[sys.argv.index("aspenfs") + 1 :]]
    main()
