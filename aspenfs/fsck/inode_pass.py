"""First pass: each inode's own records, against each other."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aspenfs import metadata
from aspenfs.chunks import extent_bytes
from aspenfs.errors import CorruptRecordError
from aspenfs.fsck.report import Findings, ProblemKind
from aspenfs.fsck.scanning import InodeJoin, ParsedRecord, RecordCursor, kind_prefix
from aspenfs.limits import FILE_BYTES_MAX, INLINE_BYTES_MAX
from aspenfs.types import NO_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable

    from aspenfs.fsck.tree_pass import InodeTable
    from aspenfs.keys import Keys
    from aspenfs.metadata import Inode
    from aspenkv.contract import KeyValue

_FILE_TYPES: Final = frozenset(
    (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFSOCK,
    )
)


@dataclass(slots=True)
class _Gathered:
    """What has been seen of the inode at hand. ``inode`` is None when missing or unreadable."""

    ino: Ino
    inode: Inode | None = None
    is_damaged: bool = False
    has_times: bool = False
    is_orphan: bool = False
    holds: int = 0
    xattrs: int = 0
    chunks: int = 0
    chunk_extents_bytes: int = 0

    @property
    def exists(self) -> bool:
        """Whether there is an inode record, readable or not."""
        return self.inode is not None or self.is_damaged


class InodePass:
    """Joins the records of each inode, checks them, and notes the inode for the second pass."""

    def __init__(
        self, kv: KeyValue, keys: Keys, chunk_bytes: int, findings: Findings, table: InodeTable
    ) -> None:
        """Take where to read, the volume's chunk size, and where to write what is found."""
        self._kv = kv
        self._keys = keys
        self._chunk_bytes = chunk_bytes
        self._findings = findings
        self._table = table
        self._take: dict[str, Callable[[_Gathered, ParsedRecord], None]] = {
            "I": self._take_inode,
            "I.meta": self._take_times,
            "O": self._take_orphan,
            "O.hold": self._take_hold,
            "X": self._take_xattr,
            "C": self._take_chunk,
        }

    async def run(self) -> None:
        """Check every inode of the volume."""
        # The inode record first: the size tells how much of each chunk is in use.
        join = InodeJoin(
            [
                RecordCursor.over(
                    self._kv, self._keys, kind_prefix(self._keys, letter), self._findings
                )
                for letter in "IOXC"
            ]
        )
        gathered: _Gathered | None = None
        while (record := await join.next()) is not None:
            if gathered is None or gathered.ino != record.parsed.ino:
                if gathered is not None:
                    self._finish(gathered)
                gathered = _Gathered(record.parsed.ino)
            self._take[record.parsed.kind](gathered, record)
        if gathered is not None:
            self._finish(gathered)

    def _take_inode(self, gathered: _Gathered, record: ParsedRecord) -> None:
        try:
            gathered.inode = metadata.decode_inode(record.key, record.value)
        except CorruptRecordError as error:
            gathered.is_damaged = True
            self._findings.add(ProblemKind.DAMAGED, record.key, str(error))

    def _take_times(self, gathered: _Gathered, record: ParsedRecord) -> None:
        gathered.has_times = True
        self._require_inode(gathered, record, "a .meta record")
        try:
            metadata.decode_times(record.key, record.value)
        except CorruptRecordError as error:
            self._findings.add(ProblemKind.DAMAGED, record.key, str(error))

    def _take_orphan(self, gathered: _Gathered, record: ParsedRecord) -> None:
        self._findings.orphans += 1
        gathered.is_orphan = True
        self._require_inode(gathered, record, "an orphan record")
        try:
            metadata.decode_orphan(record.key, record.value)
        except CorruptRecordError as error:
            self._findings.add(ProblemKind.DAMAGED, record.key, str(error))

    def _take_hold(self, gathered: _Gathered, record: ParsedRecord) -> None:
        gathered.holds += 1
        self._require_inode(gathered, record, "a hold")
        if record.value:
            text = f"{len(record.value)} bytes where a hold has none"
            self._findings.add(ProblemKind.DAMAGED, record.key, text)

    def _take_xattr(self, gathered: _Gathered, record: ParsedRecord) -> None:
        self._findings.xattrs += 1
        gathered.xattrs += 1
        self._require_inode(gathered, record, "an extended attribute")

    def _take_chunk(self, gathered: _Gathered, record: ParsedRecord) -> None:
        self._findings.chunks += 1
        gathered.chunks += 1
        self._require_inode(gathered, record, "a chunk")
        length = len(record.value)
        if length > self._chunk_bytes:
            self._findings.add(
                ProblemKind.CHUNK_LENGTH,
                record.key,
                f"{length} bytes where a chunk has at most {self._chunk_bytes}",
            )
        if gathered.inode is None:
            return
        extent = extent_bytes(record.parsed.chunk_index, gathered.inode.size, self._chunk_bytes)
        gathered.chunk_extents_bytes += extent
        if extent == 0 or length > extent:
            self._findings.add(
                ProblemKind.CHUNK_PAST_END,
                record.key,
                f"{length} bytes where {extent} are below the end of the file",
            )

    def _require_inode(self, gathered: _Gathered, record: ParsedRecord, what: str) -> None:
        if not gathered.exists:
            self._findings.add(
                ProblemKind.STRAY,
                record.key,
                f"{what} of inode {gathered.ino}, which does not exist",
            )

    def _finish(self, gathered: _Gathered) -> None:
        """Check what only all records of an inode show, and note it for the tree."""
        if not gathered.exists:
            return
        self._findings.inodes += 1
        key = self._keys.inode(gathered.ino)
        if not gathered.has_times:
            self._findings.add(
                ProblemKind.NO_TIMES, key, f"inode {gathered.ino} has no .meta record"
            )
        inode = gathered.inode
        if inode is None:
            self._table.add_damaged(gathered.ino)
            return
        self._findings.directories += inode.is_directory
        self._findings.allocated_bytes += inode.allocated_bytes
        self._table.add(gathered.ino, inode)
        self._check_shape(key, inode)
        if gathered.is_orphan != (inode.nlink == 0):
            text = "has an orphan record" if gathered.is_orphan else "has no orphan record"
            self._findings.add(ProblemKind.ORPHAN, key, f"nlink {inode.nlink}, but {text}")
        if gathered.holds and not gathered.is_orphan:
            text = f"{gathered.holds} holds, but no orphan record"
            self._findings.add(ProblemKind.ORPHAN, key, text)
        if gathered.xattrs and not inode.has_xattrs:
            self._findings.add(
                ProblemKind.XATTR_FLAG,
                key,
                f"{gathered.xattrs} extended attributes where the inode says there are none",
            )
        self._check_data(key, inode, gathered)

    def _check_shape(self, key: bytes, inode: Inode) -> None:
        """Check that the type is one, and that each field is set for its type only."""
        file_type = stat.S_IFMT(inode.mode)
        if file_type not in _FILE_TYPES or inode.mode & ~(file_type | 0o7777):
            self._findings.add(ProblemKind.MODE, key, f"mode {inode.mode:#o} names no file type")
            return
        wrong = [
            name
            for name, is_set, belongs in (
                ("inline data", inode.inline is not None, inode.is_regular),
                ("a symlink target", inode.target is not None, file_type == stat.S_IFLNK),
                ("a device number", inode.rdev != 0, file_type in (stat.S_IFCHR, stat.S_IFBLK)),
                ("a parent", inode.parent != NO_INO, inode.is_directory),
                ("a size", inode.size != 0, inode.is_regular or file_type == stat.S_IFLNK),
                ("a size that no file has", inode.size > FILE_BYTES_MAX, False),
            )
            if is_set and not belongs
        ]
        if file_type == stat.S_IFLNK and inode.target is None:
            wrong.append("no symlink target")
        if wrong:
            self._findings.add(
                ProblemKind.MODE, key, f"mode {inode.mode:#o} with {', '.join(wrong)}"
            )

    def _check_data(self, key: bytes, inode: Inode, gathered: _Gathered) -> None:
        inline_bytes = 0 if inode.inline is None else len(inode.inline)
        if inline_bytes > INLINE_BYTES_MAX:
            self._findings.add(
                ProblemKind.INLINE,
                key,
                f"{inline_bytes} bytes inline where at most {INLINE_BYTES_MAX} are allowed",
            )
        if inode.inline is not None and gathered.chunks:
            self._findings.add(
                ProblemKind.INLINE, key, f"{gathered.chunks} chunks beside inline data"
            )
        allocated_bytes = inline_bytes + gathered.chunk_extents_bytes
        if inode.allocated_bytes != allocated_bytes:
            self._findings.add(
                ProblemKind.ALLOCATED,
                key,
                f"{inode.allocated_bytes} bytes allocated where its data takes {allocated_bytes}",
            )
