from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenfs.errors import VolumeError
from aspenfs.keys import Keys, ParsedKey, range_end, volume_of_prefix
from aspenfs.types import Ino, SessionId

KEYS = Keys("default")
U64 = st.integers(0, 2**64 - 1)
INOS = U64.map(Ino)
SESSIONS = U64.map(SessionId)
NAMES = st.binary(min_size=1, max_size=255)


@pytest.mark.parametrize("volume", ["a", "0", "default", "x.y_z-9", "v" * 64])
def test_a_volume_name_is_part_of_every_key(volume: str) -> None:
    keys = Keys(volume)
    assert keys.volume == volume
    assert keys.prefix == b"fs:" + volume.encode() + b":"
    assert keys.superblock.startswith(keys.prefix)
    assert keys.inode(Ino(1)).startswith(keys.prefix)


@pytest.mark.parametrize("volume", ["", "A", ".a", "-a", "a:b", "a/b", "a\n", "ä", "v" * 65])
def test_an_invalid_volume_name_is_refused_with_the_rule(volume: str) -> None:
    with pytest.raises(VolumeError, match="use 1 to 64 of"):
        Keys(volume)


@given(ino=INOS, name=NAMES, index=U64, session=SESSIONS)
def test_every_key_parses_to_what_made_it(
    ino: Ino, name: bytes, index: int, session: SessionId
) -> None:
    assert KEYS.parse(KEYS.inode(ino)) == ParsedKey("I", ino)
    assert KEYS.parse(KEYS.times(ino)) == ParsedKey("I.meta", ino)
    assert KEYS.parse(KEYS.dentry(ino, name)) == ParsedKey("D", ino, name)
    assert KEYS.parse(KEYS.chunk(ino, index)) == ParsedKey("C", ino, chunk_index=index)
    assert KEYS.parse(KEYS.xattr(ino, name)) == ParsedKey("X", ino, name)
    assert KEYS.parse(KEYS.orphan(ino)) == ParsedKey("O", ino)
    assert KEYS.parse(KEYS.hold(ino, session)) == ParsedKey("O.hold", ino, holder=session)
    assert KEYS.parse(KEYS.locks(ino, session)) == ParsedKey("L", ino, holder=session)
    assert KEYS.parse(KEYS.session(session)) == ParsedKey("M", session)
    assert KEYS.parse(KEYS.usage_bytes(session)) == ParsedKey("U", session, b"b")
    assert KEYS.parse(KEYS.usage_inodes(session)) == ParsedKey("U", session, b"i")


@given(ino=INOS, other=INOS, session=SESSIONS)
def test_the_range_of_holds_is_that_of_one_orphan(ino: Ino, other: Ino, session: SessionId) -> None:
    start, end = KEYS.holds(ino)
    assert (start <= KEYS.hold(other, session) < end) == (ino == other)
    assert not start <= KEYS.orphan(other) < end


def test_the_single_keys_parse() -> None:
    assert KEYS.parse(KEYS.superblock) == ParsedKey("S")
    assert KEYS.parse(KEYS.next_ino) == ParsedKey("N")
    assert KEYS.parse(KEYS.directory_moves) == ParsedKey("R")


def test_a_parsed_key_names_its_inode_or_session() -> None:
    inode = KEYS.parse(KEYS.inode(Ino(7)))
    session = KEYS.parse(KEYS.session(SessionId(8)))
    assert inode is not None
    assert inode.ino == 7
    assert session is not None
    assert session.session == 8


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"S\x00",
        b"N1",
        b"Rx",
        b"L" + bytes(8),
        b"\xff" + bytes(8),
        b"I" + bytes(7),
        b"I" + bytes(8) + b".met",
        b"I" + bytes(8) + b".metal",
        b"D" + bytes(8),
        b"X" + bytes(8),
        b"C" + bytes(8),
        b"C" + bytes(15),
        b"C" + bytes(17),
        b"U" + bytes(8),
        b"U" + bytes(8) + b"x",
        b"O" + bytes(9),
        b"O" + bytes(15),
        b"O" + bytes(17),
        b"M" + bytes(9),
    ],
)
def test_what_is_no_key_of_the_format_does_not_parse(tail: bytes) -> None:
    assert KEYS.parse(KEYS.prefix + tail) is None


