"""The rules of ``get``: which bytes come back, in which order, with which revision."""

from __future__ import annotations

import pytest

from aspenkv import limits
from aspenkv.contract import KeyValue, Put, Versioned
from aspenkv.errors import InvalidRequestError, KeyTooLargeError

EVERY_BYTE = bytes(range(256))
LONGEST_KEY = b"\xff" * limits.KEY_BYTES_MAX

KEYS = [b"\0", b"\0\0", b"\xff", b"a", b"a\0", b"a\xff", EVERY_BYTE, LONGEST_KEY]
VALUES = [b"", b"\0", b"\xff", EVERY_BYTE, b"\x80" * 8, b"v" * limits.VALUE_BYTES_MAX]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{len(value)}-bytes")
async def test_returns_the_exact_bytes_that_were_put(kv: KeyValue, value: bytes) -> None:
    for key in KEYS:
        result = await kv.commit([], [Put(key, value)])
        for bulk in (False, True):
            assert await kv.get([key], bulk=bulk) == [Versioned(value, result.revision)]


@pytest.mark.parametrize("bulk", [False, True])
async def test_answers_in_the_order_of_the_keys_with_none_for_absent_ones(
    kv: KeyValue, bulk: bool
) -> None:
    first = (await kv.commit([], [Put(b"small", b"1"), Put(b"large", b"x" * 100_000)])).revision
    second = (await kv.commit([], [Put(b"empty", b"")])).revision
    assert await kv.get([b"empty", b"absent", b"large", b"small", b"empty"], bulk=bulk) == [
        Versioned(b"", second),
        None,
        Versioned(b"x" * 100_000, first),
        Versioned(b"1", first),
        Versioned(b"", second),
    ]


async def test_of_no_keys_is_an_empty_answer(kv: KeyValue) -> None:
    assert await kv.get([]) == []


@pytest.mark.parametrize("bulk", [False, True])
async def test_takes_as_many_keys_as_the_limit_allows(kv: KeyValue, bulk: bool) -> None:
    await kv.commit([], [Put(b"key%d" % index, b"%d" % index) for index in range(100)])
    keys = [b"key%d" % index for index in range(limits.GET_KEYS_MAX)]
    found = await kv.get(keys, bulk=bulk)
    assert [each and each.value for each in found[:101]] == [
        *(b"%d" % index for index in range(100)),
        None,
    ]
    assert found[100:] == [None] * (limits.GET_KEYS_MAX - 100)


async def test_refuses_one_key_more(kv: KeyValue) -> None:
    with pytest.raises(InvalidRequestError, match="1025 keys"):
        await kv.get([b"key"] * (limits.GET_KEYS_MAX + 1))


@pytest.mark.parametrize("key", [b"", LONGEST_KEY + b"\xff"], ids=["empty", "one-byte-more"])
async def test_refuses_a_key_out_of_bounds(kv: KeyValue, key: bytes) -> None:
    with pytest.raises(KeyTooLargeError):
        await kv.get([b"fine", key])


async def test_a_neighbour_by_prefix_is_another_key(kv: KeyValue) -> None:
    await kv.commit([], [Put(b"key", b"1"), Put(b"key\0", b"2"), Put(b"ke", b"3")])
    found = await kv.get([b"key", b"key\0", b"ke", b"key\0\0"])
    assert [each and each.value for each in found] == [b"1", b"2", b"3", None]
