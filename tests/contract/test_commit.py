"""The rules of ``commit``: checks, atomicity, revisions, and limits."""

from __future__ import annotations

import pytest

from aspenkv import limits
from aspenkv.contract import (
    ABSENT,
    Add,
    Check,
    CommitResult,
    Copy,
    Delete,
    DeleteRange,
    KeyValue,
    Op,
    Patch,
    Put,
    RangeEmpty,
    RevisionIs,
)
from aspenkv.errors import (
    CommitTooLargeError,
    InvalidRequestError,
    KeyTooLargeError,
    ValueTooLargeError,
)

LONG_KEY = b"k" * limits.KEY_BYTES_MAX
LARGE = b"v" * limits.VALUE_BYTES_MAX


def shown(part: object) -> str:
    """Name a check, an operation or an error in a test's id, without its large values."""
    if isinstance(part, type):
        return part.__name__
    fields = part if isinstance(part, tuple) else ()
    sizes = [str(len(field) if isinstance(field, bytes) else field)[:8] for field in fields]
    return "-".join((type(part).__name__, *sizes))


async def values(kv: KeyValue, *keys: bytes) -> list[bytes | None]:
    return [None if found is None else found.value for found in await kv.get(keys)]


async def test_raises_the_revision_by_one_each_time(kv: KeyValue) -> None:
    assert await kv.revision() == 0
    for revision in (1, 2, 3):
        assert await kv.commit([], [Put(b"key", b"%d" % revision)]) == CommitResult(revision, None)
        assert await kv.revision() == revision


async def test_raises_the_revision_even_if_nothing_was_there_to_change(kv: KeyValue) -> None:
    assert await kv.commit([], [Delete(b"absent"), DeleteRange(b"a", b"z")]) == (1, None)


async def test_without_operations_only_checks(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"key", b"")])
    assert await kv.commit([RevisionIs(b"key", 1)], []) == (1, None)
    assert await kv.commit([RevisionIs(b"key", 2)], []) == (1, 0)
    assert await kv.commit([], []) == (1, None)


async def test_all_keys_of_a_commit_get_its_revision(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"old", b"")])
    await kv.commit([], [Put(b"a", b""), Patch(b"b", 0, b"x"), Add(b"c", 1)])
    found = await kv.get([b"old", b"a", b"b", b"c"])
    assert [each and each.revision for each in found] == [1, 2, 2, 2]


async def test_revision_check(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"key", b"1")])
    assert await kv.commit([RevisionIs(b"key", ABSENT)], [Put(b"key", b"2")]) == (1, 0)
    assert await kv.commit([RevisionIs(b"key", 2)], [Put(b"key", b"2")]) == (1, 0)
    assert await values(kv, b"key") == [b"1"]
    assert await kv.commit([RevisionIs(b"key", 1)], [Put(b"key", b"2")]) == (2, None)
    assert await kv.commit([RevisionIs(b"key", 1)], [Put(b"key", b"3")]) == (2, 0)
    assert await values(kv, b"key") == [b"2"]


async def test_absence_check(kv: KeyValue) -> None:
    assert await kv.commit([RevisionIs(b"key", ABSENT)], [Put(b"key", b"1")]) == (1, None)
    assert await kv.commit([RevisionIs(b"key", ABSENT)], [Put(b"key", b"2")]) == (1, 0)
    await kv.commit([], [Delete(b"key")])
    assert await kv.commit([RevisionIs(b"key", 1)], [Put(b"key", b"3")]) == (2, 0)
    assert await kv.commit([RevisionIs(b"key", ABSENT)], [Put(b"key", b"3")]) == (3, None)


async def test_a_key_written_anew_has_a_new_revision(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"key", b"same")])
    await kv.commit([], [Delete(b"key")])
    await kv.commit([], [Put(b"key", b"same")])
    assert await kv.commit([RevisionIs(b"key", 1)], [Delete(b"key")]) == (3, 0)


@pytest.mark.parametrize(
    ("bounds", "empty"),
    [
        ((b"a", b"m"), True),
        ((b"a", b"m\0"), False),
        ((b"m", b"n"), False),
        ((b"m\0", b"z"), True),
        ((b"m", b"m"), True),
        ((b"", b"\xff"), False),
    ],
)
async def test_range_check(kv: KeyValue, bounds: tuple[bytes, bytes], empty: bool) -> None:
    await kv.commit([], [Put(b"m", b"")])
    result = await kv.commit([RangeEmpty(*bounds)], [Put(b"new", b"")])
    assert result == ((2, None) if empty else (1, 0))


