from __future__ import annotations

import pytest

from aspenfs import limits
from aspenfs.cache import Caches, CacheStatistics, TtlCache

TTL_S = 5.0


class FakeClock:
    """Monotonic seconds that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> TtlCache[bytes]:
    return TtlCache(ttl_s=TTL_S, entries_max=4, bytes_max=100, clock=clock, size_of=len)


def fill(cache: TtlCache[bytes], key: bytes, value: bytes, revision: int = 1) -> None:
    cache.fill(key, value, revision, cache.begin_fill())


def test_a_miss_is_none(cache: TtlCache[bytes]) -> None:
    assert cache.get(b"k") is None


def test_what_was_stored_is_found(cache: TtlCache[bytes]) -> None:
    fill(cache, b"k", b"filled")
    assert cache.get(b"k") == b"filled"
    cache.put(b"k", b"put", 2)
    assert cache.get(b"k") == b"put"


def test_an_empty_value_is_no_miss(cache: TtlCache[bytes]) -> None:
    fill(cache, b"k", b"")
    assert cache.get(b"k") == b""
    assert cache.statistics() == CacheStatistics(hits=1, misses=0, entries=1, bytes=0)


def test_hits_and_misses_are_counted(cache: TtlCache[bytes], clock: FakeClock) -> None:
    cache.get(b"k")
    fill(cache, b"k", b"four")
    cache.get(b"k")
    assert cache.statistics() == CacheStatistics(hits=1, misses=1, entries=1, bytes=4)
    clock.now_s += TTL_S
    cache.get(b"k")
    assert cache.statistics() == CacheStatistics(hits=1, misses=2, entries=0, bytes=0)


def test_an_entry_lives_for_its_ttl(cache: TtlCache[bytes], clock: FakeClock) -> None:
    fill(cache, b"k", b"v")
    clock.now_s += TTL_S - 0.001
    assert cache.get(b"k") == b"v"
    clock.now_s += 0.001
    assert cache.get(b"k") is None


def test_a_read_does_not_make_an_entry_younger(cache: TtlCache[bytes], clock: FakeClock) -> None:
    fill(cache, b"k", b"v")
    clock.now_s += TTL_S - 1
    cache.get(b"k")
    clock.now_s += 1
    assert cache.get(b"k") is None


def test_storing_again_does(cache: TtlCache[bytes], clock: FakeClock) -> None:
    fill(cache, b"k", b"v")
    clock.now_s += TTL_S - 1
    fill(cache, b"k", b"v")
    clock.now_s += 1
    assert cache.get(b"k") == b"v"


def test_a_live_cache_outlives_the_ttl(cache: TtlCache[bytes], clock: FakeClock) -> None:
    fill(cache, b"k", b"v")
    cache.set_live(True)
    clock.now_s += 100 * TTL_S
    assert cache.get(b"k") == b"v"


def test_when_it_is_no_longer_live_the_ttl_counts_from_then(
    cache: TtlCache[bytes], clock: FakeClock
) -> None:
    fill(cache, b"before", b"value")
    cache.set_live(True)
    fill(cache, b"live", b"value")
    clock.now_s += 100
    cache.set_live(False)
    cache.set_live(False)
    clock.now_s += TTL_S / 2
    cache.set_live(False)  # says nothing new
    fill(cache, b"after", b"value")
    clock.now_s += TTL_S / 2 - 0.1
    assert [cache.get(key) for key in (b"before", b"live", b"after")] == [b"value"] * 3
    clock.now_s += 0.1
    assert [cache.get(key) for key in (b"before", b"live", b"after")] == [None, None, b"value"]


# Bounds


def test_the_least_recently_used_entry_goes_first(cache: TtlCache[bytes]) -> None:
    for key in (b"1", b"2", b"3", b"4"):
        fill(cache, key, key)
    cache.get(b"1")
    fill(cache, b"5", b"5")
    assert cache.get(b"2") is None
    assert cache.get(b"1") == b"1"
    assert cache.statistics().entries == 4


def test_bytes_are_bounded(cache: TtlCache[bytes]) -> None:
    fill(cache, b"1", bytes(60))
    fill(cache, b"2", bytes(30))
    fill(cache, b"3", bytes(20))
    assert cache.get(b"1") is None
    assert cache.statistics().bytes == 50


def test_an_entry_that_grows_drops_others_not_itself(cache: TtlCache[bytes]) -> None:
    fill(cache, b"1", bytes(10))
    fill(cache, b"2", bytes(60))
    fill(cache, b"1", bytes(50))
    assert cache.get(b"2") is None
    assert cache.get(b"1") == bytes(50)
    assert cache.statistics() == CacheStatistics(hits=1, misses=1, entries=1, bytes=50)


def test_a_value_larger_than_the_cache_is_not_kept_and_not_its_predecessor_either(
    cache: TtlCache[bytes],
) -> None:
    fill(cache, b"1", b"small")
    fill(cache, b"2", b"small")
    fill(cache, b"1", bytes(101))
    assert cache.get(b"1") is None
    assert cache.get(b"2") == b"small"
    assert cache.statistics().bytes == 5


def test_without_a_size_no_bytes_are_counted(clock: FakeClock) -> None:
    cache: TtlCache[bytes] = TtlCache(ttl_s=1, entries_max=2, clock=clock)
    for number in range(3):
        fill(cache, b"%d" % number, bytes(1000))
    assert cache.statistics() == CacheStatistics(hits=0, misses=0, entries=2, bytes=0)


def test_a_bound_in_bytes_needs_a_size(clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="size_of"):
        TtlCache(ttl_s=1, entries_max=1, bytes_max=1, clock=clock)


# Order of changes and reads


def test_an_older_commit_does_not_replace_a_newer_one(cache: TtlCache[bytes]) -> None:
    cache.put(b"k", b"newer", 8)
    cache.put(b"k", b"older", 7)
    assert cache.get(b"k") == b"newer"
    cache.put(b"k", b"same", 8)
    assert cache.get(b"k") == b"same"


def test_an_older_commit_does_not_come_back_after_a_newer_event(cache: TtlCache[bytes]) -> None:
    cache.put(b"k", b"oldest", 6)
    cache.invalidate(b"k", revision=8)
    cache.put(b"k", b"older", 7)
    assert cache.get(b"k") is None
    cache.put(b"k", b"newer", 9)
    assert cache.get(b"k") == b"newer"


def test_nor_after_a_newer_event_on_its_range(cache: TtlCache[bytes]) -> None:
    cache.invalidate_range(b"a", b"c", revision=8)
    cache.put(b"b", b"older", 7)
    cache.put(b"c", b"outside", 7)
    assert cache.get(b"b") is None
    assert cache.get(b"c") == b"outside"


def test_a_commit_drops_an_older_value_that_it_cannot_replace(cache: TtlCache[bytes]) -> None:
    cache.invalidate(b"k", revision=8)
    fill(cache, b"k", b"stale", revision=1)
    cache.put(b"k", b"older", 7)
    assert cache.get(b"k") is None


def test_events_of_one_key_keep_the_highest_revision(cache: TtlCache[bytes]) -> None:
    cache.invalidate(b"k", revision=8)
    cache.invalidate(b"k")
    cache.put(b"k", b"older", 7)
    assert cache.get(b"k") is None


def test_after_a_gap_commits_from_before_it_are_refused(cache: TtlCache[bytes]) -> None:
    cache.clear(revision=8)
    cache.put(b"k", b"older", 7)
    assert cache.get(b"k") is None
    cache.put(b"k", b"newer", 8)
    assert cache.get(b"k") == b"newer"


@pytest.mark.parametrize("change", ["put", "key", "prefix", "range", "clear"])
def test_a_read_that_overlaps_a_change_is_dropped(cache: TtlCache[bytes], change: str) -> None:
    token = cache.begin_fill()
    match change:
        case "put":
            cache.put(b"kk", b"new", 5)
            cache.invalidate(b"kk")  # or eviction
        case "key":
            cache.invalidate(b"kk")
        case "prefix":
            cache.invalidate_prefix(b"k")
        case "range":
            cache.invalidate_range(b"ka", b"l")
        case "clear":
            cache.clear()
    cache.fill(b"kk", b"old", 4, token)
    assert cache.get(b"kk") is None
    fill(cache, b"kk", b"new", 5)
    assert cache.get(b"kk") == b"new"


def test_a_change_of_other_keys_drops_no_read(cache: TtlCache[bytes]) -> None:
    cache.invalidate_range(b"k", b"l")
    token = cache.begin_fill()
    cache.put(b"j", b"v", 9)
    cache.invalidate(b"l")
    cache.invalidate_range(b"a", b"k")
    cache.fill(b"k", b"v", 1, token)
    assert cache.get(b"k") == b"v"


def test_of_two_overlapping_reads_the_newer_state_stays(cache: TtlCache[bytes]) -> None:
    token = cache.begin_fill()
    cache.fill(b"k", b"newer", 8, token)
    cache.fill(b"k", b"older", 7, token)
    assert cache.get(b"k") == b"newer"


def test_a_later_read_replaces_an_earlier_one_also_when_the_key_is_gone(
    cache: TtlCache[bytes],
) -> None:
    fill(cache, b"k", b"there", revision=8)
    fill(cache, b"k", b"absent", revision=0)
    assert cache.get(b"k") == b"absent"


def test_a_read_older_than_the_record_of_changes_is_dropped(
    cache: TtlCache[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CACHE_EVENT_KEYS_MAX", 3)
    token = cache.begin_fill()
    for number in range(3):
        cache.invalidate(b"%d" % number, revision=number + 10)
    cache.fill(b"k", b"v", 1, token)
    assert cache.get(b"k") == b"v"
    cache.invalidate(b"3", revision=13)
    cache.fill(b"k2", b"v", 1, token)
    assert cache.get(b"k2") is None
    cache.put(b"k3", b"below the floor", 9)
    assert cache.get(b"k3") is None
    cache.put(b"k3", b"above the floor", 13)
    assert cache.get(b"k3") == b"above the floor"


def test_the_same_for_ranges(cache: TtlCache[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CACHE_EVENT_RANGES_MAX", 1)
    token = cache.begin_fill()
    cache.invalidate_range(b"a", b"b", revision=10)
    cache.fill(b"k", b"v", 1, token)
    assert cache.get(b"k") == b"v"
    cache.invalidate_range(b"b", b"c", revision=11)
    cache.fill(b"k2", b"v", 1, token)
    assert cache.get(b"k2") is None
    cache.put(b"k3", b"v", 9)
    assert cache.get(b"k3") is None


# Ranges


def test_a_range_drops_what_it_holds_and_nothing_else(cache: TtlCache[bytes]) -> None:
    for key in (b"a", b"b\x00", b"b\xff", b"c"):
        fill(cache, key, b"1234")
    cache.invalidate_range(b"b", b"c")
    assert [cache.get(key) for key in (b"a", b"b\x00", b"b\xff", b"c")] == [
        b"1234",
        None,
        None,
        b"1234",
    ]
    assert cache.statistics().bytes == 8


def test_a_prefix_drops_what_starts_with_it(cache: TtlCache[bytes]) -> None:
    for key in (b"I1", b"I1.meta", b"I2"):
        fill(cache, key, b"v")
    cache.invalidate_prefix(b"I1")
    assert [cache.get(key) for key in (b"I1", b"I1.meta", b"I2")] == [None, None, b"v"]


def test_clear_leaves_nothing(cache: TtlCache[bytes]) -> None:
    fill(cache, b"k", b"v")
    cache.clear()
    assert cache.get(b"k") is None
    assert cache.statistics() == CacheStatistics(hits=0, misses=1, entries=0, bytes=0)
    fill(cache, b"k", b"v")
    cache.invalidate_range(b"a", b"z")
    assert cache.get(b"k") is None


# The three caches of a mount


def fill_all(caches: Caches, key: bytes) -> None:
    caches.read.fill(key, b"data", 1, caches.read.begin_fill())
    caches.meta.fill(key, object(), 1, caches.meta.begin_fill())
    caches.scan.fill(key, object(), 1, caches.scan.begin_fill())


def present(caches: Caches, key: bytes) -> list[bool]:
    return [cache.get(key) is not None for cache in (caches.read, caches.meta, caches.scan)]


def test_each_cache_has_its_own_ttl(clock: FakeClock) -> None:
    caches = Caches.create(clock)
    fill_all(caches, b"k")
    clock.now_s += limits.SCAN_CACHE_TTL_S
    assert present(caches, b"k") == [True, True, False]
    clock.now_s += limits.META_CACHE_TTL_S - limits.SCAN_CACHE_TTL_S
    assert present(caches, b"k") == [True, False, False]
    clock.now_s += limits.READ_CACHE_TTL_S - limits.META_CACHE_TTL_S
    assert present(caches, b"k") == [False, False, False]


def test_what_concerns_all_caches_reaches_each(clock: FakeClock) -> None:
    caches = Caches.create(clock)
    for key in (b"1", b"2", b"3"):
        fill_all(caches, key)
    caches.set_live(True)
    clock.now_s += 100
    assert present(caches, b"1") == [True, True, True]
    caches.invalidate_key(b"1", revision=8)
    assert present(caches, b"1") == [False, False, False]
    caches.invalidate_range(b"2", b"3", revision=9)
    assert present(caches, b"2") == [False, False, False]
    assert present(caches, b"3") == [True, True, True]
    caches.clear(revision=10)
    assert present(caches, b"3") == [False, False, False]


def test_the_read_cache_is_bounded_in_bytes(clock: FakeClock) -> None:
    caches = Caches.create(clock)
    caches.read.fill(b"k", bytes(1000), 1, caches.read.begin_fill())
    assert caches.statistics() == {
        "read": CacheStatistics(0, 0, 1, 1000),
        "meta": CacheStatistics(0, 0, 0, 0),
        "scan": CacheStatistics(0, 0, 0, 0),
        "names": CacheStatistics(0, 0, 0, 0),
    }


def test_the_names_cache_is_bounded_by_its_names(clock: FakeClock) -> None:
    names = Caches.create(clock).names
    half = limits.NAMES_CACHE_BYTES_MAX // limits.KNOWN_NAME_BYTES // 2
    names.put(b"1", {b"%d" % number for number in range(half)}, 1)
    names.put(b"2", {b"%d" % number for number in range(half + 1)}, 2)
    assert names.get(b"1") is None
    assert len(names.get(b"2") or ()) == half + 1
