"""The rules of ``scan``: order, bounds, pages and their continuations."""

from __future__ import annotations

import pytest

from aspenkv import limits
from aspenkv.contract import Delete, DeleteRange, KeyValue, Put, Record
from aspenkv.errors import InvalidRequestError, KeyTooLargeError

FIRST = b"\0"
LAST = b"\xff" * limits.RANGE_BOUND_BYTES_MAX
ORDERED = [b"\0", b"\0\0", b"\0\xff", b"a", b"a\0", b"aa", b"b", b"\xff", b"\xff\0", b"\xff\xff"]


async def put_all(kv: KeyValue, keys: list[bytes], value: bytes = b"value") -> None:
    for at in range(0, len(keys), limits.COMMIT_OPS_MAX):
        await kv.commit([], [Put(key, value) for key in keys[at : at + limits.COMMIT_OPS_MAX]])


async def pages(
    kv: KeyValue,
    *,
    limit: int,
    start: bytes = FIRST,
    end: bytes = LAST,
    keys_only: bool = False,
    reverse: bool = False,
) -> list[list[Record]]:
    """Follow the continuations to the end."""
    found: list[list[Record]] = []
    continuation = None
    while True:
        page = await kv.scan(
            start,
            end,
            limit=limit,
            keys_only=keys_only,
            reverse=reverse,
            continuation=continuation,
        )
        found.append(page.records)
        assert len(found) < 10_000
        if page.continuation is None:
            return found
        continuation = page.continuation


def keys_of(found: list[list[Record]]) -> list[bytes]:
    return [record.key for page in found for record in page]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 9, 10, 11, 1000])
async def test_returns_keys_in_byte_order_whatever_the_page_size(
    kv: KeyValue, limit: int, reverse: bool
) -> None:
    await put_all(kv, ORDERED[::2] + ORDERED[1::2])
    found = await pages(kv, limit=limit, reverse=reverse)
    assert keys_of(found) == (ORDERED[::-1] if reverse else ORDERED)
    assert all(len(page) <= limit for page in found)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [5, 10])
