"""Values that are copied where they are: they never pass through a client."""

from __future__ import annotations

import pytest

from aspenkv import limits
from aspenkv.contract import ABSENT, Copy, Delete, DeleteRange, KeyValue, Op, Patch, Put, RevisionIs
from aspenkv.errors import CommitTooLargeError

BIG = bytes(range(256)) * 256
MEGABYTE = b"v" * limits.VALUE_BYTES_MAX


async def values(kv: KeyValue, *keys: bytes) -> list[bytes | None]:
    return [None if each is None else each.value for each in await kv.get(keys, bulk=True)]


@pytest.mark.parametrize("value", [b"", b"small", BIG], ids=len)
@pytest.mark.parametrize("old", [None, b"old", BIG[1:]], ids=lambda old: f"over-{len(old or b'')}")
async def test_a_value_is_copied(kv: KeyValue, value: bytes, old: bytes | None) -> None:
    await kv.commit([], [Put(b"a", value), *([] if old is None else [Put(b"b", old)])])
    result = await kv.commit([], [Copy(b"b", b"a")])
    assert await kv.get([b"a", b"b"], bulk=True) == [(value, 1), (value, result.revision)]
    await kv.commit([], [Delete(b"a")])
    assert await values(kv, b"a", b"b") == [None, value]


@pytest.mark.parametrize("old", [None, b"old", BIG], ids=lambda old: f"over-{len(old or b'')}")
async def test_a_copy_of_nothing_is_nothing(kv: KeyValue, old: bytes | None) -> None:
    if old is not None:
        await kv.commit([], [Put(b"b", old)])
    await kv.commit([], [Copy(b"b", b"absent")])
    assert await kv.get([b"b"]) == [None]


@pytest.mark.parametrize("size", [3, len(BIG)])
async def test_a_copy_sees_the_operations_before_it(kv: KeyValue, size: int) -> None:
    value, other = BIG[:size], b"y" * size
    await kv.commit([], [Put(b"a", value), Put(b"b", other)])
    swap: list[Op] = [Copy(b"spare", b"a"), Copy(b"a", b"b"), Copy(b"b", b"spare")]
    await kv.commit([], [*swap, Delete(b"spare")])
    assert await values(kv, b"a", b"b", b"spare") == [other, value, None]
    await kv.commit([], [Patch(b"a", 0, b"PP"), Copy(b"c", b"a"), Delete(b"a"), Copy(b"d", b"a")])
    assert await values(kv, b"a", b"c", b"d") == [None, b"PP" + other[2:], None]
    await kv.commit([], [Copy(b"e", b"c"), DeleteRange(b"a", b"e"), Copy(b"f", b"c")])
    assert await values(kv, b"c", b"e", b"f") == [None, b"PP" + other[2:], None]


@pytest.mark.parametrize("value", [b"small", BIG], ids=len)
async def test_a_key_copied_to_itself_is_written_anew(kv: KeyValue, value: bytes) -> None:
    await kv.commit([], [Put(b"a", value)])
    await kv.commit([], [Copy(b"a", b"a")])
    assert await kv.get([b"a"], bulk=True) == [(value, 2)]


async def test_nothing_is_copied_if_a_check_fails(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"a", BIG)])
    assert await kv.commit([RevisionIs(b"a", ABSENT)], [Copy(b"b", b"a")]) == (1, 0)
    assert await values(kv, b"b") == [None]


@pytest.mark.parametrize("size", [8000, 65_536])
async def test_a_whole_commit_of_copies(kv: KeyValue, size: int) -> None:
    count = min(limits.COMMIT_COPIED_BYTES_MAX // size, limits.COMMIT_OPS_MAX)
    await kv.commit([], [Put(b"a", b"v" * size)])
    await kv.commit([], [Copy(b"b%d" % number, b"a") for number in range(count)])
    assert await values(kv, *(b"b%d" % number for number in range(count))) == [b"v" * size] * count


async def test_copies_are_bounded_in_bytes(kv: KeyValue) -> None:
    count = limits.COMMIT_COPIED_BYTES_MAX // len(MEGABYTE)
    copies = [Copy(b"b%d" % number, b"a") for number in range(count)]
    await kv.commit([], [Put(b"a", MEGABYTE), Put(b"byte", b"x")])
    await kv.commit([], copies)
    with pytest.raises(CommitTooLargeError, match="copies"):
        await kv.commit([], [Put(b"new", b""), *copies, Copy(b"c", b"byte")])
    assert await values(kv, b"new", b"c", b"b0") == [None, None, MEGABYTE]
    assert await kv.revision() == 2
