"""Directories as one sequential model: what names mean, and what each call does to them.

A name in a directory stands for a file, known by its inode number, or for a directory, known by
the call that made it. As POSIX allows (XBD 4.13, Pathname Resolution), a path is looked up name by
name, each at a moment of its own within the call; the change itself is one step. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from tests.history.history import OK, Call
from tests.history.linearize import Progress

ROOT: Final = "/"
_FILE: Final = "#"

Entry = tuple[str, str]
"""The directory's node, and a name in it."""
State = frozenset[tuple[Entry, str]]
"""Each entry with its node."""
Result = tuple[str, State]
"""An outcome, and the state after it."""


def file_node(ino: int) -> str:
    """Return how a file is called whatever its names: inode numbers are never used again."""
    return f"{_FILE}{ino}"


class TreeModel:
    """The tree below one directory that always stays."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """Take every name that can occur; a listing tells of each whether it is there."""
        self._names = names

    def first(self) -> State:
        """Return the empty directory."""
        return frozenset()

    def steps(
        self, state: State, call: Call, progress: Progress
    ) -> Iterator[tuple[State, Progress | None]]:
        """Yield the next step of a call: a name of a path, or in the end what it is there for."""
        tree = Tree(state)
        walks, ends = _walks(call.action, call.names)
        if len(progress) < len(walks):
            walk = walks[len(progress)]
            node = tree.node(ROOT if walk.base is None else progress[walk.base], walk.name)
            if node is not None:
                yield state, (*progress, node)
            elif call.outcome == "ENOENT":
                yield state, None
            return
        at = [ROOT if end is None else progress[end] for end in ends]
        if call.action == "list":
            yield from self._list(tree, at[0], call, progress, len(walks))
            return
        for outcome, after in _results(tree, call, at):
            if outcome == call.outcome:
                yield after, None
        if call.action == "rename" and call.outcome == OK:
            yield from _rename_to_itself(tree, call, progress, at, len(walks))

    def _list(
        self, tree: Tree, directory: str, call: Call, progress: Progress, walks_count: int
    ) -> Iterator[tuple[State, Progress | None]]:
        """Yield the listing with the names ticked off that are now as it told.

        POSIX leaves open whether a listing shows what comes or goes while it is read (readdir):
        each name was there or not at some moment of its own. The earliest serves as well as any.
        """
        if call.outcome != OK:
            return
        listed = dict(entry.partition(_FILE)[::2] for entry in call.seen)
        if not listed.keys() <= set(self._names):
            return
        left = progress[walks_count:] or self._names
        still = tuple(
            name for name in left if not _is_as_listed(tree.node(directory, name), listed.get(name))
        )
        if not still:
            yield tree.state, None
        elif still != left:
            yield tree.state, (*progress[:walks_count], *still)


def _is_as_listed(node: str | None, listed: str | None) -> bool:
    """Return whether a name means what a listing told; that names a directory without a number."""
    if node is None or listed is None:
        return node is listed
    return node == file_node(int(listed)) if listed else not node.startswith(_FILE)


class Tree:
    """What a state means."""

    def __init__(self, state: State) -> None:
        """Take a state."""
        self.state = state
        self._nodes = dict(state)

    def node(self, directory: str, name: str) -> str | None:
        """Return what a name means; None: nothing, also if the directory was removed."""
        return self._nodes.get((directory, name))

    def exists(self, node: str) -> bool:
        """Return whether a file or directory has any name, or is the root."""
        return node == ROOT or node in self._nodes.values()

    def is_empty(self, directory: str) -> bool:
        """Return whether nothing is in a directory."""
        return all(parent != directory for parent, _ in self._nodes)

    def is_below(self, node: str, directory: str) -> bool:
        """Return whether a node is a directory, or somewhere below it."""
        parents = {child: parent for (parent, _), child in self._nodes.items()}
        while node != directory:
            if node not in parents:
                return False
            node = parents[node]
        return True

    def put(self, directory: str, name: str, node: str) -> State:
        """Return the state with a name that means a node."""
        return frozenset({**self._nodes, (directory, name): node}.items())

    def without(self, directory: str, name: str) -> State:
        """Return the state without a name."""
        return frozenset(item for item in self.state if item[0] != (directory, name))


class _Walk(NamedTuple):
    """A name to look up on the way."""

    base: int | None
    """In which directory: the index of the walk that found it, or None: in the root."""
    name: str


@lru_cache(maxsize=1024)
def _walks(action: str, paths: tuple[str, ...]) -> tuple[tuple[_Walk, ...], tuple[int | None, ...]]:
    """Return the names that a call looks up on its way, and for each path which one is its end.

    That is the directory that the last name is in; for a listing, and for the file that link(2)
    gives another name, it is that itself.
    """
    walks: list[_Walk] = []
    ends: list[int | None] = []
    for index, path in enumerate(paths):
        *way, last = path.split("/")
        if action == "list" or (action == "link" and index == 0):
            way.append(last)
        base = None
        for name in way:
            if name:
                walks.append(_Walk(base, name))
                base = len(walks) - 1
        ends.append(base)
    return tuple(walks), tuple(ends)


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _results(tree: Tree, call: Call, at: list[str]) -> Iterator[Result]:
    """Yield what the last step of a call results in, with each path's directory known."""
    name = _last(call.names[-1])
    match call.action:
        case "create" | "mkdir":
            # One that failed made nothing, and needs no name of its own.
            made = call.seen[0] if call.seen else f"directory{call.start_ns}.{call.mount}"
            yield _make(tree, at[0], name, made)
        case "link":
            # Where both are wrong, POSIX leaves the error open.
            if not tree.exists(at[0]):
                yield _nothing(tree)
            if tree.exists(at[0]) or tree.node(at[1], name) is not None:
                yield _make(tree, at[1], name, at[0])
        case "open":
            node = tree.node(at[0], name)
            if node is None:
                yield _nothing(tree)
            elif call.seen == (node,):
                yield OK, tree.state
        case "unlink" | "rmdir":
            yield _remove(tree, at[0], name)
        case "rename":
            yield _rename(tree, call, at)


