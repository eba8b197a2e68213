"""Three mounts of one volume, each in a process of its own, and the workers that use them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from tests.history.history import Call, load
from tests.mount.mounts import TIMEOUT_S, Mount, mounting
from tests.network.processes import read_line, serving

MOUNTS: Final = 3
_REPOSITORY: Final = Path(__file__).parents[2]


@contextmanager
def three_mounts(place: Path, *, prefix: Sequence[str] = ()) -> Iterator[list[Mount]]:
    """Serve a fresh volume below a directory, and mount it; ``prefix`` as for a ``Mount``."""
    with ExitStack() as stack:
        server = stack.enter_context(serving(place))
        yield [
            stack.enter_context(
                mounting(place / f"mount{number}", ticket_file=server.ticket_file, prefix=prefix)
            )
            for number in range(MOUNTS)
        ]


def record(mounts: Sequence[Mount], place: Path, seed: int, calls: int) -> list[Call]:
    """Have a worker on each mount make so many calls, all at once; return what they recorded.

    Args:
        mounts: where; they use a directory of their own for each seed.
        place: for their records.
        seed: of their dice. Who comes first is left to chance.
        calls: of each worker.
    """
    records = [place / f"history{seed}.{number}" for number in range(len(mounts))]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                _working(
                    mount.mountpoint / f"seed{seed}", str(number), str(seed), str(calls), record
                )
            )
            for number, (mount, record) in enumerate(zip(mounts, records, strict=True))
        ]
        _obey(workers[:1], "prepare")
        _obey(workers, "work")
        _obey(workers, "look")
    return sorted(call for each in records for call in load(each.read_text()))


@contextmanager
def _working(directory: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.history.worker", directory, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_REPOSITORY,
    )
    stdin, stdout = _pipes(worker)
    try:
        yield worker
        stdin.close()
        assert worker.wait(TIMEOUT_S) == 0
    finally:
        worker.kill()
        worker.wait(TIMEOUT_S)
        stdin.close()
        stdout.close()


def _pipes(worker: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    return worker.stdin, worker.stdout


def _obey(workers: Sequence[subprocess.Popen[bytes]], order: str) -> None:
    """Have the workers do something at the same time, and wait until all have."""
    pipes = [_pipes(worker) for worker in workers]
    for stdin, _ in pipes:
        stdin.write(f"{order}\n".encode())
        stdin.flush()
    for _, stdout in pipes:
        assert read_line(stdout) == b"done\n", "a worker failed; its traceback is above"
