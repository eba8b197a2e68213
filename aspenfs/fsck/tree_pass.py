"""Second pass: the directory entries, against the inodes that the first pass noted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aspenfs import metadata
from aspenfs.errors import CorruptRecordError
from aspenfs.fsck.report import Findings, ProblemKind
from aspenfs.fsck.scanning import ParsedRecord, RecordCursor, kind_prefix
from aspenfs.limits import NAME_BYTES_MAX
from aspenfs.types import NO_INO, ROOT_INO, Ino

if TYPE_CHECKING:
    from aspenfs.keys import Keys
    from aspenfs.metadata import Dentry, Inode
    from aspenkv.contract import KeyValue

_TYPE_BITS: Final = 4
_TYPE_MASK: Final = (1 << _TYPE_BITS) - 1
_NAMED: Final = 1 << _TYPE_BITS
_NLINK_0: Final = _NAMED << 1
_LINK: Final = _NLINK_0 << 1
_DIRECTORY: Final = 4  # S_IFDIR shifted right by 12
_UNREADABLE: Final = 0  # no file type has it

_NUMBERS_SHOWN: Final = 8

_NEVER_NAMES: Final = frozenset((b".", b".."))


class InodeTable:
    """What is remembered of each inode: one packed integer, and of directories the parent too.

    The integer holds the file type, whether a directory entry names the inode, whether its nlink
    is 0, and how many links nlink promises that no entry has accounted for yet. Small integers are
    shared objects in CPython, so that an inode costs little more than its slot and its key.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.packed: dict[int, int] = {}
        self.parents: dict[int, int] = {}
        self.ino_max = NO_INO

    def add(self, ino: Ino, inode: Inode) -> None:
        """Note an inode."""
        file_type = (inode.mode >> 12) & _TYPE_MASK
        links = inode.nlink
        if file_type == _DIRECTORY:
            self.parents[ino] = inode.parent
            if links > 0:
                links -= 2  # its own name and its "."; what is left is one for each subdirectory
        flags = _NLINK_0 if inode.nlink == 0 else 0
        self.packed[ino] = links * _LINK | flags | file_type
        self.ino_max = max(self.ino_max, ino)

    def add_damaged(self, ino: Ino) -> None:
        """Note an inode whose record cannot be read: it exists, and no more can be said of it."""
        self.packed[ino] = _UNREADABLE
        self.ino_max = max(self.ino_max, ino)


