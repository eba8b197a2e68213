"""The bounds of a grant, for every key and range."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenkv.access import Access, Grant
from aspenkv.contract import (
    Add,
    Check,
    Copy,
    Delete,
    DeleteRange,
    Op,
    Patch,
    Put,
    RangeEmpty,
    RevisionIs,
)
from aspenkv.errors import AccessDeniedError
from aspenkv.ranges import prefix_end

PREFIX = b"fs:a:"
END = b"fs:a;"
VOLUME = Access(Grant(PREFIX, can_write=True, is_admin=False))
READER = Access(Grant(PREFIX, can_write=False, is_admin=False))
ADMIN = Access(Grant(b"", can_write=True, is_admin=True))

INSIDE = (PREFIX, b"fs:a:key", PREFIX + b"\xff" * 20)
OUTSIDE = (b"", b"f", b"fs:", b"fs:a", b"fs:a;", b"fs:A:key", b"fs:b:key", b"\xff", b"fs:ab:key")
RANGES_INSIDE = ((PREFIX, END), (PREFIX, PREFIX), (END, END), (b"fs:a:x", b"fs:a:y"))
RANGES_OUTSIDE = (
    (b"", END),
    (b"fs:a", END),
    (PREFIX, END + b"\0"),
    (PREFIX, b"\xff"),
    (b"fs:b:", b"fs:b:x"),
    (b"", b""),
    (b"\xff", b"\xff"),
)

key_parts: list[Callable[[bytes], tuple[list[Check], list[Op]]]] = [
    lambda key: ([RevisionIs(key, 0)], []),
    lambda key: ([], [Put(key, b"")]),
    lambda key: ([], [Delete(key)]),
    lambda key: ([], [Patch(key, 0, b"")]),
    lambda key: ([], [Add(key, 1)]),
    lambda key: ([], [Copy(key, PREFIX)]),
    lambda key: ([], [Copy(PREFIX, key)]),
    lambda key: ([], [Put(PREFIX, b""), Put(key, b"")]),
]
range_parts: list[Callable[[bytes, bytes], tuple[list[Check], list[Op]]]] = [
    lambda start, end: ([RangeEmpty(start, end)], []),
    lambda start, end: ([], [DeleteRange(start, end)]),
]


def denied(call: Callable[[], None]) -> bool:
    try:
        call()
    except AccessDeniedError:
        return True
    return False


def test_keys_and_watches() -> None:
    for key in INSIDE:
        VOLUME.check_keys([key])
        VOLUME.check_watch(key)
    for key in OUTSIDE:
        assert denied(lambda key=key: VOLUME.check_keys([PREFIX, key]))  # type: ignore[misc]
        assert denied(lambda key=key: VOLUME.check_watch(key))  # type: ignore[misc]


def test_ranges() -> None:
    for bounds in RANGES_INSIDE:
        VOLUME.check_range(*bounds)
    for bounds in RANGES_OUTSIDE:
        assert denied(lambda bounds=bounds: VOLUME.check_range(*bounds))  # type: ignore[misc]


@pytest.mark.parametrize("parts", key_parts)
def test_each_part_of_a_commit_with_a_key(
    parts: Callable[[bytes], tuple[list[Check], list[Op]]],
) -> None:
    for key in INSIDE:
        VOLUME.check_commit(*parts(key))
    for key in OUTSIDE:
        assert denied(lambda key=key: VOLUME.check_commit(*parts(key)))  # type: ignore[misc]


@pytest.mark.parametrize("parts", range_parts)
def test_each_part_of_a_commit_with_a_range(
    parts: Callable[[bytes, bytes], tuple[list[Check], list[Op]]],
) -> None:
    for bounds in RANGES_INSIDE:
        VOLUME.check_commit(*parts(*bounds))
    for bounds in RANGES_OUTSIDE:
        assert denied(lambda bounds=bounds: VOLUME.check_commit(*parts(*bounds)))  # type: ignore[misc]


def test_who_may_only_read_commits_nothing() -> None:
    READER.check_keys([PREFIX])
    for call in (READER.check_write, lambda: READER.check_commit([], [])):
        with pytest.raises(AccessDeniedError, match="read-only"):
            call()


def test_an_administrator_may_do_all() -> None:
    ADMIN.check_keys(OUTSIDE)
    ADMIN.check_range(b"", b"\xff" * 100)
    ADMIN.check_watch(b"")
    ADMIN.check_commit([RangeEmpty(b"", b"\xff")], [Put(b"anything", b"")])
    ADMIN.check_admin()


@pytest.mark.parametrize("access", [VOLUME, READER])
def test_nobody_else_manages_tickets(access: Access) -> None:
    with pytest.raises(AccessDeniedError, match="administrator"):
        access.check_admin()


def test_an_error_is_the_same_for_what_exists_and_what_does_not() -> None:
    messages = set()
    for key in OUTSIDE:
        with pytest.raises(AccessDeniedError) as caught:
            VOLUME.check_keys([key])
        messages.add(str(caught.value))
    assert len(messages) == 1


short = st.binary(max_size=3).map(lambda key: key.translate(bytes((0, 1, 254, 255)) * 64))


@given(short, short)
def test_the_end_of_a_prefix_parts_what_starts_with_it(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    assert key.startswith(prefix) == (key >= prefix and (end is None or key < end))


@given(short, short, short, short)
def test_no_range_that_is_allowed_holds_a_foreign_key(
    prefix: bytes, start: bytes, end: bytes, key: bytes
) -> None:
    access = Access(Grant(prefix, can_write=True, is_admin=False))
    if start <= key < end and not denied(lambda: access.check_range(start, end)):
        assert key.startswith(prefix)
