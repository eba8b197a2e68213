"""What each operation does to a value, and that it sees those before it in the same commit."""

from __future__ import annotations

import struct

import pytest

from aspenkv import limits
from aspenkv.contract import Add, Delete, DeleteRange, KeyValue, Op, Patch, Put
from aspenkv.errors import InvalidRequestError
from tests.contract.carriers import CARRIERS

BIG = bytes(range(256)) * 300
"""Of a size that the rocksdb engine keeps apart from its record."""


RANGE_COUNTS = [
    3,
    limits.INLINE_RANGE_DELETE_KEYS_MAX,
    limits.INLINE_RANGE_DELETE_KEYS_MAX + 1,
    limits.RANGE_DELETE_KEYS_MAX,
    limits.RANGE_DELETE_KEYS_MAX + 1,
]
"""The rocksdb engine deletes few keys inline, more in a thread, and many as a range."""


def counter(value: int) -> bytes:
    return struct.pack("<q", value)


async def value(kv: KeyValue, key: bytes = b"key") -> bytes | None:
    (found,) = await kv.get([key])
    return None if found is None else found.value


async def put_all(kv: KeyValue, puts: list[Put]) -> None:
    for at in range(0, len(puts), limits.COMMIT_OPS_MAX):
        await kv.commit([], puts[at : at + limits.COMMIT_OPS_MAX])


async def keys(kv: KeyValue) -> list[bytes]:
    page = await kv.scan(b"", b"\xff" * 1025, limit=1000, keys_only=True)
    return [record.key for record in page.records]


@pytest.mark.parametrize("sizes", [(1, 5), (5, 1), (1, 80_000), (80_000, 1), (80_000, 90_000)])
async def test_put_replaces_the_whole_value(kv: KeyValue, sizes: tuple[int, int]) -> None:
    for size, byte in zip(sizes, (b"a", b"b"), strict=True):
        await kv.commit([], [Put(b"key", byte * size)])
        assert await value(kv) == byte * size
        assert len((await kv.scan(b"", b"z", limit=9)).records[0].value) == size


async def test_put_and_patch_take_a_view_of_another_buffer(kv: KeyValue) -> None:
    buffer = bytearray(BIG)
    await kv.commit([], [Put(b"a", memoryview(buffer)[:10]), Put(b"b", memoryview(buffer))])
    await kv.commit(
        [], [Patch(b"a", 2, memoryview(buffer)[:3]), Patch(b"c", 0, memoryview(buffer))]
    )
    buffer[:] = bytes(len(buffer))
    assert await value(kv, b"a") == BIG[:2] + BIG[:3] + BIG[5:10]
    assert await value(kv, b"b") == BIG
    assert await value(kv, b"c") == BIG


@pytest.mark.parametrize("size", [1, 80_000])
async def test_delete_removes_one_key(kv: KeyValue, size: int) -> None:
    await kv.commit([], [Put(b"key", b"v" * size), Put(b"key\0", b"v")])
    await kv.commit([], [Delete(b"key")])
    assert await keys(kv) == [b"key\0"]
    assert await value(kv) is None


@pytest.mark.parametrize("count", RANGE_COUNTS)
@pytest.mark.parametrize("size", [1, 10_000])
async def test_delete_range_removes_from_start_up_to_end(
    kv: KeyValue, count: int, size: int
) -> None:
    names = [b"m%04d" % index for index in range(count)]
    await put_all(kv, [Put(name, b"v" * size) for name in names])
    await kv.commit([], [Put(b"l", BIG), Put(b"m", BIG), Put(b"n", BIG)])
    await kv.commit([], [DeleteRange(b"m0", b"n")])
    assert await keys(kv) == [b"l", b"m", b"n"]
    assert [await value(kv, name) for name in (b"l", b"m", b"n")] == [BIG] * 3
    assert not any(await kv.get(names[: limits.GET_KEYS_MAX], bulk=True))


@pytest.mark.parametrize("bounds", [(b"a", b"a"), (b"", b"")])
async def test_delete_range_of_an_empty_range_does_nothing(
    kv: KeyValue, bounds: tuple[bytes, bytes]
) -> None:
    await kv.commit([], [Put(b"a", b""), DeleteRange(*bounds)])
    assert await keys(kv) == [b"a"]


