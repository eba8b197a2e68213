"""Third pass: the records of the volume as a whole, and keys that the format does not know."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from aspenfs import metadata
from aspenfs.errors import CorruptRecordError
from aspenfs.fsck.report import Findings, ProblemKind
from aspenfs.fsck.scanning import KINDS, RecordCursor, kind_prefix
from aspenfs.keys import Keys, range_end
from aspenfs.types import ROOT_INO

if TYPE_CHECKING:
    from aspenfs.metadata import Superblock
    from aspenfs.types import Ino
    from aspenkv.contract import KeyValue

_COUNTER = struct.Struct("<q")
FIRST_INO: Final = ROOT_INO + 1
_COUNTER_NAMES: Final = {b"b": "bytes", b"i": "inodes"}


async def read_superblock(kv: KeyValue, keys: Keys, findings: Findings) -> Superblock | None:
    """Return the superblock; None, and a finding, if it is missing or damaged.

    Raises:
        FormatVersionError: a newer aspenfs made the volume, and its rules are not known here.
    """
    (found,) = await kv.get([keys.superblock])
    if found is None:
        findings.add(ProblemKind.SUPERBLOCK, keys.superblock, "there is no superblock")
        return None
    try:
        return metadata.decode_superblock(keys.superblock, found.value)
    except CorruptRecordError as error:
        findings.add(ProblemKind.SUPERBLOCK, keys.superblock, str(error))
        return None


async def check_next_ino(kv: KeyValue, keys: Keys, ino_max: Ino, findings: Findings) -> None:
    """Check that no inode's number can be given out again."""
    (found,) = await kv.get([keys.next_ino])
    next_ino = FIRST_INO  # nobody has taken a number yet
    try:
        if found is not None:
            next_ino = metadata.decode_next_ino(keys.next_ino, found.value)
    except CorruptRecordError as error:
        findings.add(ProblemKind.NEXT_INO, keys.next_ino, str(error))
        return
    if next_ino <= ino_max:
        findings.add(
            ProblemKind.NEXT_INO,
            keys.next_ino,
            f"the next inode number is {next_ino}, but inode {ino_max} exists",
        )


async def check_usage(kv: KeyValue, keys: Keys, findings: Findings) -> None:
    """Check that the sessions' counters add up to what the inodes, counted before, use."""
    sums = dict.fromkeys(_COUNTER_NAMES, 0)
    cursor = RecordCursor.over(kv, keys, keys.usages(), findings)
    while (record := await cursor.next()) is not None:
        if len(record.value) == _COUNTER.size:
            sums[record.parsed.name] += _COUNTER.unpack(record.value)[0]
        else:
            findings.add(
                ProblemKind.DAMAGED,
                record.key,
                f"{len(record.value)} bytes where a counter has {_COUNTER.size}",
            )
    used = {b"b": findings.allocated_bytes, b"i": findings.inodes}
    for counter, name in _COUNTER_NAMES.items():
        if sums[counter] != used[counter]:
            findings.add(
                ProblemKind.USAGE,
                keys.usages(),
                f"the counters add up to {sums[counter]} {name}, the inodes use {used[counter]}",
            )


async def check_unknown_keys(kv: KeyValue, keys: Keys, findings: Findings) -> None:
    """Report every key of the volume outside of the ranges that the other passes read."""
    start = keys.prefix
    for letter in KINDS.decode():
        await _report_all(kv, keys, start, kind_prefix(keys, letter), findings)
        start = range_end(kind_prefix(keys, letter))
    await _report_all(kv, keys, start, range_end(keys.prefix), findings)
    for letter in "MNRS":  # no pass walks these
        prefix = kind_prefix(keys, letter)
        await _report_all(kv, keys, prefix, range_end(prefix), findings)


async def _report_all(
    kv: KeyValue, keys: Keys, start: bytes, end: bytes, findings: Findings
) -> None:
    """Walk a range; the cursor reports what the format does not know."""
    if start >= end:
        return
    cursor = RecordCursor(kv, keys, start, end, findings)
    while await cursor.next() is not None:
        pass
