"""The rules of leases: when they lapse, and what goes with them. Time is a clock the tests turn."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aspenkv import limits
from aspenkv.contract import (
    Add,
    Change,
    Copy,
    Delete,
    DeleteRange,
    KeyValue,
    Op,
    Patch,
    Put,
    RevisionIs,
    WatchEvent,
)
from aspenkv.errors import EngineError, InvalidRequestError, LeaseNotFoundError, TooManyError
from aspenkv.service import Service
from tests.contract.carriers import Carrier, pass_time

BIG = b"v" * 80_000


async def keys(kv: KeyValue) -> list[bytes]:
    page = await kv.scan(b"", b"\xff", limit=1000, keys_only=True)
    return [record.key for record in page.records]


async def turn(clock: MockClock, kv: KeyValue, seconds: float) -> None:
    """Let time pass, and the server do what is due."""
    await pass_time(clock, seconds)
    with trio.fail_after(60):
        await kv.commit([], [])  # waits for a removal that is on its way


async def test_keys_vanish_in_one_commit_when_the_lease_lapses(
    kv: KeyValue, clock: MockClock, carrier: Carrier
) -> None:
    lease = await kv.lease(10)
    ops: list[Op] = [Put(b"b", b"", lease), Put(b"a", BIG, lease), Put(b"stays", b"")]
    await kv.commit([], ops)
    async with kv.watch(b"", skip_own=True) as watch:
        await turn(clock, kv, 10 - carrier.grain_s)
        assert await keys(kv) == [b"a", b"b", b"stays"]
        await turn(clock, kv, 2 * carrier.grain_s)
        assert await keys(kv) == [b"stays"]
        changes = (Change(b"a", None, None), Change(b"b", None, None))
        assert await anext(aiter(watch)) == WatchEvent(2, changes)
    with pytest.raises(LeaseNotFoundError):
        await kv.keepalive(lease)
    assert (await kv.status()).leases == 0


async def test_keepalive_gives_the_full_time_again(kv: KeyValue, clock: MockClock) -> None:
    lease = await kv.lease(10)
    await kv.commit([], [Put(b"key", b"", lease)])
    for _ in range(5):
        await turn(clock, kv, 9)
        await kv.keepalive(lease)
    assert await keys(kv) == [b"key"]
    await turn(clock, kv, 10)
    assert await keys(kv) == []


async def test_each_lease_lapses_at_its_own_time(kv: KeyValue, clock: MockClock) -> None:
    for ttl_s in (30, 10, 20):
        await kv.commit([], [Put(b"%d" % ttl_s, b"", await kv.lease(ttl_s))])
    await turn(clock, kv, 10)
    assert await keys(kv) == [b"20", b"30"]
    await turn(clock, kv, 10)
    assert await keys(kv) == [b"30"]
    await turn(clock, kv, 10)
    assert await keys(kv) == []


async def test_a_lapsed_lease_is_gone_even_before_its_keys_are(
    kv: KeyValue, clock: MockClock
) -> None:
    lease = await kv.lease(10)
    clock.jump(10)
    with pytest.raises(LeaseNotFoundError):
        await kv.commit([], [Put(b"key", b"", lease)])
    with pytest.raises(LeaseNotFoundError):
        await kv.keepalive(lease)


async def test_revoke_removes_the_keys_at_once(kv: KeyValue, other: KeyValue) -> None:
    lease = await kv.lease(10)
    await kv.commit([], [Put(b"a", b"", lease), Put(b"b", BIG, lease)])
    await other.revoke(lease)
    assert await keys(kv) == []
    assert await kv.revision() == 2
    with pytest.raises(LeaseNotFoundError):
        await kv.revoke(lease)


async def test_a_lease_without_keys_ends_without_a_commit(kv: KeyValue) -> None:
    await kv.revoke(await kv.lease(10))
    assert await kv.revision() == 0


@pytest.mark.parametrize(
    ("ops", "remains"),
    [
        ([Put(b"key", b"")], True),
        ([Delete(b"key")], False),
        ([Delete(b"key"), Put(b"key", b"")], True),
        ([DeleteRange(b"a", b"z")], False),
        ([DeleteRange(b"a", b"z"), Put(b"key", b"")], True),
        ([Patch(b"key", 0, b"x")], False),
        ([Put(b"key", b"12345678"), Add(b"key", 1)], True),
        ([Put(b"elsewhere", b""), DeleteRange(b"l", b"z")], False),
        ([Copy(b"key", b"key")], True),
        ([Copy(b"key", b"absent")], False),
        ([Copy(b"elsewhere", b"key")], False),
    ],
    ids=range(11),
)
async def test_a_put_without_lease_a_copy_or_a_deletion_takes_the_key_off(
    kv: KeyValue, ops: list[Op], remains: bool
) -> None:
    lease = await kv.lease(10)
    await kv.commit([], [Put(b"key", b"", lease)])
    await kv.commit([], ops)
    await kv.revoke(lease)
    assert (b"key" in await keys(kv)) == remains


async def test_a_key_hangs_on_the_lease_of_its_last_put(kv: KeyValue) -> None:
    first, second = await kv.lease(10), await kv.lease(10)
    await kv.commit([], [Put(b"key", b"", first)])
    await kv.commit([], [Put(b"key", b"", second)])
    await kv.revoke(first)
    assert await keys(kv) == [b"key"]
    await kv.revoke(second)
    assert await keys(kv) == []


@pytest.mark.parametrize(
    ("ops", "hangs"),
    [
        (lambda lease: [Put(b"key", b"", lease), Put(b"key", b"")], False),
        (lambda lease: [Put(b"key", b""), Put(b"key", b"", lease)], True),
        (lambda lease: [Put(b"key", b"", lease), DeleteRange(b"a", b"z"), Put(b"key", b"")], False),
        (lambda lease: [Put(b"key", b"", lease), Patch(b"key", 0, b"x")], True),
        (lambda lease: [Put(b"key", b"", lease), Copy(b"key", b"key")], False),
    ],
    ids=range(5),
)
async def test_within_a_commit_the_last_operation_decides(
    kv: KeyValue, ops: object, hangs: bool
) -> None:
    lease = await kv.lease(10)
    assert callable(ops)
    await kv.commit([], ops(lease))
    await kv.revoke(lease)
    assert (b"key" in await keys(kv)) != hangs


async def test_a_failed_commit_changes_no_attachment(kv: KeyValue) -> None:
    lease = await kv.lease(10)
    await kv.commit([], [Put(b"hangs", b"", lease), Put(b"free", b"")])
    await kv.commit([RevisionIs(b"free", 9)], [Put(b"hangs", b""), Put(b"free", b"", lease)])
    with pytest.raises(InvalidRequestError):
        await kv.commit([], [Put(b"free", b"x", lease), Add(b"free", 1)])
    await kv.revoke(lease)
    assert await keys(kv) == [b"free"]


async def test_a_put_on_an_unknown_lease_does_nothing(kv: KeyValue) -> None:
    with pytest.raises(LeaseNotFoundError):
        await kv.commit([], [Put(b"a", b""), Put(b"b", b"", 12345)])
    assert await kv.revision() == 0
    for call in (kv.keepalive, kv.revoke):
        with pytest.raises(LeaseNotFoundError):
            await call(12345)


@pytest.mark.parametrize(
    "ttl_s", [0, limits.LEASE_TTL_S_MIN / 2, limits.LEASE_TTL_S_MAX + 1, float("nan")]
)
async def test_refuses_a_time_to_live_out_of_bounds(kv: KeyValue, ttl_s: float) -> None:
    with pytest.raises(InvalidRequestError):
        await kv.lease(ttl_s)


async def test_there_is_a_limit_to_leases(kv: KeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aspenkv.leases.LEASES_MAX", 3)
    leases = [await kv.lease(10) for _ in range(3)]
    with pytest.raises(TooManyError):
        await kv.lease(10)
    await kv.revoke(leases[1])
    await kv.lease(10)


async def test_there_is_a_limit_to_the_keys_on_leases(
    kv: KeyValue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aspenkv.leases.LEASE_KEYS_MAX", 3)
    lease = await kv.lease(10)
    await kv.commit([], [Put(b"%d" % index, b"", lease) for index in range(3)])
    with pytest.raises(TooManyError):
        await kv.commit([], [Put(b"one more", b"", lease)])
    await kv.commit([], [Delete(b"0"), Put(b"one more", b"", lease), Put(b"1", b"", lease)])
    await kv.revoke(lease)
    assert await keys(kv) == []


@pytest.mark.logs("lapsed leases could not be removed")
async def test_removal_is_tried_again_after_the_engine_failed(
    service: Service, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv = service.connect()
    await kv.commit([], [Put(b"key", b"", await kv.lease(10))])
    engine = service.store._engine
    working, failures = engine.commit, []

    async def failing(*args: object) -> object:
        failures.append(args)
        raise EngineError("no space left")

    monkeypatch.setattr(engine, "commit", failing)
    clock.jump(10)
    await wait_all_tasks_blocked()
    assert failures
    monkeypatch.setattr(engine, "commit", working)
    await turn(clock, kv, limits.LEASE_REMOVAL_RETRY_S)
    assert await keys(kv) == []
