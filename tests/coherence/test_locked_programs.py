"""Programs that rely on locks, one on each mount: a database, and a process that is killed."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Final

import pytest

from tests.coherence.pairs import Pair, opened, seconds_until
from tests.mount.mounts import TIMEOUT_S

pytestmark = pytest.mark.mount

TRANSACTIONS: Final = 50  # of each of two
CLOSED_S: Final = 2.0  # in which the kernel has closed all that a dead process had open

_HOLD: Final = """
import fcntl, sys
file = open(sys.argv[1], "r+")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""

_COUNT: Final = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for _ in range(int(sys.argv[2])):
    db.execute("begin immediate")
    db.execute("update counter set number = number + 1")
    db.execute("commit")
"""


@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_a_process_that_is_killed_has_no_lock_any_more(pair: Pair, call: str) -> None:
    lock: Callable[[int, int], None] = getattr(fcntl, call)
    (pair.first / "file").touch()

    def is_free(file: int) -> bool:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    with (
        opened(pair.second / "file", os.O_RDWR) as file,
        subprocess.Popen(
            [sys.executable, "-c", _HOLD, pair.first / "file", call],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        assert not is_free(file)
        holder.kill()
        seconds_until(lambda: is_free(file), within_s=CLOSED_S)


def test_sqlite_loses_no_increment(pair: Pair) -> None:
    with closing(sqlite3.connect(pair.first / "db")) as db:
        db.execute("create table counter (number integer)")
        db.execute("insert into counter values (0)")
        db.commit()
    programs = [
        subprocess.Popen([sys.executable, "-c", _COUNT, path / "db", str(TRANSACTIONS)])
        for path in (pair.first, pair.second)
    ]
    assert [each.wait(TIMEOUT_S) for each in programs] == [0, 0]
    with closing(sqlite3.connect(pair.second / "db")) as db:
        assert db.execute("select number from counter").fetchone() == (2 * TRANSACTIONS,)
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