PATCHES = [
    # old value, patch, new value
    (None, Patch(b"key", 0, b"new"), b"new"),
    (None, Patch(b"key", 0, b""), b""),
    (None, Patch(b"key", 4, b"new"), b"\0\0\0\0new"),
    (None, Patch(b"key", 4, b""), b""),
    (None, Patch(b"key", 4, b"new", 5), b"\0\0\0\0n"),
    (None, Patch(b"key", 4, b"new", 2), b"\0\0"),
    (b"", Patch(b"key", 2, b"x"), b"\0\0x"),
    (b"abcdef", Patch(b"key", 0, b"XY"), b"XYcdef"),
    (b"abcdef", Patch(b"key", 2, b"XY"), b"abXYef"),
    (b"abcdef", Patch(b"key", 4, b"XYZ"), b"abcdXYZ"),
    (b"abcdef", Patch(b"key", 6, b"XY"), b"abcdefXY"),
    (b"abcdef", Patch(b"key", 8, b"XY"), b"abcdef\0\0XY"),
    (b"abcdef", Patch(b"key", 8, b""), b"abcdef"),
    (b"abcdef", Patch(b"key", 0, b"", 3), b"abc"),
    (b"abcdef", Patch(b"key", 0, b"", 6), b"abcdef"),
    (b"abcdef", Patch(b"key", 0, b"", 99), b"abcdef"),
    (b"abcdef", Patch(b"key", 0, b"", 0), b""),
    (b"abcdef", Patch(b"key", 1, b"X", 4), b"aXcd"),
    (b"abcdef", Patch(b"key", 1, b"XYZ", 2), b"aX"),
    (b"abcdef", Patch(b"key", 0, b"UVWXYZ"), b"UVWXYZ"),
    (b"abcdef", Patch(b"key", 0, b"UVWXYZ7", 3), b"UVW"),
    (BIG, Patch(b"key", 3, b"XY"), BIG[:3] + b"XY" + BIG[5:]),
    (BIG, Patch(b"key", len(BIG) - 1, b"XY"), BIG[:-1] + b"XY"),
    (BIG, Patch(b"key", 0, BIG[::-1]), BIG[::-1]),
    (BIG, Patch(b"key", 0, BIG[1:]), BIG[1:] + BIG[-1:]),
    (BIG, Patch(b"key", 0, b"", 10), BIG[:10]),
    (b"small", Patch(b"key", 2, BIG), b"sm" + BIG),
    (b"small", Patch(b"key", 70_000, b"x"), b"small" + bytes(69_995) + b"x"),
]


@pytest.mark.parametrize("together", [False, True], ids=["two-commits", "one-commit"])
async def test_patch(kv: KeyValue, together: bool) -> None:
    for old, patch, new in PATCHES:
        before: Op = Delete(b"key") if old is None else Put(b"key", old)
        if together:
            result = await kv.commit([], [before, patch])
        else:
            await kv.commit([], [before])
            result = await kv.commit([], [patch])
        (found,) = await kv.get([b"key"])
        assert found == (new, result.revision), (old, patch)


async def test_patches_of_different_ranges_keep_each_others_bytes(
    kv: KeyValue, other: KeyValue
) -> None:
    await kv.commit([], [Patch(b"key", 0, b"aaa")])
    await other.commit([], [Patch(b"key", 6, b"ccc")])
    await kv.commit([], [Patch(b"key", 3, b"bbb")])
    assert await value(kv) == b"aaabbbccc"


@pytest.mark.parametrize(
    ("old", "delta", "new"),
    [
        (None, 5, 5),
        (None, limits.COUNTER_MIN, limits.COUNTER_MIN),
        (1, -3, -2),
        (-1, 1, 0),
        (limits.COUNTER_MAX - 1, 1, limits.COUNTER_MAX),
        (limits.COUNTER_MAX, limits.COUNTER_MIN, -1),
        (7, 0, 7),
    ],
)
async def test_add(kv: KeyValue, old: int | None, delta: int, new: int) -> None:
    if old is not None:
        await kv.commit([], [Put(b"key", counter(old))])
    result = await kv.commit([], [Add(b"key", delta)])
    (found,) = await kv.get([b"key"])
    assert found == (counter(new), result.revision)


@pytest.mark.parametrize(("old", "delta"), [(limits.COUNTER_MAX, 1), (limits.COUNTER_MIN, -1)])
async def test_add_refuses_to_overflow(kv: KeyValue, old: int, delta: int) -> None:
    await kv.commit([], [Put(b"key", counter(old))])
    with pytest.raises(InvalidRequestError, match="does not fit"):
        await kv.commit([], [Add(b"key", delta)])
    assert await value(kv) == counter(old)


