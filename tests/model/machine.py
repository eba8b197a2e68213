"""Random operations on two filesystems at once, with the outcomes and the whole trees compared."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.model.calls import Calls, Path, Side
from tests.model.tree import Tree, differences, take_tree

NAMES = (
    b"a",
    b"b",
    b"c",
    b"d",
    b"a.meta",
    b"a.chunk.000000",
    b"\xff\xfe\x80 not utf-8\n",
    b"n" * 255,
)
NAME_TOO_LONG = b"n" * 256
XATTR_NAMES = (b"user.a", b"user.b", b"trusted.c", b"security.d")
BAD_XATTR_NAMES = (b"nowhere.e", b"user." + b"n" * 251)

OFFSETS = (0, 1, 100, 4095, 4096, 4097, 65535, 65536, 65537, 131071, 131072, 200_000)
LENGTHS = (0, 1, 10, 4096, 4097, 20_000, 65536, 70_000, 140_000)
SIZES = (0, 1, 50, 4096, 4097, 10_000, 65536, 65537, 131072, 150_000, 300_000)
TIMES_NS = (0, 1, 999_999_999, 10**18 + 123_456_789, 4 * 10**18, -1, -1_500_000_000)
BYTES = random.Random(0).randbytes(512 * 1024)

HANDLES_MAX = 4
DEPTH_MAX = 4


class At(NamedTuple):
    """A name in one of the directories that exist, by number."""

    directory: int
    name: bytes


class Existing(NamedTuple):
    """One of the paths that exist, by number."""

    number: int


Spot = At | Existing


class Write(NamedTuple):
    """One write through one of the open handles, by number."""

    handle: int
    offset: int
    length: int
    seed: int


numbers = st.integers(0, 40)
names = st.one_of(st.sampled_from(NAMES[:4]), st.sampled_from((*NAMES, NAME_TOO_LONG)))
spots = st.builds(At, numbers, names)
existing = st.builds(Existing, numbers)
anywhere: st.SearchStrategy[Spot] = st.one_of(existing, existing, spots)
modes = st.sampled_from((0o644, 0o600, 0o755, 0o777, 0o4755, 0o2755, 0o2644, 0o1755, 0))
directory_modes = st.sampled_from((0o755, 0o755, 0o2775, 0o1755, 0))
node_types = st.sampled_from(
    (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
)
owners = st.sampled_from((-1, 0, 1000, 65534))
offsets = st.one_of(st.sampled_from(OFFSETS), st.integers(0, 140_000))
lengths = st.one_of(st.sampled_from(LENGTHS), st.integers(0, 10_000))
sizes = st.one_of(st.sampled_from(SIZES), st.integers(0, 140_000))
seeds = st.integers(0, 255)
access_modes = st.sampled_from((os.O_RDWR, os.O_RDWR, os.O_WRONLY, os.O_RDONLY))
open_flags = st.sampled_from((0, os.O_APPEND, os.O_TRUNC, os.O_TRUNC | os.O_APPEND))
create_flags = st.sampled_from((0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL))


Call = Callable[[Calls], Coroutine[Any, Any, Any]]


class Outcome(NamedTuple):
    """What a call did: its errno (0: none), by name for reading, and what it returned."""

    error: str
    value: Any


class TwoFilesystems(RuleBasedStateMachine):
    """Does everything on ``left`` and on ``right``, the reference, and compares.

    A subclass makes both and may add rules. The rules leave out what the tests are not about:
    opening special files, following symlinks, changing a symlink's mode.
    """

    left: Side
    right: Side

    def __init__(self) -> None:
        super().__init__()
        self.tree: Tree = {}
        self.handles: list[tuple[int, int]] = []  # on the left and on the right

    # --- how rules work --------------------------------------------------------------------------

    def normalized(self, tree: Tree) -> Tree:
        """Return a tree without what the two sides cannot have in common."""
        return tree

    def before_step(self) -> None:
        """Do what has to be done before each operation."""

    def both(self, call: Call) -> Outcome:
        """Make a call on both sides; the outcomes must be the same."""
        self.before_step()
        left, right = _outcome(call, self.left), _outcome(call, self.right)
        assert left == right, f"left: {left}, right: {right}"
        return right

    def both_handles(
        self, number: int, call: Callable[[Calls, int], Coroutine[Any, Any, Any]]
    ) -> Outcome:
        """Make a call with one of the open handles on both sides."""
        self.before_step()
        on_left, on_right = self.handles[number % len(self.handles)]
        left = _outcome(lambda calls: call(calls, on_left), self.left)
        right = _outcome(lambda calls: call(calls, on_right), self.right)
        assert left == right, f"left: {left}, right: {right}"
        return right

    def path(self, spot: Spot) -> Path:
        """Return the path that a spot means now."""
        if isinstance(spot, Existing):
            paths = sorted(self.tree)
            return paths[spot.number % len(paths)]
        directories = sorted(
            path
            for path, entry in self.tree.items()
            if not stat.S_ISREG(entry.mode) and len(path) < DEPTH_MAX
        )
        return (*directories[spot.directory % len(directories)], spot.name)

    def type_of(self, path: Path) -> int:
        """Return the type of what a path means, 0 if it does not exist."""
        return stat.S_IFMT(self.tree[path].mode) if path in self.tree else 0

    @invariant()
    def trees_are_equal(self) -> None:
        self.compare_trees()

    def compare_trees(self) -> None:
        """Compare everything that paths lead to."""
        left, right = (side.run(take_tree(side.calls)) for side in (self.left, self.right))
        found = differences(self.normalized(left), self.normalized(right))
        assert not found, "\n".join(found)
        self.tree = right

    @invariant()
    def open_files_are_equal(self) -> None:
        for on_left, on_right in self.handles:
            left = self.left.run(self.left.calls.fstat(on_left))
            right = self.right.run(self.right.calls.fstat(on_right))
            for field in ("mode", "nlink", "uid", "gid", "size"):
                one, two = getattr(left, field), getattr(right, field)
                assert one == two, f"open file: {field} is {one} on the left, {two} there"
            size = right.size + 1
            assert _content(self.left, on_left, size) == _content(self.right, on_right, size)

    def close_all(self) -> None:
        """Close every handle on both sides."""
        for on_left, on_right in self.handles:
            self.left.run(self.left.calls.close(on_left))
            self.right.run(self.right.calls.close(on_right))
        self.handles.clear()

    # --- names -----------------------------------------------------------------------------------

    @initialize()
    def start(self) -> None:
        """Start with a few inodes, as most operations on nothing only fail."""
        self.both(lambda calls: calls.mkdir((b"a",), 0o755))
        self.both(lambda calls: calls.mkdir((b"a", b"b"), 0o755))
        self.both(lambda calls: calls.chown((b"a", b"b"), 1000, 1000))
        self.both(lambda calls: calls.chmod((b"a", b"b"), 0o2775))  # the group is inherited
        for path in ((b"c",), (b"a", b"c"), (b"a", b"b", b"d")):
            self.make_file(path)

    def make_file(self, path: Path) -> None:
        self.both(lambda calls: calls.mknod(path, stat.S_IFREG | 0o644, 0))
        self.both(lambda calls: calls.truncate(path, 10))

    def remove(self, path: Path) -> None:
        if self.type_of(path) == stat.S_IFDIR:
            self.both(lambda calls: calls.rmdir(path))
        else:
            self.both(lambda calls: calls.unlink(path))

    @rule(spot=spots, mode=directory_modes)
    def mkdir(self, spot: At, mode: int) -> None:
        path = self.path(spot)
        self.both(lambda calls: calls.mkdir(path, mode))

    @rule(spot=spots, file_type=node_types, mode=modes, rdev=st.sampled_from((0, 0x0103)))
    def mknod(self, spot: At, file_type: int, mode: int, rdev: int) -> None:
        path = self.path(spot)
        rdev = rdev if file_type in (stat.S_IFCHR, stat.S_IFBLK) else 0
        self.both(lambda calls: calls.mknod(path, file_type | mode, rdev))

    @rule(spot=spots, length=st.sampled_from((1, 100, 4095)))
    def symlink(self, spot: At, length: int) -> None:
        path = self.path(spot)
        # Names of 255 bytes and slashes; the first name exists nowhere, so the link dangles.
        target = (b"x" * 255 + b"/") * (length // 256) + b"x" * (length % 256)
        self.both(lambda calls: calls.symlink(path, target))

    @rule(spot=anywhere, new_spot=spots)
    def link(self, spot: Spot, new_spot: At) -> None:
        path, new_path = self.path(spot), self.path(new_spot)
        self.both(lambda calls: calls.link(path, new_path))

    @rule(spot=anywhere)
    def unlink(self, spot: Spot) -> None:
        path = self.path(spot)
        if path:
            self.both(lambda calls: calls.unlink(path))

    @rule(spot=anywhere)
    def rmdir(self, spot: Spot) -> None:
        path = self.path(spot)
        if path:
            self.both(lambda calls: calls.rmdir(path))

    @rule(spot=anywhere, new_spot=anywhere, flags=st.sampled_from((0, 0, 0, 1, 2, 3)))
    def rename(self, spot: Spot, new_spot: Spot, flags: int) -> None:
        path, new_path = self.path(spot), self.path(new_spot)
        if path and new_path:
            self.both(lambda calls: calls.rename(path, new_path, flags))

    # --- attributes ------------------------------------------------------------------------------

    @rule(spot=anywhere, mode=modes)
    def chmod(self, spot: Spot, mode: int) -> None:
        path = self.path(spot)
        if self.type_of(path) != stat.S_IFLNK:
            self.both(lambda calls: calls.chmod(path, mode))

    @rule(spot=anywhere, uid=owners, gid=owners)
    def chown(self, spot: Spot, uid: int, gid: int) -> None:
        path = self.path(spot)
        self.both(lambda calls: calls.chown(path, uid, gid))

    @rule(spot=anywhere, atime_ns=st.sampled_from(TIMES_NS), mtime_ns=st.sampled_from(TIMES_NS))
    def utime(self, spot: Spot, atime_ns: int, mtime_ns: int) -> None:
        path = self.path(spot)
        self.both(lambda calls: calls.utime(path, atime_ns, mtime_ns))

    @rule(spot=anywhere, size=sizes)
    def truncate(self, spot: Spot, size: int) -> None:
        path = self.path(spot)
        if self.type_of(path) in (0, stat.S_IFREG, stat.S_IFDIR):
            self.both(lambda calls: calls.truncate(path, size))

    @rule(
        spot=anywhere,
        name=st.one_of(st.sampled_from(XATTR_NAMES), st.sampled_from(BAD_XATTR_NAMES)),
        length=st.sampled_from((0, 5, 300, 5000)),
        seed=seeds,
        flags=st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
    )
    def setxattr(self, spot: Spot, name: bytes, length: int, seed: int, flags: int) -> None:
        path = self.path(spot)
        self.both(lambda calls: calls.setxattr(path, name, BYTES[seed : seed + length], flags))

    @rule(spot=anywhere, name=st.sampled_from((*XATTR_NAMES, *BAD_XATTR_NAMES)))
    def getxattr(self, spot: Spot, name: bytes) -> None:
        path = self.path(spot)
        self.both(lambda calls: calls.getxattr(path, name))

    @rule(spot=anywhere, name=st.sampled_from((*XATTR_NAMES, *BAD_XATTR_NAMES)))
    def removexattr(self, spot: Spot, name: bytes) -> None:
        path = self.path(spot)
        self.both(lambda calls: calls.removexattr(path, name))

    # --- data ------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.handles) < HANDLES_MAX)
    @rule(spot=anywhere, access=access_modes, flags=open_flags, create=create_flags, mode=modes)
    def open(self, spot: Spot, access: int, flags: int, create: int, mode: int) -> None:
        path = self.path(spot)
        is_read = access == os.O_RDONLY and not create
        is_special = self.type_of(path) not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
        if not path or is_special or (is_read and self.type_of(path) == stat.S_IFDIR):
            return
        self.before_step()
        opened: list[int] = []
        errors: list[str] = []
        for side in (self.left, self.right):
            error, handle = _outcome(
                lambda calls: calls.open(path, access | flags | create, mode), side
            )
            errors.append(error)
            opened.append(handle)
        assert errors[0] == errors[1], f"left: {errors[0]}, right: {errors[1]}"
        if not errors[0]:
            self.handles.append((opened[0], opened[1]))

    @precondition(lambda self: self.handles)
    @rule(
        writes=st.lists(st.builds(Write, numbers, offsets, lengths, seeds), min_size=1, max_size=5)
    )
    def write(self, writes: list[Write]) -> None:
        """Write several times before anything is read, so that dirty bytes meet dirty bytes."""
        for each in writes:
            self.write_once(each)

    def write_once(self, write: Write) -> None:
        data = BYTES[write.seed : write.seed + write.length]
        self.both_handles(write.handle, lambda calls, fh: calls.pwrite(fh, data, write.offset))

    @precondition(lambda self: self.handles)
    @rule(number=numbers, offset=offsets, length=lengths)
    def read(self, number: int, offset: int, length: int) -> None:
        self.both_handles(number, lambda calls, fh: calls.pread(fh, length, offset))

    @precondition(lambda self: self.handles)
    @rule(number=numbers, size=sizes)
    def ftruncate(self, number: int, size: int) -> None:
        self.both_handles(number, lambda calls, fh: calls.ftruncate(fh, size))

    @precondition(lambda self: self.handles)
    @rule(number=numbers)
    def fsync(self, number: int) -> None:
        self.both_handles(number, lambda calls, fh: calls.fsync(fh))

    @precondition(lambda self: self.handles)
    @rule(number=numbers)
    def close(self, number: int) -> None:
        self.both_handles(number, lambda calls, fh: calls.close(fh))
        del self.handles[number % len(self.handles)]


def _outcome(call: Call, side: Side) -> Outcome:
    try:
        return Outcome("", side.run(call(side.calls)))
    except OSError as error:
        return Outcome(errno.errorcode[error.errno or 0], None)


def _content(side: Side, handle: int, size: int) -> Outcome:
    return _outcome(lambda calls: calls.pread(handle, size, 0), side)