async def test_range_check_steps_over_deleted_keys(kv: KeyValue) -> None:
    count = 2 * limits.INLINE_SKIPS_MAX
    for at in range(0, count, limits.COMMIT_OPS_MAX):
        keys = [b"dir/%05d" % index for index in range(at, at + limits.COMMIT_OPS_MAX)]
        await kv.commit([], [Put(key, b"") for key in keys])
        await kv.commit([], [Delete(key) for key in keys])
    result = await kv.commit([RangeEmpty(b"dir/", b"dir0")], [Delete(b"dir")])
    assert result.failed_check is None
    await kv.commit([], [Put(b"dir/x", b"")])
    result = await kv.commit([RangeEmpty(b"dir/", b"dir0")], [Delete(b"dir")])
    assert result.failed_check == 0


async def test_reports_the_first_check_that_failed(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"key", b"")])
    checks: list[Check] = [
        RevisionIs(b"key", 1),
        RangeEmpty(b"x", b"y"),
        RevisionIs(b"key", 7),
        RangeEmpty(b"a", b"z"),
    ]
    assert await kv.commit(checks, [Delete(b"key")]) == (1, 2)


async def test_checks_see_the_state_before_the_operations(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"old", b"")])
    checks: list[Check] = [
        RevisionIs(b"new", ABSENT),
        RevisionIs(b"old", 1),
        RangeEmpty(b"n", b"o"),
    ]
    assert await kv.commit(checks, [Put(b"new", b""), Delete(b"old")]) == (2, None)


async def test_a_failed_check_leaves_everything_as_it_was(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"a", b"1"), Put(b"big", LARGE[:9000])])
    ops: list[Op] = [
        Put(b"a", b"2"),
        Patch(b"big", 0, b"x"),
        Put(b"new", b""),
        Add(b"count", 1),
        DeleteRange(b"a", b"z"),
    ]
    assert await kv.commit([RevisionIs(b"a", 1), RevisionIs(b"a", 9)], ops) == (1, 1)
    assert await values(kv, b"a", b"big", b"new", b"count") == [b"1", LARGE[:9000], None, None]
    assert await kv.revision() == 1


async def test_an_error_in_the_last_operation_undoes_the_others(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"a", b"1"), Put(b"b", b"2"), Put(b"text", b"no counter")])
    ops: list[Op] = [
        Put(b"a", b"changed"),
        Put(b"a", b"changed again"),
        Delete(b"b"),
        Put(b"new", LARGE[:9000]),
        Patch(b"text", 0, b"N"),
        Add(b"text", 1),
    ]
    with pytest.raises(InvalidRequestError, match="not a counter"):
        await kv.commit([], ops)
    assert await values(kv, b"a", b"b", b"new", b"text") == [b"1", b"2", None, b"no counter"]
    assert await kv.revision() == 1
    assert await kv.commit([RevisionIs(b"a", 1)], [Put(b"a", b"3")]) == (2, None)


async def test_two_clients_cannot_both_create_a_key(kv: KeyValue, other: KeyValue) -> None:
    results = [
        await client.commit([RevisionIs(b"key", ABSENT)], [Put(b"key", b"")])
        for client in (kv, other)
    ]
    assert [result.failed_check for result in results] == [None, 0]


# --- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [
        Put(LONG_KEY, LARGE),
        Put(b"key", memoryview(LARGE)),
        Delete(LONG_KEY),
        DeleteRange(LONG_KEY, LONG_KEY + b"k"),
        DeleteRange(b"", b"\xff" * limits.RANGE_BOUND_BYTES_MAX),
        Patch(LONG_KEY, 0, LARGE),
        Patch(b"key", limits.VALUE_BYTES_MAX - 1, b"x"),
        Patch(b"key", limits.VALUE_BYTES_MAX, b""),
        Patch(b"key", 0, b"", limits.VALUE_BYTES_MAX + 1),
        Add(LONG_KEY, limits.COUNTER_MIN),
        Copy(LONG_KEY, LONG_KEY),
        Add(b"key", limits.COUNTER_MAX),
    ],
    ids=shown,
)
async def test_accepts_an_operation_at_its_limit(kv: KeyValue, op: Op) -> None:
    assert await kv.commit([], [op]) == (1, None)