@pytest.mark.parametrize("old", [b"", b"1234567", b"123456789", BIG], ids=len)
async def test_add_refuses_a_value_that_is_no_counter(kv: KeyValue, old: bytes) -> None:
    await kv.commit([], [Put(b"key", old)])
    with pytest.raises(InvalidRequestError, match="not a counter"):
        await kv.commit([], [Add(b"key", 1)])
    assert await value(kv) == old
    assert await kv.revision() == 1


SEQUENCES: list[tuple[list[Op], bytes | None]] = [
    ([Put(b"key", b"a"), Put(b"key", b"b")], b"b"),
    ([Put(b"key", b"a"), Delete(b"key")], None),
    ([Delete(b"key"), Put(b"key", b"a")], b"a"),
    ([Put(b"key", b"abc"), Patch(b"key", 1, b"X"), Patch(b"key", 2, b"Y")], b"aXY"),
    ([Put(b"key", b"abc"), Patch(b"key", 1, b"X"), Delete(b"key")], None),
    ([Put(b"key", b"abc"), Delete(b"key"), Patch(b"key", 1, b"X")], b"\0X"),
    ([Delete(b"key"), Add(b"key", 3), Add(b"key", 4)], counter(7)),
    ([Put(b"key", counter(5)), Add(b"key", 3)], counter(8)),
    ([Put(b"key", b"abc"), DeleteRange(b"k", b"l")], None),
    ([DeleteRange(b"k", b"l"), Put(b"key", b"abc")], b"abc"),
    ([Put(b"key", b"abc"), DeleteRange(b"k", b"l"), Patch(b"key", 1, b"X")], b"\0X"),
    ([DeleteRange(b"k", b"l"), Add(b"key", 1)], counter(1)),
    ([DeleteRange(b"a", b"l"), Add(b"key", 1), DeleteRange(b"k", b"z")], None),
    ([DeleteRange(b"a", b"l"), DeleteRange(b"a", b"l"), Put(b"key", b"x")], b"x"),
    ([Put(b"key", BIG), Put(b"key", b"small")], b"small"),
    ([Put(b"key", b"small"), Put(b"key", BIG)], BIG),
    ([Put(b"key", BIG), Patch(b"key", 1, b"X", 3)], BIG[:1] + b"X" + BIG[2:3]),
    ([Put(b"key", BIG), Patch(b"key", 1, b"X")], BIG[:1] + b"X" + BIG[2:]),
    ([Put(b"key", BIG), Delete(b"key"), Patch(b"key", 0, b"X")], b"X"),
    ([Put(b"key", BIG), DeleteRange(b"k", b"l"), Patch(b"key", 0, b"X")], b"X"),
    ([DeleteRange(b"k", b"l"), Put(b"key", BIG), Patch(b"key", 0, b"", 2)], BIG[:2]),
]


@pytest.mark.parametrize(
    ("carrier", "neighbours"),
    [
        (carrier, neighbours)
        for carrier in CARRIERS
        for neighbours in (0, RANGE_COUNTS[2], RANGE_COUNTS[4])
        # What lies around a key is the engine's concern; only one carrier must bring it there.
        if not (carrier.over_quic and neighbours)
    ],
    ids=str,
)
@pytest.mark.parametrize(("ops", "expected"), SEQUENCES, ids=range(len(SEQUENCES)))
async def test_operations_see_those_before_them(
    kv: KeyValue, ops: list[Op], expected: bytes | None, neighbours: int
) -> None:
    """The neighbours make ``delete_range`` take each of its ways."""
    around = [Put(b"kez%d" % index, BIG[: index % 100 * 100]) for index in range(neighbours)]
    for before in (b"old value", BIG, None):
        await put_all(kv, around)
        old: Op = Delete(b"key") if before is None else Put(b"key", before)
        await kv.commit([], [Put(b"bystander", b""), old])
        result = await kv.commit([], ops)
        (found,) = await kv.get([b"key"])
        assert found == (None if expected is None else (expected, result.revision))
        listed = await keys(kv)
        assert (b"key" in listed) == (expected is not None)
        assert b"bystander" in listed or DeleteRange(b"a", b"l") in ops


async def test_a_large_value_made_small_leaves_nothing_behind(kv: KeyValue) -> None:
    for smaller in (Put(b"key", b"x"), Patch(b"key", 0, b"", 1), Delete(b"key")):
        await kv.commit([], [Put(b"key", BIG)])
        await kv.commit([], [smaller])
        await kv.commit([], [Delete(b"key")])
        assert await kv.get([b"key"], bulk=True) == [None]
