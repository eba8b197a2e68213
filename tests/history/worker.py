"""A program that calls a mount at random, and records each call with its times.

Run as ``python -m tests.history.worker DIRECTORY MOUNT SEED CALLS RECORD``: a directory on the
mount, the mount's number, and the file for the record. Each line of standard input is an order:
``prepare`` the parts, ``work``, or ``look`` at all there is in the end; it answers with a line when
it has done that.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.history.history import OK, Call, dump
from tests.history.parts import FILES, LISTED, PARTS, TREE_DIRECTORIES, TREE_FILES, Part
from tests.history.registers import FIRST_VALUE
from tests.history.trees import file_node
from tests.history.values import content, line, lines_of, size_of, value_of

FOCUS_NS: Final = 60_000_000
"""For so long all workers mostly use the same part, whichever that is: they shall meet."""
FOCUSED: Final = 0.85  # of the calls go to that part
READS: Final = 0.6  # of the calls for a file with a value are reads
SYNCED: Final = 0.1  # of the writes are followed by fsync(2)
LINE_BYTES_MAX: Final = 300
LINES_MAX: Final = 3  # in one session of an appender
FILE_BYTES_MAX: Final = 4_000_000  # no file gets so large; a read ends there


@dataclass
class _Record:
    """What comes of a call: fields of :class:`Call`."""

    start_ns: int
    outcome: str = OK
    seen: tuple[str, ...] = ()


class Worker:
    """One program on one mount."""

    def __init__(self, directory: Path, mount: int, seed: int) -> None:
        self._directory = directory
        self._mount = mount
        self._seed = seed
        self._dice = random.Random(1_000 * seed + mount)
        self._count = 0
        self.history: list[Call] = []

    def prepare(self) -> None:
        """Make the parts."""
        for part in PARTS:
            directory = self._directory / part.name
            directory.mkdir(parents=True)
            if part.value_bytes:
                first = content(FIRST_VALUE, size_of(FIRST_VALUE, part))
                (directory / "value").write_bytes(first)
            elif part.kind == "log":
                (directory / "log").touch()

    def work(self, calls: int) -> None:
        """Make so many calls, or sessions of calls."""
        for _ in range(calls):
            self.call(self._part())

    def look(self) -> None:
        """Look at everything, as the last thing."""
        for part in PARTS:
            if part.kind == "log":
                self._read_log(part)
            elif part.value_bytes:
                self._read(part)
            else:
                for path in LISTED if part.kind == "tree" else ("",):
                    self._list(part, path)
                for path in TREE_FILES if part.kind == "tree" else FILES:
                    self._open(part, path)

    def _part(self) -> Part:
        if self._dice.random() < FOCUSED:
            window = time.monotonic_ns() // FOCUS_NS
            return random.Random(self._seed + 1_000 * window).choice(PARTS)
        return self._dice.choice(PARTS)

    def call(self, part: Part) -> None:
        """Make a call, or a session, of those that a part is for."""
        match part.kind:
            case "flat":
                self._change_files(part, FILES, lists=("",))
            case "tree":
                if self._dice.random() < 0.5:
                    self._change_directories(part)
                else:
                    self._change_files(part, TREE_FILES, lists=LISTED)
            case "log":
                (self._append if self._dice.random() < 0.5 else self._read_log)(part)
            case _:
                (self._read if self._dice.random() < READS else self._write)(part)

    # --- trees ----------------------------------------------------------------------------------

    def _change_files(self, part: Part, paths: Sequence[str], lists: Sequence[str]) -> None:
        one, other = self._dice.choice(paths), self._dice.choice(paths)
        match self._dice.choices(
            ("create", "open", "unlink", "link", "rename", "list"), (4, 6, 2, 2, 4, 1)
        )[0]:
            case "create":
                self._create(part, one)
            case "open":
                self._open(part, one)
            case "unlink":
                self._change(part, "unlink", os.unlink, one)
            case "link":
                self._link(part, one, other)
            case "rename":
                self._rename(part, one, other)
            case _:
                self._list(part, self._dice.choice(lists))

    def _change_directories(self, part: Part) -> None:
        one, other = self._dice.choice(TREE_DIRECTORIES), self._dice.choice(TREE_DIRECTORIES)
        match self._dice.choices(("mkdir", "rmdir", "rename", "list"), (4, 2, 3, 2))[0]:
            case "mkdir":
                self._change(part, "mkdir", os.mkdir, one)
            case "rmdir":
                self._change(part, "rmdir", os.rmdir, one)
            case "rename":
                self._rename(part, one, other)
            case _:
                self._list(part, self._dice.choice(LISTED))

    def _create(self, part: Part, path: str) -> None:
        with self._recorded(part, "create", path) as record, self._last(part, path) as (at, name):
            record.seen = (_open_briefly(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, at),)

    def _open(self, part: Part, path: str) -> None:
        with self._recorded(part, "open", path) as record:
            record.seen = (_open_briefly(self._path(part, path), os.O_RDONLY),)

    def _change(self, part: Part, action: str, change: Callable[..., None], path: str) -> None:
        with self._recorded(part, action, path), self._last(part, path) as (at, name):
            change(name, dir_fd=at)

    def _rename(self, part: Part, old: str, new: str) -> None:
        """Rename what was opened first.

        Else Linux takes the old name as the feed last told it; and where the new one means the same
        file by then, because another mount has just done the same, it says that all is done.
        """
        with (
            self._recorded(part, "rename", old, new),
            _opening(self._path(part, old), os.O_RDONLY),
            self._last(part, old) as (source, name),
            self._last(part, new) as (target, new_name),
        ):
            os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)

    def _link(self, part: Part, old: str, new: str) -> None:
        """Give the file that is opened one more name, whatever became of the old one."""
        with (
            self._recorded(part, "link", old, new),
            _opening(self._path(part, old), os.O_RDONLY) as file,
            self._last(part, new) as (target, name),
        ):
            # With a descriptor, of which it has no need, Python takes linkat(2) and follows.
            os.link(f"/proc/self/fd/{file}", name, src_dir_fd=file, dst_dir_fd=target)

    def _list(self, part: Part, path: str) -> None:
        with (
            self._recorded(part, "list", path) as record,
            _opening(self._path(part, path), os.O_RDONLY | os.O_DIRECTORY) as directory,
            os.scandir(directory) as entries,
        ):
            record.seen = tuple(
                entry.name + ("" if entry.is_dir() else file_node(entry.inode()))
                for entry in entries
            )

    @contextmanager
    def _last(self, part: Part, path: str) -> Iterator[tuple[int | None, str]]:
        """Yield the directory in which the path's last name is, opened, and that name.

        What changes a directory is told which by open(2): that has a barrier, where a mere path is
        walked over names as the feed of changes last told them.
        """
        parent, _, name = path.rpartition("/")
        if not parent:
            yield None, self._path(part, name)
            return
        flags = os.O_RDONLY | os.O_DIRECTORY
        with _opening(self._path(part, parent), flags) as directory:
            yield directory, name

    # --- values and lines -----------------------------------------------------------------------

    def _read(self, part: Part) -> None:
        with self._recorded(part, "read") as record:
            found = _read_all(self._path(part, "value"))
            record.outcome, record.seen = value_of(found, part)

    def _write(self, part: Part) -> None:
        value = self._new_name()
        data = content(value, size_of(value, part))
        path = self._path(part, "value")
        if part.kind == "replaced":
            new = self._path(part, value)
            with self._recorded(part, "write") as record:
                record.seen = (value,)
                self._store(new, os.O_CREAT | os.O_EXCL, data)
                record.start_ns = time.monotonic_ns()
                os.rename(new, path)
            return
        with self._recorded(part, "write") as record:
            record.seen = (value,)
            self._store(path, os.O_TRUNC if part.kind == "truncated" else 0, data)

    def _store(self, path: str, flags: int, data: bytes) -> None:
        with _opening(path, os.O_WRONLY | flags) as file:
            assert os.write(file, data) == len(data)
            if self._dice.random() < SYNCED:
                os.fsync(file)

    def _append(self, part: Part) -> None:
        """Append some lines in one session: all must be there when it has closed."""
        flags = os.O_WRONLY | os.O_APPEND
        with (
            self._recorded(part, "append") as record,
            _opening(self._path(part, "log"), flags) as file,
        ):
            for _ in range(self._dice.randint(1, LINES_MAX)):
                name = self._new_name()
                record.seen = (*record.seen, name)
                data = line(name, self._dice.randrange(LINE_BYTES_MAX))
                assert os.write(file, data) == len(data)

    def _read_log(self, part: Part) -> None:
        with self._recorded(part, "read") as record:
            record.seen = tuple(lines_of(_read_all(self._path(part, "log"))))

    def _new_name(self) -> str:
        self._count += 1
        return f"{self._mount}.{self._count}"

    # --- the record -----------------------------------------------------------------------------

    def _path(self, part: Part, path: str) -> str:
        return f"{self._directory}/{part.name}/{path}"

    @contextmanager
    def _recorded(self, part: Part, action: str, *names: str) -> Iterator[_Record]:
        """Record what is done in the block."""
        record = _Record(time.monotonic_ns())
        try:
            yield record
        except OSError as error:
            record.outcome = errno.errorcode.get(error.errno or 0, str(error))
        now_ns = time.monotonic_ns()
        self.history.append(
            Call(
                record.start_ns,
                now_ns,
                self._mount,
                part.name,
                action,
                names,
                record.outcome,
                record.seen,
            )
        )


@contextmanager
def _opening(path: str, flags: int, at: int | None = None) -> Iterator[int]:
    file = os.open(path, flags, 0o644, dir_fd=at)
    try:
        yield file
    finally:
        os.close(file)


def _open_briefly(path: str, flags: int, at: int | None = None) -> str:
    """Open a file; return which it is."""
    with _opening(path, flags, at) as file:
        return file_node(os.fstat(file).st_ino)


def _read_all(path: str) -> bytes:
    with _opening(path, os.O_RDONLY) as file:
        pieces = iter(lambda: os.read(file, FILE_BYTES_MAX), b"")
        return b"".join(pieces)


def main() -> None:
    directory, mount, seed, calls, record = sys.argv[1:]
    worker = Worker(Path(directory), int(mount), int(seed))
    for order in sys.stdin:
        match order.strip():
            case "prepare":
                worker.prepare()
            case "work":
                worker.work(int(calls))
            case "look":
                worker.look()
        sys.stdout.write("done\n")
        sys.stdout.flush()
    Path(record).write_text(dump(worker.history))


if __name__ == "__main__":
    main()
