"""A whole filesystem as plain data, for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.model.calls import Calls, Path, Stat


class Entry(NamedTuple):
    """All that is to be the same of one path; ``same_as`` is the first path of the same inode."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int | None
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    content: bytes
    xattrs: dict[bytes, bytes]
    same_as: Path


Tree = dict["Path", Entry]


async def take_tree(calls: Calls) -> Tree:
    """Walk a filesystem from its root."""
    tree: Tree = {}
    first_paths: dict[int, Path] = {}
    await _take(calls, (), tree, first_paths)
    return tree


async def _take(calls: Calls, path: Path, tree: Tree, first_paths: dict[int, Path]) -> None:
    stat = await calls.lstat(path)
    tree[path] = await _entry(calls, path, stat, first_paths.setdefault(stat.ino, path))
    if stat.is_directory:
        names = await calls.listdir(path)
        assert len(set(names)) == len(names), f"{path} lists a name twice: {names}"
        for name in sorted(names):
            await _take(calls, (*path, name), tree, first_paths)


async def _entry(calls: Calls, path: Path, stat: Stat, same_as: Path) -> Entry:
    content = b""
    if stat.is_regular:
        content = await calls.content(path)
        assert len(content) == stat.size, f"{path} has {len(content)} bytes, says {stat.size}"
    elif stat.is_symlink:
        content = await calls.readlink(path)
    return Entry(
        stat.mode,
        stat.nlink,
        stat.uid,
        stat.gid,
        stat.rdev,
        None if stat.is_directory else stat.size,  # what a directory's size means is not defined
        stat.atime_ns,
        stat.mtime_ns,
        stat.ctime_ns,
        content,
        await calls.xattrs(path),
        same_as,
    )


def differences(left: Tree, right: Tree) -> list[str]:
    """Describe what differs, one line for each field of each path."""
    lines = [f"{path} is only on the left" for path in sorted(left.keys() - right.keys())]
    lines += [f"{path} is only on the right" for path in sorted(right.keys() - left.keys())]
    for path in sorted(left.keys() & right.keys()):
        for field in Entry._fields:
            one, two = getattr(left[path], field), getattr(right[path], field)
            if one != two:
                lines.append(f"{path}: {field} is {_shown(one)} on the left, {_shown(two)} there")
    return lines


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}... ({len(text)} characters)"


_SHOWN_MAX = 200
