from __future__ import annotations

import contextlib
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenfs import metadata
from aspenfs.errors import CorruptRecordError, FormatVersionError, UnknownFeaturesError
from aspenfs.metadata import Dentry, Inode, Superblock, Times
from aspenfs.types import ROOT_INO, Ino, SessionId
from aspenkv.limits import VALUE_BYTES_MAX

KEY = b"fs:v:key"

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
TIMES_NS = st.integers(-(2**63) * 10**9, (2**63) * 10**9 - 1)

SUPERBLOCK = Superblock(metadata.FORMAT_VERSION, bytes(range(16)), 65536, 0, 1)
INODE = Inode(
    mode=stat.S_IFREG | 0o644,
    uid=1000,
    gid=100,
    nlink=1,
    size=3,
    allocated_bytes=3,
    rdev=0,
    atime_ns=-1,
    btime_ns=0,
    parent=Ino(0),
    generation=0,
    has_xattrs=False,
    target=None,
    inline=b"abc",
)


@st.composite
def inodes(draw: st.DrawFn) -> Inode:
    tail = draw(st.none() | st.binary(max_size=100))
    is_target = draw(st.booleans())
    return Inode(
        mode=draw(U32),
        uid=draw(U32),
        gid=draw(U32),
        nlink=draw(U32),
        size=draw(U64) if tail is None else len(tail),
        allocated_bytes=draw(U64),
        rdev=draw(U64),
        atime_ns=draw(TIMES_NS),
        btime_ns=draw(TIMES_NS),
        parent=Ino(draw(U64)),
        generation=draw(U32),
        has_xattrs=draw(st.booleans()),
        target=tail if is_target else None,
        inline=None if is_target else tail,
    )


@given(inode=inodes())
def test_an_inode_round_trips(inode: Inode) -> None:
    assert metadata.decode_inode(KEY, metadata.encode_inode(inode)) == inode


@given(mtime_ns=TIMES_NS, ctime_ns=TIMES_NS)
def test_times_round_trip(mtime_ns: int, ctime_ns: int) -> None:
    times = Times(mtime_ns, ctime_ns)
    assert metadata.decode_times(KEY, metadata.encode_times(times)) == times


@given(ino=st.integers(1, 2**64 - 1).map(Ino), file_type=st.integers(0, 255))
def test_a_dentry_round_trips(ino: Ino, file_type: int) -> None:
    dentry = Dentry(ino, file_type)
    assert metadata.decode_dentry(KEY, metadata.encode_dentry(dentry)) == dentry


@given(
    uuid=st.binary(min_size=16, max_size=16),
    chunk_bytes=st.integers(1, VALUE_BYTES_MAX),
    created_ns=TIMES_NS,
)
def test_a_superblock_round_trips(uuid: bytes, chunk_bytes: int, created_ns: int) -> None:
    superblock = Superblock(metadata.FORMAT_VERSION, uuid, chunk_bytes, 0, created_ns)
    assert metadata.decode_superblock(KEY, metadata.encode_superblock(superblock)) == superblock


@given(number=st.integers(2, 2**64 - 1))
def test_the_small_records_round_trip(number: int) -> None:
    session, ino = SessionId(number), Ino(number)
    assert metadata.decode_orphan(KEY, metadata.encode_orphan(session)) == session
    assert metadata.decode_next_ino(KEY, metadata.encode_next_ino(ino)) == ino


@given(total=st.integers(-(2**63), 2**63 - 1))
def test_a_counter_is_a_signed_little_endian_number(total: int) -> None:
    assert metadata.decode_counter(KEY, total.to_bytes(8, "little", signed=True)) == total


def test_an_inode_knows_its_type() -> None:
    assert INODE.is_regular
    assert not INODE.is_directory
    directory = INODE._replace(mode=stat.S_IFDIR | 0o755)
    assert directory.is_directory
    assert not directory.is_regular


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "it is empty"),
        (b"\x01", "1 bytes where at least"),
        (metadata.encode_inode(INODE)[:-4], "bytes where at least"),
        (metadata.encode_inode(INODE)[:-1], "a tail of 2 bytes does not fit size 3"),
        (metadata.encode_inode(INODE) + b"x", "a tail of 4 bytes does not fit size 3"),
        (metadata.encode_inode(INODE._replace(inline=None)) + b"abc", "does not fit"),
        (b"\x00" + metadata.encode_inode(INODE)[1:], "record version 0"),
        (b"\x01\x03" + metadata.encode_inode(INODE)[2:], "unknown flags 0x03"),
        (b"\x01\x08" + metadata.encode_inode(INODE)[2:], "unknown flags 0x08"),
    ],
)
def test_a_damaged_inode_is_refused(record: bytes, reason: str) -> None:
    with pytest.raises(CorruptRecordError, match=reason) as caught:
        metadata.decode_inode(KEY, record)
    assert caught.value.key == KEY


NANOSECONDS_OUT_OF_RANGE = (10**9).to_bytes(4, "little")


