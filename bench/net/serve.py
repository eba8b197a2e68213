"""The process of one subject's server: ``python -m bench.net.serve NAME``.

Prints its port, its fingerprint and its ticket if it has one, and ends when its input does.
"""

from __future__ import annotations

import sys

import trio

from bench.net.subject import Server
from bench.net.subjects import SUBJECTS


async def _serve(name: str) -> None:
    subject = next(each for each in SUBJECTS if each.name == name)
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(subject.serve)
        sys.stdout.write(f"{server.port} {server.fingerprint.hex()} {server.ticket}\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_serve, sys.argv[1])
