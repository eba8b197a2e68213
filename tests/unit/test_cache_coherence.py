"""A live cache against a store that this mount and others change, with every delay there can be.

Own commits reach the cache when their answer arrives, commits by others when their event does, and
reads when they return: each later than it took effect, and in any order between the three. When
nothing that concerns a key is under way, the cache has the store's value or none.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aspenfs import limits
from aspenfs.cache import TtlCache

ALL_KEYS = (b"a", b"b", b"c")
KEYS = st.sampled_from(ALL_KEYS)
RANGES = st.sampled_from([(b"a", b"b"), (b"a", b"c"), (b"a", b"d"), (b"c", b"d")])
ABSENT = b"absent"


class Stored(NamedTuple):
    value: bytes
    revision: int


class Answer(NamedTuple):
    """The answer to an own commit, under way."""

    key: bytes
    end: bytes | None
    written: Stored


class Read(NamedTuple):
    """A read that has begun; ``found`` once it has seen the store."""

    key: bytes
    token: int
    found: Stored | None


class Coherence(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.monkeypatch = pytest.MonkeyPatch()
        self.monkeypatch.setattr(limits, "CACHE_EVENT_KEYS_MAX", 2)
        self.monkeypatch.setattr(limits, "CACHE_EVENT_RANGES_MAX", 2)
        self.cache: TtlCache[bytes] = TtlCache(
            ttl_s=1, entries_max=2, bytes_max=40, clock=lambda: 0, size_of=len
        )
        self.cache.set_live(True)
        self.revision = 0
        self.store: dict[bytes, Stored] = {}
        self.events: deque[tuple[bytes, bytes | None, int]] = deque()
        self.answers: deque[Answer] = deque()
        self.reads: deque[Read] = deque()
        for key in ALL_KEYS:
            self.write(key)

    def teardown(self) -> None:
        self.monkeypatch.undo()

    def now(self, key: bytes) -> Stored:
        return self.store.get(key, Stored(ABSENT, 0))

    def write(self, key: bytes) -> Stored:
        self.revision += 1
        self.store[key] = Stored(b"revision %d" % self.revision, self.revision)
        return self.store[key]

    def delete(self, start: bytes, end: bytes) -> None:
        self.revision += 1
        for key in [key for key in self.store if start <= key < end]:
            del self.store[key]

    # Others

    @rule(key=KEYS)
    def another_writes(self, key: bytes) -> None:
        self.events.append((key, None, self.write(key).revision))

    @rule(bounds=RANGES)
    def another_deletes(self, bounds: tuple[bytes, bytes]) -> None:
        self.delete(*bounds)
        self.events.append((*bounds, self.revision))

    @precondition(lambda self: self.events)
    @rule()
    def an_event_arrives(self) -> None:
        key, end, revision = self.events.popleft()
        if end is None:
            self.cache.invalidate(key, revision)
        else:
            self.cache.invalidate_range(key, end, revision)

    @precondition(lambda self: self.events)
    @rule()
    def the_watch_has_a_gap(self) -> None:
        self.events.clear()
        self.cache.clear(self.revision)

    # This mount

    @rule(key=KEYS)
    def write_here(self, key: bytes) -> None:
        self.answers.append(Answer(key, None, self.write(key)))

    @rule(bounds=RANGES)
    def delete_here(self, bounds: tuple[bytes, bytes]) -> None:
        self.delete(*bounds)
        self.answers.append(Answer(*bounds, Stored(ABSENT, self.revision)))

    @precondition(lambda self: self.answers)
    @rule()
    def an_answer_is_overtaken(self) -> None:
        self.answers.rotate()

    @precondition(lambda self: self.answers)
    @rule()
    def an_answer_arrives(self) -> None:
        answer = self.answers.popleft()
        if answer.end is None:
            self.cache.put(answer.key, *answer.written)
        else:
            self.cache.invalidate_range(answer.key, answer.end, answer.written.revision)

    # Reads

    @rule(key=KEYS, at_once=st.booleans())
    def a_read_begins(self, key: bytes, at_once: bool) -> None:
        found = self.now(key) if at_once else None
        self.reads.append(Read(key, self.cache.begin_fill(), found))

    @precondition(lambda self: self.reads)
    @rule()
    def a_read_is_overtaken(self) -> None:
        self.reads.rotate()

    @precondition(lambda self: self.reads)
    @rule()
    def a_read_returns(self) -> None:
        read = self.reads.popleft()
        self.cache.fill(read.key, *(read.found or self.now(read.key)), read.token)

    # What must hold

    def is_settled(self, key: bytes) -> bool:
        changes = [(start, end) for start, end, _ in self.events]
        changes += [(answer.key, answer.end) for answer in self.answers]
        return not any(
            key == start if end is None else start <= key < end for start, end in changes
        )

    @invariant()
    def what_is_cached_is_what_is_stored(self) -> None:
        for key in ALL_KEYS:
            if self.is_settled(key):
                assert self.cache.get(key) in (None, self.now(key).value)

    @invariant()
    def the_bytes_are_those_of_the_entries(self) -> None:
        entries = self.cache._entries
        assert self.cache.statistics().bytes == sum(len(entries[key].value) for key in entries)
        assert self.cache.statistics().bytes <= 40


TestCoherence = Coherence.TestCase
# The steps are cheap, and the orders that matter are rare.
TestCoherence.settings = settings(max_examples=max(300, settings().max_examples))
