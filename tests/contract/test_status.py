"""What a server says of itself."""

from __future__ import annotations

import pytest

from aspenkv.contract import KeyValue, Put
from tests.contract.carriers import settle


async def test_names_engine_members_and_revision(
    kv: KeyValue, request: pytest.FixtureRequest
) -> None:
    await kv.commit([], [Put(b"key", b"")])
    status = await kv.status()
    assert status.engine in request.node.name
    assert status.members == ("embedded",)
    assert status.revision == 1


async def test_counts_leases_and_watches(kv: KeyValue) -> None:
    lease = await kv.lease(10)
    async with kv.watch(b""), kv.watch(b"p"):
        status = await kv.status()
        assert (status.leases, status.watches) == (1, 2)
    await kv.revoke(lease)
    await settle()
    status = await kv.status()
    assert (status.leases, status.watches) == (0, 0)


async def test_used_bytes_follow_the_data(kv: KeyValue) -> None:
    before = await kv.status()
    for index in range(8):
        await kv.commit([], [Put(b"%d" % index, b"v" * 1_000_000)])
    after = await kv.status()
    assert 7_000_000 < after.used_bytes - before.used_bytes < 16_000_000
    assert after.used_bytes < after.capacity_bytes
    assert 0 < after.available_bytes < after.capacity_bytes
