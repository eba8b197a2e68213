"""What is open on this mount. Pure and synchronous."""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from aspenfs import limits
from aspenfs.errors import FilesystemError
from aspenfs.types import FileHandle

T = TypeVar("T")


class HandleTable(Generic[T]):
    """What each open file handle stands for. A number is never given twice."""

    def __init__(self) -> None:
        """Start with nothing open."""
        self._open: dict[FileHandle, T] = {}
        self._last = 0

    def __len__(self) -> int:
        """Return how many handles are open."""
        return len(self._open)

    def __iter__(self) -> Iterator[T]:
        """Iterate over what is open now, whatever is opened or closed meanwhile."""
        return iter(tuple(self._open.values()))

    def add(self, opened: T) -> FileHandle:
        """Return a new handle for ``opened``.

        Raises:
            FilesystemError: ENFILE when OPEN_HANDLES_MAX handles are open.
        """
        if len(self._open) >= limits.OPEN_HANDLES_MAX:
            raise FilesystemError(errno.ENFILE, f"{limits.OPEN_HANDLES_MAX} handles are open")
        self._last += 1
        handle = FileHandle(self._last)
        self._open[handle] = opened
        return handle

    def get(self, handle: FileHandle) -> T:
        """Return what a handle stands for.

        Raises:
            FilesystemError: EBADF if the handle is not open.
        """
        try:
            return self._open[handle]
        except KeyError:
            raise FilesystemError(errno.EBADF, f"handle {handle} is not open") from None

    def remove(self, handle: FileHandle) -> T:
        """Close a handle and return what it stood for.

        Raises:
            FilesystemError: EBADF if the handle is not open.
        """
        opened = self.get(handle)
        del self._open[handle]
        return opened


class Resume(NamedTuple):
    """Where a listing goes on: after the name (None: at the start), ``skip`` entries further."""

    after_name: bytes | None
    skip: int


class _Checkpoint(NamedTuple):
    """After ``offset`` the listing went on at ``resume``; each entry then raised the offset by one.

    ``joined``: it went on right after the entry that has ``offset``, so that the checkpoint before
    this one leads to the same places by more steps.
    """

    offset: int
    resume: Resume
    joined: bool


_START = Resume(None, 0)


class DirectoryCursor:
    """Turns the offsets that an open directory gives out back into places in the directory.

    A directory is listed in the order of its names, and the kernel goes on from the offset of any
    entry it was given: most often from a recent one, as its buffer takes a part of a page, and with
    seekdir(3) from any. So a recent offset leads to the name itself, which makes going on exact
    whatever was created or deleted meanwhile; an old one leads to a name before it and a number of
    entries to skip, which is exact if nothing changed between the two since.

    Each :meth:`append` follows a :meth:`resume`, or the append before. An entry gets the offset
    after that of the entry before it, unless that offset is known to be another's: then, as others
    have changed the directory, a new one above all before. Memory is bounded by
    READDIR_KEPT_NAMES_MAX names and READDIR_CHECKPOINTS_MAX checkpoints.
    """

    def __init__(self) -> None:
        """Start before the first entry."""
        self._names: dict[int, bytes] = {}  # by offset: the entries given out last, oldest first
        self._checkpoints = [_Checkpoint(0, _START, joined=True)]  # by offset, ascending
        self._position = 0  # the offset after which the next append goes on
        self._last = 0  # the highest offset given out

    def resume(self, offset: int) -> Resume:
        """Go on after the entry that has ``offset``, or at the start for 0.

        Raises:
            FilesystemError: EINVAL if the offset was never given out, or so long ago, with so many
                changes since, that its place is forgotten.
        """
        if not 0 <= offset <= self._last:
            raise FilesystemError(errno.EINVAL, f"directory offset {offset} was never given out")
        place = self._place(offset)
        if place.skip == 0 and place.after_name is not None:
            self._remember(offset, place.after_name)  # in use, so not among the oldest
        self._position = offset
        return place

    def append(self, names: Iterable[bytes]) -> list[int]:
        """Return the offsets of the entries that follow, which are in the order of their names."""
        offsets = []
        for name in names:
            offset = self._next_offset(name)
            self._remember(offset, name)
            self._position = offset
            offsets.append(offset)
        return offsets

    def _place(self, offset: int) -> Resume:
        if offset == 0:
            return _START
        name = self._names.get(offset)
        if name is not None:
            return Resume(name, 0)
        index = self._checkpoint_before(offset)
        if index < 0:
            raise FilesystemError(errno.EINVAL, f"the place of offset {offset} is forgotten")
        checkpoint = self._checkpoints[index]
        after_name, skip = checkpoint.resume
        return Resume(after_name, skip + offset - checkpoint.offset)

    def _checkpoint_before(self, offset: int) -> int:
        """Return the index of the checkpoint that leads to ``offset``; -1 if it is forgotten.

        A checkpoint at ``offset`` itself leads to the entries after it only.
        """
        return bisect_left(self._checkpoints, offset, key=_offset_of) - 1

    def _next_offset(self, name: bytes) -> int:
        """Return the offset for ``name``, which follows the position."""
        offset = self._position + 1
        known = self._names.get(offset)
        if known == name:
            return offset
        index = self._checkpoint_before(offset)
        if known is not None or index < 0:
            return self._branch_off()
        checkpoint = self._checkpoints[index]
        if checkpoint.offset < self._position:
            steps = self._position - checkpoint.offset
            if self._position == self._last and steps >= limits.READDIR_PAGE_ENTRIES:
                self._add_checkpoint(joined=True)
        elif checkpoint.joined:
            # On a second pass, what is here now is what the offsets from here on have to lead to.
            self._checkpoints[index] = checkpoint._replace(resume=self._place(self._position))
        else:
            return self._branch_off()
        return offset

    def _branch_off(self) -> int:
        """Return the first of the new offsets for what follows the position now."""
        self._add_checkpoint(joined=False)
        return self._last + 1

    def _add_checkpoint(self, *, joined: bool) -> None:
        """Let the offsets after the last lead to the entries after the position."""
        place = self._place(self._position)
        self._checkpoints.append(_Checkpoint(self._last, place, joined))
        if len(self._checkpoints) > limits.READDIR_CHECKPOINTS_MAX:
            self._checkpoints = _thinned(self._checkpoints)

    def _remember(self, offset: int, name: bytes) -> None:
        self._last = max(self._last, offset)
        self._names.pop(offset, None)
        self._names[offset] = name
        if len(self._names) > limits.READDIR_KEPT_NAMES_MAX:
            del self._names[next(iter(self._names))]


def _offset_of(checkpoint: _Checkpoint) -> int:
    return checkpoint.offset


def _thinned(checkpoints: Sequence[_Checkpoint]) -> list[_Checkpoint]:
    """Drop about half: those that the one before can stand in for, else the oldest."""
    kept = [
        checkpoint
        for index, checkpoint in enumerate(checkpoints)
        if index % 2 == 0 or not checkpoint.joined
    ]
    return kept[-(limits.READDIR_CHECKPOINTS_MAX * 3 // 4) :]