async def test_a_page_that_reaches_the_end_has_no_continuation(
    kv: KeyValue, limit: int, reverse: bool
) -> None:
    await put_all(kv, ORDERED)
    assert [len(page) for page in await pages(kv, limit=limit, reverse=reverse)] == (
        [limit] * (10 // limit)
    )


@pytest.mark.parametrize("reverse", [False, True])
async def test_start_is_included_and_end_is_not(kv: KeyValue, reverse: bool) -> None:
    await put_all(kv, [b"a", b"b", b"b\0", b"c", b"c\0"])
    page = await kv.scan(b"b", b"c", limit=10, reverse=reverse)
    assert [record.key for record in page.records] == (
        [b"b\0", b"b"] if reverse else [b"b", b"b\0"]
    )
    assert page.continuation is None


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bounds", [(b"b", b"b"), (b"", b""), (b"m", b"n"), (b"", b"\0")])
async def test_a_range_without_keys_is_an_empty_page(
    kv: KeyValue, bounds: tuple[bytes, bytes], reverse: bool
) -> None:
    await put_all(kv, [b"a", b"b", b"z"])
    page = await kv.scan(*bounds, limit=10, reverse=reverse)
    assert page == ([], None)


@pytest.mark.parametrize("reverse", [False, True])
async def test_an_empty_start_is_the_first_key_of_all(kv: KeyValue, reverse: bool) -> None:
    await put_all(kv, ORDERED)
    page = await kv.scan(b"", LAST, limit=100, reverse=reverse)
    assert len(page.records) == len(ORDERED)


async def test_records_carry_value_and_revision(kv: KeyValue) -> None:
    first = (await kv.commit([], [Put(b"a", b"1"), Put(b"b", b"x" * 70_000)])).revision
    second = (await kv.commit([], [Put(b"c", b"")])).revision
    page = await kv.scan(FIRST, LAST, limit=10)
    assert page.records == [
        Record(b"a", b"1", first),
        Record(b"b", b"x" * 70_000, first),
        Record(b"c", b"", second),
    ]


@pytest.mark.parametrize("reverse", [False, True])
async def test_keys_only_leaves_out_the_values_but_not_the_revisions(
    kv: KeyValue, reverse: bool
) -> None:
    first = (await kv.commit([], [Put(b"a", b"1")])).revision
    second = (await kv.commit([], [Put(b"b", b"x" * 70_000)])).revision
    page = await kv.scan(FIRST, LAST, limit=10, keys_only=True, reverse=reverse)
    expected = [Record(b"a", b"", first), Record(b"b", b"", second)]
    assert page.records == (expected[::-1] if reverse else expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("keys_only", [False, True])
async def test_a_page_is_bounded_in_entries(kv: KeyValue, keys_only: bool, reverse: bool) -> None:
    keys = [b"%05d" % index for index in range(limits.SCAN_ENTRIES_MAX + 7)]
    await put_all(kv, keys)
    found = await pages(kv, limit=10**9, keys_only=keys_only, reverse=reverse)
    assert [len(page) for page in found] == [limits.SCAN_ENTRIES_MAX, 7]
    assert keys_of(found) == (keys[::-1] if reverse else keys)


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_page_is_bounded_in_bytes(kv: KeyValue, reverse: bool) -> None:
    value = b"v" * (limits.SCAN_BYTES_MAX // 4)
    keys = [b"%d" % index for index in range(9)]
    for key in keys:
        await kv.commit([], [Put(key, value)])
    found = await pages(kv, limit=100, reverse=reverse)
    # The fourth record reaches the bound, since keys count too.
    assert [len(page) for page in found] == [4, 4, 1]
    assert keys_of(found) == (keys[::-1] if reverse else keys)


@pytest.mark.parametrize("reverse", [False, True])
async def test_the_largest_records_come_one_a_page(kv: KeyValue, reverse: bool) -> None:
    keys = [bytes((index,)) * limits.KEY_BYTES_MAX for index in (1, 2, 255)]
    for key in keys:
        await kv.commit([], [Put(key, b"v" * limits.VALUE_BYTES_MAX)])
    found = await pages(kv, limit=100, reverse=reverse)
    assert [len(page) for page in found] == [1, 1, 1]
    assert keys_of(found) == (keys[::-1] if reverse else keys)


async def test_keys_only_pages_are_not_bounded_by_the_values(kv: KeyValue) -> None:
    for index in range(3):
        await kv.commit([], [Put(b"%d" % index, b"v" * limits.VALUE_BYTES_MAX)])
    page = await kv.scan(FIRST, LAST, limit=100, keys_only=True)
    assert len(page.records) == 3
    assert page.continuation is None


async def test_pages_neither_skip_nor_repeat_while_others_delete_and_insert(
    kv: KeyValue, other: KeyValue
) -> None:
    await put_all(kv, [b"%02d" % index for index in range(30)])
    seen: list[bytes] = []
    continuation = None
    while True:
        page = await kv.scan(FIRST, LAST, limit=3, continuation=continuation)
        seen += [record.key for record in page.records]
        if page.continuation is None:
            break
        continuation = page.continuation
        await other.commit([], [Delete(page.records[-1].key), Put(b"0", b"behind")])
    assert seen == [b"%02d" % index for index in range(30)]


async def test_steps_over_many_deleted_keys(kv: KeyValue) -> None:
    count = 2 * limits.INLINE_SKIPS_MAX
    keys = [b"%05d" % index for index in range(count)]
    await put_all(kv, [*keys, b"z"])
    for at in range(0, count, limits.COMMIT_OPS_MAX):
        await kv.commit([], [Delete(key) for key in keys[at : at + limits.COMMIT_OPS_MAX]])
    assert [record.key for record in (await kv.scan(FIRST, LAST, limit=1)).records] == [b"z"]
    page = await kv.scan(FIRST, b"z", limit=1, reverse=True)
    assert page == ([], None)


async def test_steps_over_a_deleted_range(kv: KeyValue) -> None:
    await put_all(kv, [b"%05d" % index for index in range(5000)])
    await kv.commit([], [DeleteRange(b"00001", b"04999")])
    assert keys_of(await pages(kv, limit=1)) == [b"00000", b"04999"]
    assert keys_of(await pages(kv, limit=1, reverse=True)) == [b"04999", b"00000"]


@pytest.mark.parametrize("limit", [0, -1])
async def test_refuses_a_limit_below_one(kv: KeyValue, limit: int) -> None:
    with pytest.raises(InvalidRequestError, match="limit"):
        await kv.scan(FIRST, LAST, limit=limit)


async def test_refuses_bounds_in_the_wrong_order(kv: KeyValue) -> None:
    with pytest.raises(InvalidRequestError, match="ends before it starts"):
        await kv.scan(b"b", b"a", limit=1)


async def test_refuses_a_bound_two_bytes_longer_than_a_key(kv: KeyValue) -> None:
    with pytest.raises(KeyTooLargeError):
        await kv.scan(FIRST, LAST + b"\xff", limit=1)


@pytest.mark.parametrize("reverse", [False, True])
async def test_refuses_a_continuation_of_another_scan(kv: KeyValue, reverse: bool) -> None:
    with pytest.raises(InvalidRequestError, match="another scan"):
        await kv.scan(b"b", b"c", limit=1, continuation=b"a", reverse=reverse)
