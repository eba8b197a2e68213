"""O_APPEND from two mounts: every byte is kept, every write is whole, and all are soon seen."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.coherence.pairs import Pair, at_once, opened
from tests.mount.mounts import TIMEOUT_S
from tests.network.processes import read_line

pytestmark = pytest.mark.mount

APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND
APPENDS_PER_ROUND: Final = 10  # 10,000 by ticket
STORM_APPENDS: Final = 500
TAIL_LINES: Final = 40
TAIL_S: Final = 1.0  # a generous bound; the benchmark measures


def test_alternating_appends_keep_every_byte(pair: Pair) -> None:
    expected = bytearray()
    with opened(pair.first / "log", APPEND) as one, opened(pair.second / "log", APPEND) as other:
        for number in range(APPENDS_PER_ROUND * pair.rounds):
            file = (one, other)[number % 2]
            line = b"%d %s\n" % (number, b"." * (number % 50))
            assert os.write(file, line) == len(line)
            os.fsync(file)
            expected += line
            assert os.fstat(file).st_size == len(expected)
    for each in (pair.first, pair.second):
        assert (each / "log").read_bytes() == expected


@pytest.mark.parametrize("synced", [True, False])
def test_appends_of_both_at_once_keep_every_line_whole(pair: Pair, synced: bool) -> None:
    def lines(who: str) -> list[bytes]:
        return [b"%s %d %s\n" % (who.encode(), n, b"." * (n % 300)) for n in range(STORM_APPENDS)]

    def append(directory: Path, who: str) -> None:
        with opened(directory / "log", APPEND) as file:
            for line in lines(who):
                assert os.write(file, line) == len(line)
                if synced:
                    os.fsync(file)

    at_once(lambda: append(pair.first, "one"), lambda: append(pair.second, "other"))
    for each in (pair.first, pair.second):
        found = (each / "log").read_bytes().splitlines(keepends=True)
        assert Counter(found) == Counter(lines("one") + lines("other"))
        for who in ("one", "other"):
            ours = [line for line in found if line.startswith(who.encode() + b" ")]
            assert ours == lines(who), "in the order in which they were written"


def test_tail_follows_a_log_that_stays_open(pair: Pair) -> None:
    for writer, reader in ((pair.first, pair.second), (pair.second, pair.first)):
        name = f"{writer.parent.parent.name}.log"
        (writer / name).write_bytes(b"begin\n")
        command = ["tail", "-f", "-s", "0.01", "-n", "+1", str(reader / name)]
        with (
            opened(writer / name, APPEND) as file,
            subprocess.Popen(command, stdout=subprocess.PIPE) as tail,
        ):
            assert tail.stdout is not None
            try:
                assert read_line(tail.stdout) == b"begin\n"
                for number in range(TAIL_LINES):
                    line = b"line %d\n" % number
                    began_s = time.monotonic()
                    os.write(file, line)
                    assert read_line(tail.stdout) == line
                    assert time.monotonic() - began_s < TAIL_S
            finally:
                tail.kill()
                tail.wait(TIMEOUT_S)
