"""The records of file locks. They belong to sessions, and say nothing of the inodes themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aspenfs.errors import CorruptRecordError
from aspenfs.fsck.report import Findings, ProblemKind
from aspenfs.fsck.scanning import RecordCursor, kind_prefix
from aspenfs.lock_records import decode_locks

if TYPE_CHECKING:
    from aspenfs.keys import Keys
    from aspenfs.types import SessionId
    from aspenkv.contract import KeyValue


async def check_locks(kv: KeyValue, keys: Keys, findings: Findings) -> None:
    """Check that each record can be read, and that its session exists: they vanish together.

    Raises:
        FormatVersionError: a newer aspenfs wrote one.
    """
    is_live: dict[SessionId, bool] = {}
    cursor = RecordCursor.over(kv, keys, kind_prefix(keys, "L"), findings)
    while (record := await cursor.next()) is not None:
        session = record.parsed.holder
        try:
            decode_locks(record.key, record.value, session)
        except CorruptRecordError as error:
            findings.add(ProblemKind.DAMAGED, record.key, str(error))
        if session not in is_live:
            (found,) = await kv.get([keys.session(session)])
            is_live[session] = found is not None
        if not is_live[session]:
            findings.add(
                ProblemKind.STRAY,
                record.key,
                f"locks on inode {record.parsed.ino} of session {session}, which does not exist",
            )