def _nothing(tree: Tree) -> Result:
    return "ENOENT", tree.state


def _make(tree: Tree, directory: str, name: str, node: str) -> Result:
    if not tree.exists(directory):
        return _nothing(tree)
    if tree.node(directory, name) is not None:
        return "EEXIST", tree.state
    return OK, tree.put(directory, name, node)


def _remove(tree: Tree, directory: str, name: str) -> Result:
    node = tree.node(directory, name)
    if node is None:
        return _nothing(tree)
    if not tree.is_empty(node):
        return "ENOTEMPTY", tree.state
    return OK, tree.without(directory, name)


def _rename(tree: Tree, call: Call, at: list[str]) -> Result:
    """Return what rename(2) does; files replace files, and directories replace empty ones."""
    (source, target), (old, new) = at, map(_last, call.names)
    moved, replaced = tree.node(source, old), tree.node(target, new)
    if moved is None or not tree.exists(target):
        return _nothing(tree)
    if tree.is_below(target, moved):
        return "EINVAL", tree.state
    if moved == replaced:  # two names of one file: both stay (POSIX, rename)
        return OK, tree.state
    if replaced is not None and not tree.is_empty(replaced):
        return "ENOTEMPTY", tree.state
    return OK, Tree(tree.without(source, old)).put(target, new, moved)


def _rename_to_itself(
    tree: Tree, call: Call, progress: Progress, at: list[str], walks_count: int
) -> Iterator[tuple[State, Progress | None]]:
    """Yield the two steps of a rename that does nothing: both names mean the same.

    Linux looks up first the one, then the other, and compares (vfs_rename in fs/namei.c). So when
    another mount does the same rename in between, both are told that it was done.
    """
    (source, target), (old, new) = at, map(_last, call.names)
    if len(progress) == walks_count:
        node = tree.node(source, old)
        if node is not None:
            yield tree.state, (*progress, node)
    elif tree.node(target, new) == progress[-1]:
        yield tree.state, None
