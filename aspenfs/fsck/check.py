"""The check as a whole, and how it deals with a volume that others change meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aspenfs.fsck import volume_pass
from aspenfs.fsck.inode_pass import InodePass
from aspenfs.fsck.lock_pass import check_locks
from aspenfs.fsck.report import Findings, Report
from aspenfs.fsck.tree_pass import InodeTable, TreePass
from aspenfs.limits import CHUNK_BYTES, FSCK_LIVE_PASSES_MAX

if TYPE_CHECKING:
    from aspenfs.keys import Keys
    from aspenkv.contract import KeyValue


async def check_volume(kv: KeyValue, keys: Keys, *, live: bool = False) -> Report:
    """Check every rule of the format on a volume. Writes nothing.

    A scan of many pages is no snapshot. So on a live volume the check runs again while commits
    come in between, at most FSCK_LIVE_PASSES_MAX times, and keeps the problems that every run
    found: what is wrong stays wrong, what was only seen halfway through a commit does not repeat.

    Args:
        kv: Where to read.
        keys: The volume's keys.
        live: Whether other clients may write to the volume meanwhile.

    Raises:
        FormatVersionError: a newer aspenfs wrote the volume or one of its records.
        AspenKvError: the store could not be read.
    """
    report = await _check_once(kv, keys)
    runs = 1
    while live and not report.exact and not report.is_clean and runs < FSCK_LIVE_PASSES_MAX:
        again = await _check_once(kv, keys)
        report = again if again.exact else _repeated(report, again)
        runs += 1
    return report


async def _check_once(kv: KeyValue, keys: Keys) -> Report:
    findings = Findings()
    first_revision = await kv.revision()
    superblock = await volume_pass.read_superblock(kv, keys, findings)
    chunk_bytes = CHUNK_BYTES if superblock is None else superblock.chunk_bytes
    table = InodeTable()
    await InodePass(kv, keys, chunk_bytes, findings, table).run()
    await TreePass(kv, keys, findings, table).run()
    await volume_pass.check_next_ino(kv, keys, table.ino_max, findings)
    await volume_pass.check_usage(kv, keys, findings)
    await check_locks(kv, keys, findings)
    await volume_pass.check_unknown_keys(kv, keys, findings)
    revision = await kv.revision()
    return Report(
        findings.problems,
        findings.problem_count,
        findings.counts(),
        revision,
        revision == first_revision,
    )


def _repeated(earlier: Report, later: Report) -> Report:
    """Return the later report with those of its problems that the earlier one has too."""
    known = {(problem.kind, problem.key) for problem in earlier.problems}
    problems = [problem for problem in later.problems if (problem.kind, problem.key) in known]
    return later._replace(problems=problems, problem_count=len(problems))
