"""One damaged record per rule of the check, and volumes with nothing wrong."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aspenfs import fsck
from aspenfs.errors import FormatVersionError
from aspenfs.fsck import ProblemKind, check_volume
from aspenfs.keys import Keys
from aspenfs.limits import CHUNK_BYTES, FSCK_PROBLEMS_MAX, INLINE_BYTES_MAX
from aspenfs.lock_records import encode_locks
from aspenfs.metadata import (
    Dentry,
    Inode,
    Superblock,
    Times,
    encode_dentry,
    encode_inode,
    encode_next_ino,
    encode_orphan,
    encode_superblock,
    encode_times,
)
from aspenfs.types import NO_INO, ROOT_INO, Ino, SessionId
from aspenkv.contract import Delete, KeyValue, Op, Put, ScanPage
from aspenkv.embedded import open_embedded
from aspenkv.engine.memory import MemoryEngine

KEYS = Keys("test")
SUBDIRECTORY, INLINE, CHUNKED, SYMLINK, ORPHAN, SUBSUBDIRECTORY = map(Ino, range(2, 8))
CHUNKED_BYTES = 2 * CHUNK_BYTES + 10
NOBODY = Ino(99)
SESSION = SessionId(5)


def inode(mode: int, **changes: Any) -> Inode:
    fields = {
        "mode": mode,
        "uid": 0,
        "gid": 0,
        "nlink": 2 if stat.S_ISDIR(mode) else 1,
        "size": 0,
        "allocated_bytes": 0,
        "rdev": 0,
        "atime_ns": 0,
        "btime_ns": 0,
        "parent": NO_INO,
        "generation": 0,
        "has_xattrs": False,
        "target": None,
        "inline": None,
    }
    return Inode(**(fields | changes))


def directory(parent: Ino, **changes: Any) -> Inode:
    return inode(stat.S_IFDIR | 0o755, **({"parent": parent} | changes))


def counter(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


INODES = {
    ROOT_INO: directory(ROOT_INO, nlink=3),
    SUBDIRECTORY: directory(ROOT_INO, nlink=3),
    SUBSUBDIRECTORY: directory(SUBDIRECTORY),
    INLINE: inode(stat.S_IFREG | 0o644, nlink=2, size=5, allocated_bytes=5, inline=b"hello"),
    CHUNKED: inode(
        stat.S_IFREG | 0o600,
        size=CHUNKED_BYTES,
        allocated_bytes=CHUNK_BYTES + 10,
        has_xattrs=True,
    ),
    SYMLINK: inode(stat.S_IFLNK | 0o777, size=6, target=b"target"),
    ORPHAN: inode(stat.S_IFREG | 0o600, nlink=0, inline=b""),
}

DENTRIES = {
    (ROOT_INO, b"sub"): SUBDIRECTORY,
    (SUBDIRECTORY, b"subsub"): SUBSUBDIRECTORY,
    (ROOT_INO, b"inline"): INLINE,
    (SUBDIRECTORY, b"inline too"): INLINE,
    (SUBDIRECTORY, b"chunked"): CHUNKED,
    (ROOT_INO, b"link"): SYMLINK,
}


def dentry_of(ino: Ino) -> bytes:
    return encode_dentry(Dentry(ino, INODES[ino].mode >> 12))


def clean_volume() -> dict[bytes, bytes]:
    """Return the records of a small volume with one inode of each kind, and nothing wrong."""
    records = {
        KEYS.superblock: encode_superblock(Superblock(1, bytes(16), CHUNK_BYTES, 0, 0)),
        KEYS.next_ino: encode_next_ino(Ino(1000)),
        KEYS.directory_moves: b"",
        KEYS.session(SESSION): b"{}",
        KEYS.orphan(ORPHAN): encode_orphan(SESSION),
        KEYS.hold(ORPHAN, SessionId(6)): b"",
        KEYS.locks(CHUNKED, SESSION): encode_locks(()),
        KEYS.locks(SYMLINK, SESSION): encode_locks(()),
        KEYS.xattr(CHUNKED, b"user.a"): b"value",
        KEYS.chunk(CHUNKED, 0): b"\1" * CHUNK_BYTES,
        KEYS.chunk(CHUNKED, 2): b"\2",
        # Each session counts what it did, so one may have removed more than it made.
        KEYS.usage_bytes(SESSION): counter(CHUNK_BYTES + 20),
        KEYS.usage_bytes(SessionId(6)): counter(-5),
        KEYS.usage_inodes(SESSION): counter(len(INODES)),
    }
    for ino, record in INODES.items():
        records[KEYS.inode(ino)] = encode_inode(record)
        records[KEYS.times(ino)] = encode_times(Times(1, 2))
    for (parent, name), ino in DENTRIES.items():
        records[KEYS.dentry(parent, name)] = dentry_of(ino)
    return records


@pytest.fixture
async def kv() -> AsyncIterator[KeyValue]:
    async with open_embedded(MemoryEngine()) as service:
        client = service.connect()
        await client.commit([], [Put(*record) for record in clean_volume().items()])
        yield client


async def test_a_clean_volume_has_no_problem(kv: KeyValue) -> None:
    report = await check_volume(kv, KEYS)
    assert report.problems == []
    assert report.is_clean
    assert report.exact
    assert report.counts == fsck.Counts(
        inodes=7,
        directories=3,
        dentries=6,
        chunks=2,
        xattrs=1,
        orphans=1,
        allocated_bytes=CHUNK_BYTES + 15,
    )


async def test_a_volume_that_does_not_exist_has_no_superblock_and_no_root(kv: KeyValue) -> None:
    report = await check_volume(kv, Keys("nothing"))
    assert {problem.kind for problem in report.problems} == {
        ProblemKind.SUPERBLOCK,
        ProblemKind.ROOT,
    }


async def test_a_directory_may_be_an_orphan(kv: KeyValue) -> None:
    orphan = encode_inode(directory(ROOT_INO, nlink=0))
    await kv.commit([], [Put(KEYS.inode(ORPHAN), orphan)])
    assert (await check_volume(kv, KEYS)).is_clean


async def test_other_volumes_are_not_looked_at(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"fs:tesa:nonsense", b""), Put(b"fs:test0:nonsense", b"")])
    assert (await check_volume(kv, KEYS)).is_clean


def put_inode(ino: Ino, **changes: Any) -> list[Op]:
    return [Put(KEYS.inode(ino), encode_inode(INODES[ino]._replace(**changes)))]


def put_dentry(parent: Ino, name: bytes, ino: Ino, file_type: int) -> list[Op]:
    return [Put(KEYS.dentry(parent, name), encode_dentry(Dentry(ino, file_type)))]


def remove_inode(ino: Ino) -> list[Op]:
    return [Delete(KEYS.inode(ino)), Delete(KEYS.times(ino))]


def move_below_itself() -> list[Op]:
    """Move a directory below its own subdirectory."""
    return [
        Delete(KEYS.dentry(ROOT_INO, b"sub")),
        *put_dentry(SUBSUBDIRECTORY, b"sub", SUBDIRECTORY, 4),
        *put_inode(SUBDIRECTORY, parent=SUBSUBDIRECTORY),
        *put_inode(SUBSUBDIRECTORY, nlink=3),
        *put_inode(ROOT_INO, nlink=2),
    ]


S_IFREG, S_IFDIR = 8, 4
DAMAGES: list[tuple[str, list[Op], set[tuple[ProblemKind, bytes]]]] = [
    (
        "no superblock",
        [Delete(KEYS.superblock)],
        {(ProblemKind.SUPERBLOCK, KEYS.superblock)},
    ),
    (
        "damaged superblock",
        [Put(KEYS.superblock, b"\1\0\0\0")],
        {(ProblemKind.SUPERBLOCK, KEYS.superblock)},
    ),
    (
        "no root",
        remove_inode(ROOT_INO),
        {
            (ProblemKind.ROOT, KEYS.inode(ROOT_INO)),
            (ProblemKind.DENTRY_PARENT, KEYS.dentry(ROOT_INO, b"sub")),
            (ProblemKind.DENTRY_PARENT, KEYS.dentry(ROOT_INO, b"inline")),
            (ProblemKind.DENTRY_PARENT, KEYS.dentry(ROOT_INO, b"link")),
            (ProblemKind.USAGE, KEYS.usages()),
        },
    ),
    (
        "root is a file",
        [Put(KEYS.inode(ROOT_INO), encode_inode(inode(stat.S_IFREG, nlink=0, inline=b"")))],
        {
            (ProblemKind.ROOT, KEYS.inode(ROOT_INO)),
            (ProblemKind.ORPHAN, KEYS.inode(ROOT_INO)),
            (ProblemKind.DENTRY_PARENT, KEYS.dentry(ROOT_INO, b"sub")),
            (ProblemKind.DENTRY_PARENT, KEYS.dentry(ROOT_INO, b"inline")),
            (ProblemKind.DENTRY_PARENT, KEYS.dentry(ROOT_INO, b"link")),
        },
    ),
    (
        "root has another parent",
        put_inode(ROOT_INO, parent=SUBDIRECTORY),
        {(ProblemKind.ROOT, KEYS.inode(ROOT_INO))},
    ),
    (
        "root has a name",
        [*put_dentry(SUBDIRECTORY, b"up", ROOT_INO, S_IFDIR), *put_inode(SUBDIRECTORY, nlink=4)],
        {
            (ProblemKind.ROOT, KEYS.inode(ROOT_INO)),
            (ProblemKind.PARENT, KEYS.inode(ROOT_INO)),
        },
    ),
    (
        "unknown letter",
        [Put(KEYS.prefix + b"Z", b""), Put(KEYS.prefix + b"B", b"")],
        {
            (ProblemKind.UNKNOWN_KEY, KEYS.prefix + b"Z"),
            (ProblemKind.UNKNOWN_KEY, KEYS.prefix + b"B"),
        },
    ),
    (
        "keys of a known letter that are too short or too long",
        [Put(KEYS.inode(INLINE) + b".mete", b""), Put(KEYS.superblock + b"S", b"")],
        {
            (ProblemKind.UNKNOWN_KEY, KEYS.inode(INLINE) + b".mete"),
            (ProblemKind.UNKNOWN_KEY, KEYS.superblock + b"S"),
        },
    ),
    (
        "damaged file inode: its records and names are still its own",
        [Put(KEYS.inode(CHUNKED), b"\1"), Put(KEYS.usage_bytes(SESSION), counter(10))],
        {(ProblemKind.DAMAGED, KEYS.inode(CHUNKED))},
    ),
    (
        "damaged directory inode: what it holds is not blamed",
        [Put(KEYS.inode(SUBSUBDIRECTORY), b"\1")],
        {
            (ProblemKind.DAMAGED, KEYS.inode(SUBSUBDIRECTORY)),
            (ProblemKind.NLINK, KEYS.inode(SUBDIRECTORY)),
        },
    ),
    (
        "damaged .meta",
        [Put(KEYS.times(INLINE), b"short")],
        {(ProblemKind.DAMAGED, KEYS.times(INLINE))},
    ),
    (
        "damaged orphan record",
        [Put(KEYS.orphan(ORPHAN), b"short")],
        {(ProblemKind.DAMAGED, KEYS.orphan(ORPHAN))},
    ),
    (
        "locks that cannot be read",
        [Put(KEYS.locks(CHUNKED, SESSION), b"")],
        {(ProblemKind.DAMAGED, KEYS.locks(CHUNKED, SESSION))},
    ),
    (
        "locks of a session that is gone",
        [Put(KEYS.locks(CHUNKED, SessionId(8)), encode_locks(()))],
        {(ProblemKind.STRAY, KEYS.locks(CHUNKED, SessionId(8)))},
    ),
    (
        "a hold with a value",
        [Put(KEYS.hold(ORPHAN, SESSION), b"x")],
        {(ProblemKind.DAMAGED, KEYS.hold(ORPHAN, SESSION))},
    ),
    (
        "a hold on a file with a name",
        [Put(KEYS.hold(SYMLINK, SESSION), b"")],
        {(ProblemKind.ORPHAN, KEYS.inode(SYMLINK))},
    ),
    (
        "damaged directory entry",
        [Put(KEYS.dentry(ROOT_INO, b"link"), b"short")],
        {
            (ProblemKind.DAMAGED, KEYS.dentry(ROOT_INO, b"link")),
            (ProblemKind.UNREACHABLE, KEYS.inode(SYMLINK)),
        },
    ),
    (
        "damaged usage counter",
        [
            Put(KEYS.usage_bytes(SESSION), b"short"),
            Put(KEYS.usage_bytes(SessionId(8)), counter(CHUNK_BYTES + 20)),
        ],
        {(ProblemKind.DAMAGED, KEYS.usage_bytes(SESSION))},
    ),
    (
        "records of an inode that is not there",
        [
            Put(KEYS.times(NOBODY), encode_times(Times(0, 0))),
            Put(KEYS.chunk(NOBODY, 7), b"x"),
            Put(KEYS.xattr(NOBODY, b"user.a"), b""),
            Put(KEYS.orphan(NOBODY), encode_orphan(SESSION)),
            Put(KEYS.hold(NOBODY, SESSION), b""),
        ],
        {
            (ProblemKind.STRAY, KEYS.times(NOBODY)),
            (ProblemKind.STRAY, KEYS.chunk(NOBODY, 7)),
            (ProblemKind.STRAY, KEYS.xattr(NOBODY, b"user.a")),
            (ProblemKind.STRAY, KEYS.orphan(NOBODY)),
            (ProblemKind.STRAY, KEYS.hold(NOBODY, SESSION)),
        },
    ),
    (
        "no .meta",
        [Delete(KEYS.times(SYMLINK))],
        {(ProblemKind.NO_TIMES, KEYS.inode(SYMLINK))},
    ),
    (
        "mode of no type",
        put_inode(SYMLINK, mode=0o30644),
        {
            (ProblemKind.MODE, KEYS.inode(SYMLINK)),
            (ProblemKind.DENTRY_TYPE, KEYS.dentry(ROOT_INO, b"link")),
        },
    ),
    (
        "parent and device number on a file",
        put_inode(INLINE, parent=ROOT_INO, rdev=5),
        {(ProblemKind.MODE, KEYS.inode(INLINE))},
    ),
    (
        "sizes that cannot be",
        put_inode(SUBSUBDIRECTORY, size=1) + put_inode(CHUNKED, size=2**63),
        {
            (ProblemKind.MODE, KEYS.inode(SUBSUBDIRECTORY)),
            (ProblemKind.MODE, KEYS.inode(CHUNKED)),
            (ProblemKind.ALLOCATED, KEYS.inode(CHUNKED)),
        },
    ),
    (
        "symlink without target",
        put_inode(SYMLINK, target=None, size=0),
        {(ProblemKind.MODE, KEYS.inode(SYMLINK))},
    ),
    (
        "orphan record of a file with a name",
        [Put(KEYS.orphan(SYMLINK), encode_orphan(SESSION))],
        {(ProblemKind.ORPHAN, KEYS.inode(SYMLINK))},
    ),
    (
        "no links and no orphan record",
        [Delete(KEYS.orphan(ORPHAN))],
        {(ProblemKind.ORPHAN, KEYS.inode(ORPHAN))},
    ),
    (
        "chunk too long",
        [Put(KEYS.chunk(CHUNKED, 0), bytes(CHUNK_BYTES + 1))],
        {
            (ProblemKind.CHUNK_LENGTH, KEYS.chunk(CHUNKED, 0)),
            (ProblemKind.CHUNK_PAST_END, KEYS.chunk(CHUNKED, 0)),
        },
    ),
    (
        "chunk above the end",
        [Put(KEYS.chunk(CHUNKED, 3), b"x")],
        {(ProblemKind.CHUNK_PAST_END, KEYS.chunk(CHUNKED, 3))},
    ),
    (
        "last chunk reaches over the end",
        [Put(KEYS.chunk(CHUNKED, 2), bytes(11))],
        {(ProblemKind.CHUNK_PAST_END, KEYS.chunk(CHUNKED, 2))},
    ),
    (
        "inline data too long",
        [
            *put_inode(
                INLINE,
                inline=bytes(INLINE_BYTES_MAX + 1),
                size=INLINE_BYTES_MAX + 1,
                allocated_bytes=INLINE_BYTES_MAX + 1,
            ),
            Put(KEYS.usage_bytes(SessionId(6)), counter(INLINE_BYTES_MAX - 9)),
        ],
        {(ProblemKind.INLINE, KEYS.inode(INLINE))},
    ),
    (
        "chunk beside inline data",
        [Put(KEYS.chunk(INLINE, 0), b"hello")],
        {
            (ProblemKind.INLINE, KEYS.inode(INLINE)),
            (ProblemKind.ALLOCATED, KEYS.inode(INLINE)),
        },
    ),
    (
        "chunk lost",
        [Delete(KEYS.chunk(CHUNKED, 0))],
        {(ProblemKind.ALLOCATED, KEYS.inode(CHUNKED))},
    ),
    (
        "attribute that the inode does not know of",
        [Put(KEYS.xattr(INLINE, b"user.a"), b"")],
        {(ProblemKind.XATTR_FLAG, KEYS.inode(INLINE))},
    ),
    (
        "entry without inode",
        put_dentry(ROOT_INO, b"dangling", NOBODY, S_IFREG),
        {(ProblemKind.DANGLING, KEYS.dentry(ROOT_INO, b"dangling"))},
    ),
    (
        "entry in a file",
        [*put_dentry(SYMLINK, b"inside", INLINE, S_IFREG), *put_inode(INLINE, nlink=3)],
        {(ProblemKind.DENTRY_PARENT, KEYS.dentry(SYMLINK, b"inside"))},
    ),
    (
        "entry in nothing",
        [*put_dentry(NOBODY, b"inside", INLINE, S_IFREG), *put_inode(INLINE, nlink=3)],
        {(ProblemKind.DENTRY_PARENT, KEYS.dentry(NOBODY, b"inside"))},
    ),
    (
        "entry of another type",
        put_dentry(ROOT_INO, b"link", SYMLINK, S_IFREG),
        {(ProblemKind.DENTRY_TYPE, KEYS.dentry(ROOT_INO, b"link"))},
    ),
    (
        "names that cannot be",
        [
            *put_dentry(ROOT_INO, b"..", INLINE, S_IFREG),
            *put_dentry(ROOT_INO, b"a/b", INLINE, S_IFREG),
            *put_dentry(ROOT_INO, b"n" * 256, INLINE, S_IFREG),
            *put_inode(INLINE, nlink=5),
        ],
        {
            (ProblemKind.DENTRY_NAME, KEYS.dentry(ROOT_INO, b"..")),
            (ProblemKind.DENTRY_NAME, KEYS.dentry(ROOT_INO, b"a/b")),
            (ProblemKind.DENTRY_NAME, KEYS.dentry(ROOT_INO, b"n" * 256)),
        },
    ),
    (
        "directory with two names",
        put_dentry(SUBDIRECTORY, b"twin", SUBSUBDIRECTORY, S_IFDIR),
        {(ProblemKind.DIRECTORY_LINKED_TWICE, KEYS.dentry(SUBDIRECTORY, b"twin"))},
    ),
    (
        "wrong parent field",
        put_inode(SUBSUBDIRECTORY, parent=ROOT_INO),
        {(ProblemKind.PARENT, KEYS.inode(SUBSUBDIRECTORY))},
    ),
    (
        "too many links",
        put_inode(INLINE, nlink=3),
        {(ProblemKind.NLINK, KEYS.inode(INLINE))},
    ),
    (
        "too few links",
        put_inode(SUBDIRECTORY, nlink=2),
        {(ProblemKind.NLINK, KEYS.inode(SUBDIRECTORY))},
    ),
    (
        "name lost",
        [Delete(KEYS.dentry(SUBDIRECTORY, b"subsub")), *put_inode(SUBDIRECTORY, nlink=2)],
        {(ProblemKind.UNREACHABLE, KEYS.inode(SUBSUBDIRECTORY))},
    ),
    (
        "cycle",
        move_below_itself(),
        {(ProblemKind.CYCLE, KEYS.inode(SUBDIRECTORY))},
    ),
    (
        "wrong usage",
        [
            Put(KEYS.usage_bytes(SessionId(6)), counter(0)),
            Put(KEYS.usage_inodes(SessionId(6)), counter(1)),
        ],
        {(ProblemKind.USAGE, KEYS.usages())},
    ),
    (
        "next inode number too low",
        [Put(KEYS.next_ino, encode_next_ino(SUBSUBDIRECTORY))],
        {(ProblemKind.NEXT_INO, KEYS.next_ino)},
    ),
    (
        "no next inode number beside inodes",
        [Delete(KEYS.next_ino)],
        {(ProblemKind.NEXT_INO, KEYS.next_ino)},
    ),
    (
        "damaged next inode number",
        [Put(KEYS.next_ino, b"short")],
        {(ProblemKind.NEXT_INO, KEYS.next_ino)},
    ),
]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [pytest.param(damage, expected, id=title) for title, damage, expected in DAMAGES],
)
async def test_each_damage_is_found_and_nothing_else(
    kv: KeyValue, damage: list[Op], expected: set[tuple[ProblemKind, bytes]]
) -> None:
    await kv.commit([], damage)
    report = await check_volume(kv, KEYS)
    assert {(problem.kind, problem.key) for problem in report.problems} == expected
    assert report.problem_count == len(report.problems)
    assert not report.is_clean
    assert all(problem.text and "\n" not in problem.text for problem in report.problems)


def test_every_kind_of_problem_is_tested() -> None:
    assert {kind for _, _, expected in DAMAGES for kind, _ in expected} == set(ProblemKind)


async def test_a_newer_format_is_refused(kv: KeyValue) -> None:
    newer = encode_superblock(Superblock(2, bytes(16), CHUNK_BYTES, 0, 0))
    await kv.commit([], [Put(KEYS.superblock, newer)])
    with pytest.raises(FormatVersionError):
        await check_volume(kv, KEYS)


async def test_all_problems_are_counted_and_some_are_listed(kv: KeyValue) -> None:
    strays = FSCK_PROBLEMS_MAX + 50
    for first in range(0, strays, 50):
        await kv.commit(
            [], [Put(KEYS.chunk(NOBODY, index), b"") for index in range(first, first + 50)]
        )
    report = await check_volume(kv, KEYS)
    assert report.problem_count == strays
    assert len(report.problems) == FSCK_PROBLEMS_MAX


async def test_scans_of_many_pages_miss_nothing(
    kv: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenfs.fsck.scanning.FSCK_PAGE_RECORDS", 1)
    report = await check_volume(kv, KEYS)
    assert report.is_clean
    assert report.counts.inodes == len(INODES)


class BusyStore:
    """A store that others write to while it is scanned."""

    def __init__(self, kv: KeyValue, write: Callable[[int], list[Op]]) -> None:
        self._kv = kv
        self._write = write
        self.scans = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    async def scan(self, start: bytes, end: bytes, **options: Any) -> ScanPage:
        self.scans += 1
        await self._kv.commit([], self._write(self.scans))
        return await self._kv.scan(start, end, **options)


def come_and_go(scan: int) -> list[Op]:
    """Leave a name for no inode behind for one scan only, each time another."""
    return [
        Delete(KEYS.dentry(ROOT_INO, b"%d" % (scan - 1))),
        *put_dentry(ROOT_INO, b"%d" % scan, NOBODY, S_IFREG),
    ]


async def test_what_a_busy_volume_shows_once_is_no_problem(kv: KeyValue) -> None:
    busy = BusyStore(kv, come_and_go)
    assert not (await check_volume(busy, KEYS)).is_clean
    report = await check_volume(busy, KEYS, live=True)
    assert report.problems == []
    assert not report.exact


async def test_what_is_wrong_with_a_busy_volume_is_found(kv: KeyValue) -> None:
    await kv.commit([], put_inode(INLINE, nlink=7))
    report = await check_volume(BusyStore(kv, come_and_go), KEYS, live=True)
    assert [(problem.kind, problem.key) for problem in report.problems] == [
        (ProblemKind.NLINK, KEYS.inode(INLINE))
    ]
    assert report.problem_count == 1


async def test_a_live_volume_that_comes_to_rest_is_seen_exactly(kv: KeyValue) -> None:
    def settle(scan: int) -> list[Op]:
        return come_and_go(scan) if scan < 3 else [Delete(KEYS.dentry(ROOT_INO, b"2"))]

    class Settling(BusyStore):
        async def scan(self, start: bytes, end: bytes, **options: Any) -> ScanPage:
            if self.scans < 3:
                return await super().scan(start, end, **options)
            return await self._kv.scan(start, end, **options)

    report = await check_volume(Settling(kv, settle), KEYS, live=True)
    assert report.is_clean