@pytest.mark.parametrize(
    ("part", "error"),
    [
        (Put(b"", b""), KeyTooLargeError),
        (Put(LONG_KEY + b"k", b""), KeyTooLargeError),
        (Put(b"key", LARGE + b"v"), ValueTooLargeError),
        (Delete(b""), KeyTooLargeError),
        (Delete(LONG_KEY + b"k"), KeyTooLargeError),
        (DeleteRange(b"a", LONG_KEY + b"kk"), KeyTooLargeError),
        (DeleteRange(LONG_KEY + b"kk", b"z"), KeyTooLargeError),
        (DeleteRange(b"b", b"a"), InvalidRequestError),
        (Patch(b"", 0, b""), KeyTooLargeError),
        (Patch(LONG_KEY + b"k", 0, b""), KeyTooLargeError),
        (Patch(b"key", 0, LARGE + b"v"), ValueTooLargeError),
        (Patch(b"key", limits.VALUE_BYTES_MAX, b"x"), ValueTooLargeError),
        (Patch(b"key", limits.VALUE_BYTES_MAX, b"x", 0), ValueTooLargeError),
        (Patch(b"key", -1, b"x"), InvalidRequestError),
        (Patch(b"key", 0, b"x", -1), InvalidRequestError),
        (Add(b"", 1), KeyTooLargeError),
        (Copy(b"", b"a"), KeyTooLargeError),
        (Copy(b"a", b""), KeyTooLargeError),
        (Copy(b"a", LONG_KEY + b"k"), KeyTooLargeError),
        (Add(LONG_KEY + b"k", 1), KeyTooLargeError),
        (Add(b"key", limits.COUNTER_MAX + 1), InvalidRequestError),
        (Add(b"key", limits.COUNTER_MIN - 1), InvalidRequestError),
        (RevisionIs(b"key", 0), InvalidRequestError),
    ],
    ids=shown,
)
async def test_refuses_an_operation_beyond_its_limit(
    kv: KeyValue, part: Op, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await kv.commit([], [Put(b"before", b""), part])
    assert await kv.revision() == 0
    assert await values(kv, b"before") == [None]


@pytest.mark.parametrize(
    ("check", "error"),
    [
        (RevisionIs(b"", 0), KeyTooLargeError),
        (RevisionIs(LONG_KEY + b"k", 0), KeyTooLargeError),
        (RangeEmpty(b"b", b"a"), InvalidRequestError),
        (RangeEmpty(b"a", LONG_KEY + b"kk"), KeyTooLargeError),
        (Put(b"key", b""), InvalidRequestError),
    ],
    ids=shown,
)
async def test_refuses_a_check_beyond_its_limit(
    kv: KeyValue, check: Check, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await kv.commit([check], [Put(b"key", b"")])
    assert await kv.revision() == 0


async def test_accepts_as_many_parts_as_the_limits_allow(kv: KeyValue) -> None:
    checks = [RevisionIs(b"%d" % index, ABSENT) for index in range(limits.COMMIT_CHECKS_MAX)]
    ops = [Put(b"%d" % index, b"") for index in range(limits.COMMIT_OPS_MAX)]
    assert await kv.commit(checks, ops) == (1, None)


@pytest.mark.parametrize("more", ["checks", "ops"])
async def test_refuses_one_part_more(kv: KeyValue, more: str) -> None:
    checks = [RevisionIs(b"key", ABSENT)] * (limits.COMMIT_CHECKS_MAX + (more == "checks"))
    ops = [Put(b"key", b"")] * (limits.COMMIT_OPS_MAX + (more == "ops"))
    with pytest.raises(CommitTooLargeError):
        await kv.commit(checks, ops)
    assert await kv.revision() == 0


async def test_refuses_one_byte_more_in_all(kv: KeyValue) -> None:
    rest = limits.COMMIT_BYTES_MAX - (1 + limits.VALUE_BYTES_MAX) - 1
    fits: list[Op] = [Put(b"a", LARGE), Put(b"b", b"v" * rest)]
    with pytest.raises(CommitTooLargeError):
        await kv.commit([RevisionIs(b"c", ABSENT)], fits)
    assert await kv.revision() == 0
    assert await kv.commit([], fits) == (1, None)