@pytest.mark.parametrize(("atime_ns", "btime_ns"), [(1, 0), (0, 1)])
def test_an_inode_with_too_many_nanoseconds_is_refused(atime_ns: int, btime_ns: int) -> None:
    zero = metadata.encode_inode(INODE._replace(atime_ns=0, btime_ns=0))
    one = metadata.encode_inode(INODE._replace(atime_ns=atime_ns, btime_ns=btime_ns))
    (at,) = (index for index, byte in enumerate(one) if byte != zero[index])
    record = zero[:at] + NANOSECONDS_OUT_OF_RANGE + zero[at + 4 :]
    with pytest.raises(CorruptRecordError, match="nanoseconds"):
        metadata.decode_inode(KEY, record)


def test_a_newer_inode_is_refused_even_if_it_is_shorter() -> None:
    with pytest.raises(FormatVersionError, match="format version 2") as caught:
        metadata.decode_inode(KEY, b"\x02")
    assert caught.value.key == KEY


@pytest.mark.parametrize("size", [0, 31, 33])
def test_times_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(CorruptRecordError, match=f"{size} bytes where 32 are due"):
        metadata.decode_times(KEY, bytes(size))


@pytest.mark.parametrize("at", [8, 24])
@pytest.mark.parametrize("nanoseconds", [-1, 10**9])
def test_times_with_nanoseconds_out_of_range_are_refused(at: int, nanoseconds: int) -> None:
    record = bytearray(32)
    record[at : at + 8] = nanoseconds.to_bytes(8, "little", signed=True)
    with pytest.raises(CorruptRecordError, match="nanoseconds"):
        metadata.decode_times(KEY, bytes(record))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "0 bytes where 9 are due"),
        (bytes(10), "10 bytes where 9 are due"),
        (bytes(9), "inode 0"),
    ],
)
def test_a_damaged_dentry_is_refused(record: bytes, reason: str) -> None:
    with pytest.raises(CorruptRecordError, match=reason):
        metadata.decode_dentry(KEY, record)


GOOD_SUPERBLOCK = metadata.encode_superblock(SUPERBLOCK)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "0 bytes where 44 are due"),
        (b"\xff\xff", "2 bytes where 44 are due"),
        (GOOD_SUPERBLOCK[:-1], "43 bytes where 44 are due"),
        (GOOD_SUPERBLOCK + b"x", "45 bytes where 44 are due"),
        (bytes(4) + GOOD_SUPERBLOCK[4:], "format version 0"),
        (metadata.encode_superblock(SUPERBLOCK._replace(chunk_bytes=0)), "chunk size 0"),
        (
            metadata.encode_superblock(SUPERBLOCK._replace(chunk_bytes=VALUE_BYTES_MAX + 1)),
            "chunk size 1048577",
        ),
        (GOOD_SUPERBLOCK[:-4] + NANOSECONDS_OUT_OF_RANGE, "nanoseconds"),
    ],
)
def test_a_damaged_superblock_is_refused(record: bytes, reason: str) -> None:
    with pytest.raises(CorruptRecordError, match=reason):
        metadata.decode_superblock(KEY, record)


def test_a_newer_superblock_is_refused_whatever_follows_the_version() -> None:
    with pytest.raises(FormatVersionError, match="format version 2"):
        metadata.decode_superblock(KEY, (2).to_bytes(4, "little") + b"?")


def test_a_superblock_with_unknown_features_is_refused() -> None:
    record = metadata.encode_superblock(SUPERBLOCK._replace(features=5))
    with pytest.raises(UnknownFeaturesError, match="0x5"):
        metadata.decode_superblock(KEY, record)


@pytest.mark.parametrize("size", [0, 7, 9])
def test_numbers_of_another_length_are_refused(size: int) -> None:
    for decode in (metadata.decode_orphan, metadata.decode_next_ino, metadata.decode_counter):
        with pytest.raises(CorruptRecordError, match=f"{size} bytes where 8 are due"):
            decode(KEY, bytes(size))


def test_the_next_inode_is_above_the_root() -> None:
    with pytest.raises(CorruptRecordError, match="root"):
        metadata.decode_next_ino(KEY, metadata.encode_next_ino(ROOT_INO))


@given(record=st.binary(max_size=120))
def test_no_bytes_do_anything_but_decode_or_be_refused(record: bytes) -> None:
    for decode in (
        metadata.decode_inode,
        metadata.decode_times,
        metadata.decode_dentry,
        metadata.decode_superblock,
        metadata.decode_orphan,
        metadata.decode_next_ino,
        metadata.decode_counter,
    ):
        with contextlib.suppress(CorruptRecordError, FormatVersionError):
            decode(KEY, record)


@given(time_ns=st.integers(-(10**40), 10**40))
def test_a_clamped_time_fits_a_record(time_ns: int) -> None:
    clamped = metadata.clamp_ns(time_ns)
    record = metadata.encode_times(Times(clamped, clamped))
    assert metadata.decode_times(KEY, record) == Times(clamped, clamped)
    if -(2**63) * 10**9 <= time_ns < 2**63 * 10**9:
        assert clamped == time_ns


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o755, 0o755), (0o6755, 0o755), (0o6745, 0o2745), (0o1755, 0o1755), (0o4644, 0o644)],
)
def test_set_id_bits_are_cleared_except_where_they_mean_mandatory_locks(
    mode: int, expected: int
) -> None:
    assert metadata.without_set_id(stat.S_IFREG | mode) == stat.S_IFREG | expected
