"""A read-only consistency check of a volume: every rule of format v1 that records can break.

Three passes over the keys, each in key order and page by page: everything that belongs to one
inode, joined by inode number (:mod:`~aspenfs.fsck.inode_pass`); the directory entries, against
what the first pass noted (:mod:`~aspenfs.fsck.tree_pass`); the records of the volume as a whole,
and keys that no rule knows (:mod:`~aspenfs.fsck.volume_pass`).

What stays in memory between the passes is about 105 bytes an inode and 200 a directory, measured
with CPython 3.11. All data is read once, which also proves that the engine can read it back.
"""

from aspenfs.fsck.check import check_volume
from aspenfs.fsck.report import Counts, Problem, ProblemKind, Report

__all__ = ["Counts", "Problem", "ProblemKind", "Report", "check_volume"]
