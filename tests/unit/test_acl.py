from __future__ import annotations

import errno
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenfs import acl
from aspenfs.acl import Acl, Entry
from aspenfs.errors import FilesystemError

PERMS = st.integers(0, 7)
IDS = st.integers(0, 2**32 - 2)
MODES = st.integers(0, 0o7777).map(lambda bits: stat.S_IFREG | bits)

MINIMAL: Acl = (Entry(acl.USER_OBJ, 6), Entry(acl.GROUP_OBJ, 4), Entry(acl.OTHER, 0))
EXTENDED: Acl = (
    Entry(acl.USER_OBJ, 7),
    Entry(acl.USER, 6, 1000),
    Entry(acl.GROUP_OBJ, 5),
    Entry(acl.GROUP, 4, 100),
    Entry(acl.MASK, 6),
    Entry(acl.OTHER, 1),
)
# Taken from getfattr after `setfacl -m u:1000:rw,g:100:r,m:rw` on a file of mode 0751.
EXTENDED_HEX = (
    "02000000"
    "01000700ffffffff"
    "02000600e8030000"
    "04000500ffffffff"
    "0800040064000000"
    "10000600ffffffff"
    "20000100ffffffff"
)


@st.composite
def acls(draw: st.DrawFn) -> Acl:
    users = draw(st.lists(st.builds(Entry, st.just(acl.USER), PERMS, IDS), max_size=3))
    groups = draw(st.lists(st.builds(Entry, st.just(acl.GROUP), PERMS, IDS), max_size=3))
    has_mask = bool(users or groups) or draw(st.booleans())
    return (
        Entry(acl.USER_OBJ, draw(PERMS)),
        *users,
        Entry(acl.GROUP_OBJ, draw(PERMS)),
        *groups,
        *([Entry(acl.MASK, draw(PERMS))] if has_mask else []),
        Entry(acl.OTHER, draw(PERMS)),
    )


def errno_of_parse(value: bytes) -> int:
    with pytest.raises(FilesystemError) as caught:
        acl.parse(value)
    return caught.value.errno


@given(entries=acls())
def test_an_acl_round_trips(entries: Acl) -> None:
    assert acl.parse(acl.encode(entries)) == entries


def test_the_bytes_are_those_of_linux() -> None:
    assert acl.encode(EXTENDED).hex() == EXTENDED_HEX
    assert acl.parse(bytes.fromhex(EXTENDED_HEX)) == EXTENDED


def test_a_header_alone_is_no_acl() -> None:
    assert acl.parse(acl.encode(())) == ()


def test_the_id_of_an_entry_that_names_nobody_is_ignored() -> None:
    value = acl.encode([entry._replace(id=5) for entry in MINIMAL])
    assert acl.parse(value) == MINIMAL


@pytest.mark.parametrize("value", [b"", b"\x02\x00\x00", acl.encode(MINIMAL)[:-1]])
def test_a_cut_value_is_invalid(value: bytes) -> None:
    assert errno_of_parse(value) == errno.EINVAL


@pytest.mark.parametrize("version", [0, 1, 3])
def test_another_version_is_not_supported(version: int) -> None:
    value = version.to_bytes(4, "little") + acl.encode(MINIMAL)[4:]
    assert errno_of_parse(value) == errno.EOPNOTSUPP


OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHER = EXTENDED