class TreePass:
    """Checks that the directory entries make one tree, with the links that the inodes claim."""

    def __init__(self, kv: KeyValue, keys: Keys, findings: Findings, table: InodeTable) -> None:
        """Take where to read, where to write what is found, and what the first pass noted."""
        self._kv = kv
        self._keys = keys
        self._findings = findings
        self._packed = table.packed
        self._parents = table.parents

    async def run(self) -> None:
        """Check every directory entry, then each inode's links, then that the root reaches all."""
        cursor = RecordCursor.over(
            self._kv, self._keys, kind_prefix(self._keys, "D"), self._findings
        )
        while (record := await cursor.next()) is not None:
            self._findings.dentries += 1
            self._check_dentry(record)
        self._check_root()
        self._check_links()
        self._check_cycles()

    def _check_dentry(self, record: ParsedRecord) -> None:
        name = record.parsed.name
        if len(name) > NAME_BYTES_MAX or b"/" in name or b"\0" in name or name in _NEVER_NAMES:
            self._findings.add(ProblemKind.DENTRY_NAME, record.key, "no file can have this name")
        try:
            dentry = metadata.decode_dentry(record.key, record.value)
        except CorruptRecordError as error:
            self._findings.add(ProblemKind.DAMAGED, record.key, str(error))
            return
        parent = record.parsed.ino
        parent_packed = self._packed.get(parent)
        if parent_packed is None:
            self._findings.add(
                ProblemKind.DENTRY_PARENT, record.key, f"directory {parent} does not exist"
            )
        elif parent_packed & _TYPE_MASK not in (_DIRECTORY, _UNREADABLE):
            self._findings.add(
                ProblemKind.DENTRY_PARENT, record.key, f"inode {parent} is not a directory"
            )
        packed = self._packed.get(dentry.ino)
        if packed is None:
            self._findings.add(
                ProblemKind.DANGLING,
                record.key,
                f"it names inode {dentry.ino}, which does not exist",
            )
        else:
            self._account(record.key, parent, dentry, packed)

    def _account(self, key: bytes, parent: Ino, dentry: Dentry, packed: int) -> None:
        """Take an entry off the links that its inode, or for a directory its parent, promised."""
        file_type = packed & _TYPE_MASK
        self._packed[dentry.ino] = packed | _NAMED
        if file_type == _UNREADABLE:
            return
        if dentry.file_type != file_type:
            self._findings.add(
                ProblemKind.DENTRY_TYPE,
                key,
                f"its type is {dentry.file_type}, that of inode {dentry.ino} is {file_type}",
            )
        if file_type != _DIRECTORY:
            self._packed[dentry.ino] -= _LINK
            return
        if packed & _NAMED:
            self._findings.add(
                ProblemKind.DIRECTORY_LINKED_TWICE, key, f"directory {dentry.ino} has another name"
            )
            return
        if self._packed.get(parent, _UNREADABLE) & _TYPE_MASK == _DIRECTORY:
            self._packed[parent] -= _LINK
        if self._parents[dentry.ino] != parent:
            self._findings.add(
                ProblemKind.PARENT,
                self._keys.inode(dentry.ino),
                f"its parent is {self._parents[dentry.ino]}, but {parent} holds it",
            )
            self._parents[dentry.ino] = parent

    def _check_root(self) -> None:
        key = self._keys.inode(ROOT_INO)
        packed = self._packed.get(ROOT_INO)
        if packed is None:
            self._findings.add(ProblemKind.ROOT, key, "there is no root directory")
            return
        if packed & _TYPE_MASK not in (_DIRECTORY, _UNREADABLE):
            self._findings.add(ProblemKind.ROOT, key, "the root is not a directory")
        elif self._parents.get(ROOT_INO, ROOT_INO) != ROOT_INO:
            self._findings.add(ProblemKind.ROOT, key, "the root's parent is not the root itself")
        if packed & _NAMED:
            self._findings.add(ProblemKind.ROOT, key, "a directory entry names the root")
        self._packed[ROOT_INO] = packed | _NAMED

    def _check_links(self) -> None:
        for ino, packed in self._packed.items():
            if packed & _TYPE_MASK == _UNREADABLE:
                continue
            key = self._keys.inode(Ino(ino))
            unaccounted_links = packed // _LINK
            if not packed & (_NAMED | _NLINK_0):
                self._findings.add(
                    ProblemKind.UNREACHABLE, key, f"no directory entry names inode {ino}"
                )
            elif unaccounted_links:
                what = "subdirectories" if packed & _TYPE_MASK == _DIRECTORY else "names"
                much = "more" if unaccounted_links < 0 else "fewer"
                self._findings.add(
                    ProblemKind.NLINK,
                    key,
                    f"{abs(unaccounted_links)} {what} {much} than its nlink says",
                )

    def _check_cycles(self) -> None:
        """Follow each directory's parents until one is known to end.

        They end at the root, or at a directory that was reported already: one that no entry names,
        or that does not exist.
        """
        ending: set[int] = set()
        for start in self._parents:
            path: dict[int, None] = {}
            ino = start
            while ino not in ending and ino not in path and self._has_parent(ino):
                path[ino] = None
                ino = self._parents[ino]
            if ino in path:
                cycle = list(path)[list(path).index(ino) :]
                self._findings.add(
                    ProblemKind.CYCLE,
                    self._keys.inode(Ino(min(cycle))),
                    f"{len(cycle)} directories contain each other: inodes {_some(sorted(cycle))}",
                )
            ending.update(path)

    def _has_parent(self, ino: int) -> bool:
        return ino != ROOT_INO and ino in self._parents and bool(self._packed[ino] & _NAMED)


def _some(numbers: list[int]) -> str:
    """Return the first few numbers, for a message."""
    shown = ", ".join(map(str, numbers[:_NUMBERS_SHOWN]))
    return shown if len(numbers) <= _NUMBERS_SHOWN else f"{shown}, ..."
