"""What a check found: problems, capped in memory, and how much it looked at. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from aspenfs.limits import FSCK_PROBLEMS_MAX


class ProblemKind(StrEnum):
    """The rule that is broken; docs/format.md states each."""

    SUPERBLOCK = "superblock"
    """The superblock is missing or cannot be read."""
    ROOT = "root"
    """There is no root directory, or something is wrong with it."""
    UNKNOWN_KEY = "unknown-key"
    """A key below the volume's prefix that the format does not know."""
    DAMAGED = "damaged"
    """A record cannot be decoded."""
    STRAY = "stray"
    """A record belongs to an inode that does not exist."""
    NO_TIMES = "no-times"
    """An inode has no ``.meta`` record."""
    MODE = "mode"
    """The mode names no file type, or the record's fields do not fit the type."""
    ORPHAN = "orphan"
    """nlink is 0 without an orphan record, or one, or a hold, is beside an inode that has links."""
    CHUNK_LENGTH = "chunk-length"
    """A chunk is longer than the volume's chunk size."""
    CHUNK_PAST_END = "chunk-past-end"
    """A chunk, or a part of it, lies at or above the end of the file."""
    INLINE = "inline"
    """Inline data is too long, or there are chunks beside it."""
    ALLOCATED = "allocated"
    """``allocated_bytes`` is not what the inode's data allocates."""
    XATTR_FLAG = "xattr-flag"
    """An inode that claims to have no extended attribute has some."""
    DANGLING = "dangling"
    """A directory entry names an inode that does not exist."""
    DENTRY_PARENT = "dentry-parent"
    """A directory entry lies in something that is not a directory, or in nothing."""
    DENTRY_TYPE = "dentry-type"
    """A directory entry's type is not its inode's."""
    DENTRY_NAME = "dentry-name"
    """A directory entry's name is one that no file can have."""
    DIRECTORY_LINKED_TWICE = "directory-linked-twice"
    """A directory has more than one name."""
    PARENT = "parent"
    """A directory's parent field does not name the directory that holds it."""
    NLINK = "nlink"
    """nlink is not the number of names (of a directory: 2 and its subdirectories)."""
    UNREACHABLE = "unreachable"
    """An inode that is no orphan has no name."""
    CYCLE = "cycle"
    """Directories contain each other, out of the root's reach."""
    USAGE = "usage"
    """The usage counters do not add up to what the inodes use."""
    NEXT_INO = "next-ino"
    """The next inode number is not above every inode, or cannot be read."""


class Problem(NamedTuple):
    """One broken rule: the key of the record at fault, and the finding in words."""

    kind: ProblemKind
    key: bytes
    text: str


class Counts(NamedTuple):
    """How much a check looked at."""

    inodes: int
    directories: int
    dentries: int
    chunks: int
    xattrs: int
    orphans: int
    allocated_bytes: int


class Report(NamedTuple):
    """The outcome of a check.

    ``problems`` holds at most FSCK_PROBLEMS_MAX, ``problem_count`` counts all. ``revision`` is the
    newest commit that the check can have seen; ``exact`` says that nothing was committed
    meanwhile, so that the volume was seen as it was at that one revision.
    """

    problems: list[Problem]
    problem_count: int
    counts: Counts
    revision: int
    exact: bool

    @property
    def is_clean(self) -> bool:
        """Whether no rule is broken."""
        return self.problem_count == 0


@dataclass(slots=True)
class Findings:
    """Collects problems and counts while the passes run; keeps a bounded number of problems."""

    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    inodes: int = 0
    directories: int = 0
    dentries: int = 0
    chunks: int = 0
    xattrs: int = 0
    orphans: int = 0
    allocated_bytes: int = 0

    def add(self, kind: ProblemKind, key: bytes, text: str) -> None:
        """Count a problem, and keep it while there is room."""
        self.problem_count += 1
        if len(self.problems) < FSCK_PROBLEMS_MAX:
            self.problems.append(Problem(kind, key, text))

    def counts(self) -> Counts:
        """Return how much was looked at so far."""
        return Counts(
            self.inodes,
            self.directories,
            self.dentries,
            self.chunks,
            self.xattrs,
            self.orphans,
            self.allocated_bytes,
        )