@given(tail=st.binary(max_size=32))
def test_any_bytes_parse_or_are_refused(tail: bytes) -> None:
    KEYS.parse(KEYS.prefix + tail)


def test_a_key_of_another_volume_does_not_parse() -> None:
    assert KEYS.parse(Keys("default2").superblock) is None
    assert KEYS.parse(b"") is None


def test_no_file_name_meets_a_companion_key() -> None:
    parsed = KEYS.parse(KEYS.dentry(Ino(1), b".meta"))
    assert parsed == ParsedKey("D", 1, b".meta")


@given(first=st.tuples(INOS, U64), second=st.tuples(INOS, U64))
def test_chunk_keys_sort_by_inode_and_index(
    first: tuple[Ino, int], second: tuple[Ino, int]
) -> None:
    assert (first < second) == (KEYS.chunk(*first) < KEYS.chunk(*second))


@given(ino=INOS, other=INOS, name=NAMES, index=U64)
def test_a_range_holds_the_keys_of_its_inode_only(
    ino: Ino, other: Ino, name: bytes, index: int
) -> None:
    for prefix, key in (
        (KEYS.dentries(ino), KEYS.dentry(other, name)),
        (KEYS.xattrs(ino), KEYS.xattr(other, name)),
        (KEYS.chunks(ino), KEYS.chunk(other, index)),
        (KEYS.locks_of_all(ino), KEYS.locks(other, SessionId(index))),
    ):
        assert (prefix <= key < range_end(prefix)) == (ino == other)


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        (KEYS.inodes(), KEYS.times(Ino(2**64 - 1))),
        (KEYS.orphans(), KEYS.orphan(Ino(2**64 - 1))),
        (KEYS.usages(), KEYS.usage_inodes(SessionId(2**64 - 1))),
        (KEYS.sessions(), KEYS.session(SessionId(2**64 - 1))),
        (KEYS.prefix, KEYS.xattr(Ino(2**64 - 1), b"\xff" * 255)),
    ],
)
def test_a_range_of_a_kind_holds_its_last_key(prefix: bytes, key: bytes) -> None:
    assert prefix <= key < range_end(prefix)


@given(prefix=st.binary(min_size=1).filter(lambda value: value.strip(b"\xff")), tail=st.binary())
def test_a_range_ends_after_the_last_key_with_its_prefix(prefix: bytes, tail: bytes) -> None:
    end = range_end(prefix)
    assert prefix + tail < end
    assert not end.startswith(prefix)
    assert len(end) <= len(prefix)


def test_the_end_of_a_range_carries_over_0xff() -> None:
    assert range_end(b"a\xff\xff") == b"b"


@given(ino=INOS, name=NAMES)
def test_the_inode_of_a_times_key(ino: Ino, name: bytes) -> None:
    assert KEYS.inode_of_times(KEYS.times(ino)) == KEYS.inode(ino)
    for key in (KEYS.inode(ino), KEYS.dentry(ino, name), KEYS.dentry(ino, b".meta")):
        assert KEYS.inode_of_times(key) == key


def test_a_prefix_names_its_volume() -> None:
    assert volume_of_prefix(Keys("photos").prefix) == "photos"
    assert volume_of_prefix(b"fs:") is None
    assert volume_of_prefix(b"") is None


@pytest.mark.parametrize("prefix", [b"fs:photos", b"app:", b"fs::", b"fs:\xff:", b"fs:a:b"])
def test_a_prefix_of_no_volume_is_refused(prefix: bytes) -> None:
    with pytest.raises(VolumeError):
        volume_of_prefix(prefix)