@pytest.mark.parametrize(
    "entries",
    [
        [OWNER],
        [OWNER, OWNING_GROUP],
        [OWNING_GROUP, OTHER],
        [OWNER, OTHER],
        [OWNER, OWNER, OWNING_GROUP, OTHER],
        [OWNER, OWNING_GROUP, OWNING_GROUP, OTHER],
        [OWNER, OWNING_GROUP, OTHER, OTHER],
        [OWNER, OWNING_GROUP, OTHER, MASK],
        [OWNER, OWNING_GROUP, MASK, MASK, OTHER],
        [OWNER, USER, OWNING_GROUP, OTHER],
        [OWNER, OWNING_GROUP, GROUP, OTHER],
        [USER, OWNER, OWNING_GROUP, MASK, OTHER],
        [OWNER, OWNING_GROUP, USER, MASK, OTHER],
        [OWNER, GROUP, OWNING_GROUP, MASK, OTHER],
        [OWNER, OWNING_GROUP, MASK, GROUP, OTHER],
        [OWNER, OWNING_GROUP, Entry(0x40, 7), OTHER],
        [OWNER, OWNING_GROUP, Entry(0x101, 7), OTHER],
        [OWNER, OWNING_GROUP, Entry(acl.OTHER, 8)],
        [OWNER, Entry(acl.USER, 7), OWNING_GROUP, MASK, OTHER],
        [OWNER, OWNING_GROUP, Entry(acl.GROUP, 7), MASK, OTHER],
    ],
)
def test_what_posix_acl_valid_refuses_is_invalid(entries: list[Entry]) -> None:
    assert errno_of_parse(acl.encode(entries)) == errno.EINVAL


@given(value=st.binary(max_size=60))
def test_any_bytes_parse_or_are_refused(value: bytes) -> None:
    for candidate in (value, b"\x02\x00\x00\x00" + value):
        try:
            parsed = acl.parse(candidate)
        except FilesystemError as error:
            assert error.errno in (errno.EINVAL, errno.EOPNOTSUPP)  # noqa: PT017
        else:
            assert acl.parse(acl.encode(parsed)) == parsed


def test_the_group_bits_of_the_mode_show_the_mask() -> None:
    assert acl.mode_from_acl(MINIMAL, stat.S_IFREG | 0o4777) == stat.S_IFREG | 0o4640
    assert acl.mode_from_acl(EXTENDED, stat.S_IFDIR | 0o1000) == stat.S_IFDIR | 0o1761


@given(entries=acls())
def test_only_an_acl_of_three_entries_is_equivalent_to_a_mode(entries: Acl) -> None:
    assert acl.equivalent_to_mode(entries) == (len(entries) == 3)


def test_chmod_changes_the_mask_and_not_the_owning_group() -> None:
    assert acl.chmod(EXTENDED, 0o4070) == (
        Entry(acl.USER_OBJ, 0),
        USER,
        OWNING_GROUP,
        GROUP,
        Entry(acl.MASK, 7),
        Entry(acl.OTHER, 0),
    )
    assert acl.chmod(MINIMAL, 0o123) == (
        Entry(acl.USER_OBJ, 1),
        Entry(acl.GROUP_OBJ, 2),
        Entry(acl.OTHER, 3),
    )


@given(entries=acls(), mode=MODES)
def test_after_chmod_the_acl_and_the_mode_agree(entries: Acl, mode: int) -> None:
    changed = acl.chmod(entries, mode)
    assert acl.mode_from_acl(changed, mode) == mode
    assert acl.parse(acl.encode(changed)) == changed


def test_a_new_file_gets_what_both_the_default_acl_and_the_mode_allow() -> None:
    inherited, mode = acl.inherit(EXTENDED, stat.S_IFREG | 0o640)
    assert mode == stat.S_IFREG | 0o640
    assert inherited == (
        Entry(acl.USER_OBJ, 6),
        USER,
        OWNING_GROUP,
        GROUP,
        Entry(acl.MASK, 4),
        Entry(acl.OTHER, 0),
    )


def test_a_default_acl_that_is_a_mode_leaves_no_acl() -> None:
    assert acl.inherit(MINIMAL, stat.S_IFREG | 0o2776) == (None, stat.S_IFREG | 0o2640)


@given(default=acls(), mode=MODES)
def test_an_inherited_acl_agrees_with_the_mode_and_allows_no_more(default: Acl, mode: int) -> None:
    inherited, new_mode = acl.inherit(default, mode)
    assert new_mode & ~0o777 == mode & ~0o777
    assert new_mode & ~mode == 0
    assert new_mode == mode & acl.mode_from_acl(default, mode)
    if inherited is None:
        assert acl.equivalent_to_mode(default)
    else:
        assert acl.mode_from_acl(inherited, new_mode) == new_mode
        for before, after in zip(default, inherited, strict=True):
            assert (after.tag, after.id) == (before.tag, before.id)
            assert after.perm & ~before.perm == 0
