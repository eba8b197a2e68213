"""The table of delegations: what hinders a commit, and what hinders a promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aspenkv.contract import Add, Delete, DeleteRange, Op, Patch, Put
from aspenkv.delegations import Delegations, Span, span_below, span_of
from aspenkv.limits import DELEGATION_S, DELEGATION_SLACK_S

KEPT_S = DELEGATION_S + DELEGATION_SLACK_S
KEYS = st.lists(st.sampled_from(b"ab\xff"), max_size=3).map(bytes)


def put(*keys: bytes) -> list[Op]:
    return [Put(key, b"") for key in keys]


@pytest.fixture
def table() -> Delegations:
    return Delegations(are_granted=True)


def test_a_commit_of_another_client_waits_as_long_as_the_promise_is_kept(
    table: Delegations,
) -> None:
    assert table.grant("a", b"p", 100.0) == DELEGATION_S
    assert table.wait_until_s("b", put(b"p1"), 100.0) == 100.0 + KEPT_S
    assert table.wait_until_s("b", put(b"p1"), 100.0 + DELEGATION_S) == 100.0 + KEPT_S
    assert table.wait_until_s("b", put(b"p1"), 100.0 + KEPT_S) is None


def test_the_holder_and_who_commits_elsewhere_do_not_wait(table: Delegations) -> None:
    assert table.wait_until_s("b", put(b"p1"), 100.0) is None
    table.grant("a", b"p", 100.0)
    assert table.wait_until_s("a", put(b"p1"), 100.0) is None
    assert table.wait_until_s("b", put(b"o", b"o\xff"), 100.0) is None
    assert table.wait_until_s("b", [], 100.0) is None


def test_a_look_tells_who_need_not_wait(table: Delegations) -> None:
    assert not table.stand_against("a")
    table.grant("a", b"p", 100.0)
    assert not table.stand_against("a")
    assert table.stand_against("b")


def test_a_commit_waits_for_the_last_promise_that_it_would_break(table: Delegations) -> None:
    table.grant("a", b"p", 100.0)
    table.grant("b", b"p1", 100.5)
    table.grant("c", b"q", 100.7)
    assert table.wait_until_s("d", put(b"p1"), 100.8) == 100.5 + KEPT_S
    assert table.wait_until_s("b", put(b"p1"), 100.8) == 100.0 + KEPT_S
    assert table.wait_until_s("d", put(b"p2"), 100.8) == 100.0 + KEPT_S


def test_a_promise_that_is_renewed_ends_later_than_others(table: Delegations) -> None:
    table.grant("a", b"p", 100.0)
    table.grant("b", b"q", 100.1)
    table.grant("a", b"p", 100.2)
    now_s = 100.1 + KEPT_S
    assert table.wait_until_s("c", put(b"q"), now_s) is None
    assert table.wait_until_s("c", put(b"p"), now_s) == 100.2 + KEPT_S


def test_what_was_given_back_hinders_nobody(table: Delegations) -> None:
    table.grant("a", b"p", 100.0)
    table.grant("b", b"q", 100.0)
    table.give_back("a")
    assert table.wait_until_s("c", put(b"p"), 100.0) is None
    assert table.wait_until_s("c", put(b"q"), 100.0) is not None


def test_nothing_is_promised_against_a_commit_that_is_on_its_way(table: Delegations) -> None:
    with table.announced("b", put(b"p1")), table.announced("b", put(b"p1")):
        assert table.grant("a", b"p", 100.0) == 0
        assert table.grant("b", b"p", 100.0) == DELEGATION_S
        assert table.grant("a", b"q", 100.0) == DELEGATION_S
    assert table.grant("a", b"p", 100.0) == DELEGATION_S


def test_a_commit_that_changes_nothing_hinders_no_promise(table: Delegations) -> None:
    with table.announced("b", []):
        assert table.grant("a", b"", 100.0) == DELEGATION_S


def test_a_commit_that_failed_hinders_no_promise(table: Delegations) -> None:
    with pytest.raises(ValueError, match="failed"), table.announced("b", put(b"p")):
        raise ValueError("it failed")
    assert table.grant("a", b"p", 100.0) == DELEGATION_S


def test_who_is_not_the_only_server_keeps_promises_but_makes_none() -> None:
    table = Delegations(are_granted=False)
    assert table.grant("a", b"p", 100.0) == 0
    assert table.wait_until_s("b", put(b"p"), 100.0) is None
    table.assume("a", b"p", 100.0)
    assert table.wait_until_s("b", put(b"p"), 100.0) == 100.0 + KEPT_S


def test_a_span_holds_every_key_of_its_operations() -> None:
    ops: list[Op] = [Put(b"m", b""), Patch(b"d", 0, b""), Add(b"k", 1), Delete(b"e")]
    assert span_of(ops) == Span(b"d", b"m\0")
    assert span_of([*ops, DeleteRange(b"a", b"z")]) == Span(b"a", b"z")


@given(st.lists(KEYS, min_size=1), KEYS)
def test_a_commit_below_a_prefix_meets_it(keys: list[bytes], prefix: bytes) -> None:
    meets = span_of(put(*keys)).meets(span_below(prefix))
    if any(key.startswith(prefix) for key in keys):
        assert meets
    if len(keys) == 1:
        assert meets is keys[0].startswith(prefix)


@given(KEYS, KEYS)
def test_prefixes_meet_when_one_begins_with_the_other(one: bytes, other: bytes) -> None:
    related = one.startswith(other) or other.startswith(one)
    assert span_below(one).meets(span_below(other)) is related
