"""The process of one subject's server: ``python -m bench.net.serve NAME``.

Prints its port and its fingerprint, and ends when its input does.
"""

from __future__ import annotations

import sys
from functools import partial

import trio

from aspenkv.identity import new_identity
from bench.net.subjects import SUBJECTS


async def _serve(name: str) -> None:
    subject = next(each for each in SUBJECTS if each.name == name)
    identity = new_identity()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(subject.serve, identity))
        sys.stdout.write(f"{port} {identity.fingerprint.hex()}\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_serve, sys.argv[1])
