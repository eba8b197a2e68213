"""The checker of histories: good ones pass, and each kind of bad one is found."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.history.check import check
from tests.history.history import OK, Call, dump, load
from tests.history.linearize import linearize
from tests.history.parts import PARTS, Part
from tests.history.registers import EMPTY, MIXED, RegisterModel
from tests.history.trees import TreeModel
from tests.history.values import content, line, lines_of, size_of, value_of
from tests.history.worker import Worker

EXAMPLES: Final = Path(__file__).with_name("examples")
SLOT: Final = 10
"""Between the starts of two calls of a sequential history."""


def tree(start: int, end: int, text: str, outcome: str = OK, seen: str = "") -> Call:
    """Return a call of the tree; the text is its action and paths."""
    action, *names = text.split(" ")
    return Call(start, end, 0, "tree", action, tuple(names), outcome, tuple(seen.split()))


def value(part: str, start: int, end: int, action: str, outcome: str = OK, seen: str = "") -> Call:
    return Call(start, end, 0, part, action, (), outcome, tuple(seen.split()))


def explains(violations: Sequence[object], *parts: str) -> bool:
    (violation,) = violations
    return all(part in str(violation) for part in parts)


# --- directories ---------------------------------------------------------------------------------

MADE: Final = (tree(0, 5, "create a", seen="#1"), tree(0, 5, "mkdir d"))


@pytest.mark.parametrize(
    "calls",
    [
        # Whatever overlaps may come in any order.
        [tree(10, 30, "unlink a"), tree(20, 40, "open a", seen="#1")],
        [tree(10, 30, "unlink a"), tree(20, 40, "open a", "ENOENT")],
        [tree(10, 30, "unlink a"), tree(10, 30, "unlink a", "ENOENT")],
        [tree(10, 20, "unlink a"), tree(20, 30, "open a", seen="#1")],  # at the same moment
        [tree(10, 30, "create b", "EEXIST"), tree(10, 30, "create b", seen="#2")],
        # What is replaced is never missing.
        [
            tree(10, 20, "create b", seen="#2"),
            tree(30, 50, "rename b a"),
            tree(30, 40, "open a", seen="#2"),
            tree(35, 45, "open a", seen="#2"),
        ],
        # Two names of one file: a rename of one to the other does nothing.
        [tree(10, 20, "link a b"), tree(30, 40, "rename a b"), tree(50, 60, "open a", seen="#1")],
        # It does nothing either if the names are the same at different moments.
        [
            tree(10, 20, "link a b"),
            tree(30, 90, "rename a b"),
            tree(40, 50, "unlink a"),
            tree(60, 70, "open a", "ENOENT"),
            tree(80, 85, "open b", seen="#1"),
        ],
        # Nor if another has just done the same; but only one of two did it if that was before.
        [tree(10, 90, "rename d e"), tree(20, 30, "rename d e"), tree(40, 50, "list e")],
        [tree(10, 20, "rename d e"), tree(30, 40, "rename d e", "ENOENT")],
        # A path leads to where its directory has gone meanwhile.
        [
            tree(10, 90, "create d/a", seen="#2"),
            tree(20, 30, "rename d e"),
            tree(40, 50, "open e/a", "ENOENT"),
            tree(60, 70, "open d/a", "ENOENT"),
            tree(100, 110, "open e/a", seen="#2"),
        ],
        [tree(10, 40, "mkdir d/e", "ENOENT"), tree(20, 30, "rmdir d")],
        [
            tree(10, 20, "mkdir e"),
            tree(30, 40, "rename d e/d"),
            tree(50, 60, "rename e e/d/e", "EINVAL"),
            tree(50, 60, "rename e/d e", "ENOTEMPTY"),
        ],
        [tree(10, 20, "mkdir e"), tree(30, 40, "rename d e"), tree(50, 60, "rename d e", "ENOENT")],
        # A file that is opened can lose its name before it gets another.
        [tree(10, 40, "link a b", "ENOENT"), tree(20, 30, "unlink a")],
        [
            tree(10, 40, "link a b", "EEXIST"),
            tree(20, 30, "unlink a"),
            tree(31, 39, "create b", seen="#2"),
        ],
        [tree(10, 20, "rmdir d"), tree(10, 20, "list d"), tree(30, 40, "list d", "ENOENT")],
        [tree(10, 20, "list ", seen="a#1 d"), tree(30, 40, "list d")],
        # A listing may tell of one change under way, and not of another that was earlier.
        [
            tree(10, 60, "list ", seen="b#2 d"),
            tree(20, 30, "unlink a"),
            tree(40, 50, "create b", seen="#2"),
        ],
        [
            tree(10, 60, "list ", seen="a#1 b#2 d"),
            tree(20, 30, "unlink a"),
            tree(40, 50, "create b", seen="#2"),
        ],
    ],
)
def test_trees_that_can_be(calls: list[Call]) -> None:
    assert check([*MADE, *calls]) == []


@pytest.mark.parametrize(
    ("calls", "wrong"),
    [
        ([tree(10, 20, "unlink a"), tree(30, 40, "open a", seen="#1")], "open(a) = ok #1"),
        ([tree(10, 20, "open a", "ENOENT")], "open(a) = ENOENT"),
        ([tree(10, 20, "open a", "ESTALE")], "open(a) = ESTALE"),
        ([tree(10, 20, "open a", seen="#2")], "open(a) = ok #2"),
        ([tree(10, 20, "rename a d/a", "ESTALE")], "rename(a, d/a) = ESTALE"),
        ([tree(10, 20, "rename d e"), tree(30, 40, "rename d e")], "rename(d, e) = ok"),
        ([tree(10, 20, "rename d e", "ESTALE")], "rename(d, e) = ESTALE"),
        ([tree(10, 30, "create b", seen="#2"), tree(20, 40, "create b", seen="#3")], "create(b)"),
        ([tree(10, 20, "create b", "EEXIST")], "create(b) = EEXIST"),
        ([tree(10, 30, "unlink a"), tree(10, 30, "unlink a")], "unlink(a) = ok"),
        ([tree(10, 20, "create d/a", seen="#2"), tree(30, 40, "rmdir d")], "rmdir(d) = ok"),
        ([tree(10, 20, "rmdir d", "ENOTEMPTY")], "rmdir(d) = ENOTEMPTY"),
        ([tree(10, 20, "rename d e"), tree(30, 40, "list d")], "list(d) = ok"),
        # Missing for a moment, between the old and the new.
        (
            [
                tree(10, 20, "create b", seen="#2"),
                tree(30, 60, "rename b a"),
                tree(40, 50, "open a", "ENOENT"),
            ],
            "open(a) = ENOENT",
        ),
        # First the new, then the old.
        (
            [
                tree(10, 90, "unlink a"),
                tree(20, 30, "open a", "ENOENT"),
                tree(40, 50, "open a", seen="#1"),
            ],
            "open(a) = ok #1",
        ),
        # A cycle, made from both sides: each was right for itself.
        (
            [
                tree(10, 20, "mkdir e"),
                tree(30, 50, "rename d e/d"),
                tree(30, 50, "rename e d/e"),
            ],
            "rename",
        ),
        ([tree(10, 20, "list ", seen="a#1")], "list() = ok a#1"),
        ([tree(10, 20, "list ", seen="a#2 d")], "list() = ok a#2"),
        ([tree(10, 20, "list ", seen="a d")], "list() = ok a, d"),
        ([tree(10, 20, "list ", seen="a#1 d x#9")], "list() = ok"),
        ([tree(10, 20, "list d", "ENOENT")], "list(d) = ENOENT"),
        # Neither before the change nor after it.
        (
            [
                tree(10, 20, "rename a b"),
                tree(30, 40, "list ", seen="a#1 b#1 d"),
            ],
            "list() = ok a#1, b#1, d",
        ),
    ],
)
def test_trees_that_cannot_be(calls: list[Call], wrong: str) -> None:
    assert explains(check([*MADE, *calls]), f"tree: {wrong}", "no order", ">> ")


LAG: Final = 250_000_000


@pytest.mark.parametrize(
    ("refused", "is_excepted"),
    [
        (tree(30, 40, "open d/e/a", "ENOENT"), True),
        (tree(30, 40, "rename d/e e/d", "ESTALE"), True),
        (tree(LAG, LAG + 40, "open d/e/a", "ENOENT"), True),
        (tree(LAG + 21, LAG + 40, "open d/e/a", "ENOENT"), False),  # it must have heard by then
        (tree(2, 9, "open d/a", "ENOENT"), False),  # it had not happened yet
        (tree(30, 40, "open d/e/a", "EEXIST"), False),
        (tree(30, 40, "open a", "ENOENT"), False),  # through no directory
    ],
)
def test_a_path_whose_directories_are_being_moved(refused: Call, *, is_excepted: bool) -> None:
    """Another mount has moved e into d: what was in e is in d/e."""
    calls = [
        tree(0, 1, "create d/a", seen="#2"),
        tree(0, 1, "mkdir e"),
        tree(2, 3, "create e/a", seen="#3"),
        tree(10, 20, "rename e d/e")._replace(mount=1),
        refused,
    ]
    assert (check([MADE[0], tree(-5, -1, "mkdir d"), *calls]) == []) == is_excepted


def test_a_mount_knows_what_it_has_moved_itself() -> None:
    calls = [tree(10, 20, "mkdir e"), tree(30, 40, "rename d e/d")]
    refused = tree(50, 60, "list e/d", "ENOENT")
    assert explains(check([*MADE, *calls, refused]), "list(e/d) = ENOENT")


def test_what_takes_too_long_is_not_accepted() -> None:
    calls = [tree(0, 100, f"create {name}", seen=f"#{ino}") for ino, name in enumerate("abcdefgh")]
    names = tuple("abcdefgh")
    assert linearize(calls, TreeModel(names)) is None
    opened = [*calls, tree(50, 90, "open h", seen="#7")]
    assert "undecided" in str(linearize(opened, TreeModel(names), configurations_max=4))


# --- values --------------------------------------------------------------------------------------

REPLACED: Final = [value("replaced", 10, 30, "write", seen="0.1")]


def test_a_replaced_file_has_one_order_of_values() -> None:
    reads = [
        value("replaced", 0, 15, "read", seen="0"),
        value("replaced", 16, 20, "read", seen="0.1"),
        value("replaced", 40, 50, "read", seen="0.1"),
    ]
    assert check([*REPLACED, *reads]) == []
    back = value("replaced", 22, 28, "read", seen="0")
    assert explains(check([*REPLACED, *reads, back]), "replaced: read() = ok 0: no order")


@pytest.mark.parametrize("outcome", [EMPTY, MIXED, "ENOENT", "ESTALE"])
def test_a_replaced_file_is_there_and_whole(outcome: str) -> None:
    read = value("replaced", 10, 30, "read", outcome)
    assert explains(check([*REPLACED, read]), f"replaced: read() = {outcome}")


WRITTEN: Final = [
    value("overwritten", 10, 20, "write", seen="0.1"),
    value("overwritten", 30, 60, "write", seen="0.2"),
    value("overwritten", 40, 50, "write", seen="1.1"),
]


@pytest.mark.parametrize(
    "read",
    [
        value("overwritten", 0, 5, "read", seen="0"),
        value("overwritten", 0, 15, "read", seen="0.1"),
        value("overwritten", 45, 48, "read", seen="0.1"),  # nothing newer was closed
        value("overwritten", 45, 48, "read", seen="0.2"),
        value("overwritten", 45, 48, "read", EMPTY),
        value("overwritten", 15, 48, "read", MIXED),
        value("overwritten", 70, 80, "read", seen="0.2"),  # of two at once either remains
        value("overwritten", 70, 80, "read", seen="1.1"),
    ],
)
def test_what_may_be_read_while_files_are_written(read: Call) -> None:
    assert check([*WRITTEN, read]) == []


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (value("overwritten", 25, 28, "read", seen="0"), "overwritten with 0.1"),
        (value("overwritten", 70, 80, "read", seen="0.1"), "overwritten with 0.2"),
        (value("overwritten", 15, 28, "read", seen="0.2"), "only later"),
        (value("overwritten", 15, 28, "read", seen="7.7"), "nobody wrote"),
        (value("overwritten", 25, 28, "read", EMPTY), "no write under way"),
        (value("overwritten", 70, 80, "read", MIXED), "no write under way"),
        (value("overwritten", 40, 80, "read", "EIO"), "must not fail"),
        (value("overwritten", 40, 80, "write", "EIO", "2.1"), "must not fail"),
    ],
)
def test_what_may_not_be_read(read: Call, reason: str) -> None:
    assert explains(check([*WRITTEN, read]), reason, ">> ")


# --- lines ---------------------------------------------------------------------------------------

APPENDED: Final = [
    value("log", 0, 10, "append", seen="0.1 0.2"),
    value("log", 20, 40, "append", seen="1.1"),
    value("log", 30, 50, "append", seen="2.1"),
]


@pytest.mark.parametrize("lines", ["0.1 0.2", "0.1 0.2 2.1", "0.1 0.2 1.1 2.1", "0.1 0.2 2.1 1.1"])
def test_lines_that_may_be_read(lines: str) -> None:
    assert check([*APPENDED, value("log", 35, 60, "read", seen=lines)]) == []


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("0.2", "0.1 is lost"),
        ("0.1 0.2 1.1", "2.1 is lost"),
        ("0.1 0.2 1.1 2.1 1.1", "1.1 is there twice"),
        ("0.2 0.1 1.1 2.1", "0.2 stands before 0.1"),
        ("1.1 0.1 0.2 2.1", "1.1 stands before 0.1"),
        ("0.1 0.2 1.1 2.1 3.1", "nobody appended 3.1"),
        ("0.1 0.2 1.1 2.1 4.1", "4.1 is appended only later"),
    ],
)
def test_lines_that_may_not_be_read(lines: str, reason: str) -> None:
    later = value("log", 80, 90, "append", seen="4.1")
    read = value("log", 60, 70, "read", seen=lines)
    assert explains(check([*APPENDED, later, read]), reason, ">> ")


def test_two_reads_agree_on_the_order() -> None:
    reads = [
        value("log", 60, 70, "read", seen="0.1 0.2 1.1 2.1"),
        value("log", 60, 71, "read", seen="0.1 0.2 2.1 1.1"),
    ]
    assert explains(check([*APPENDED, *reads]), "another order")


def test_an_append_that_fails() -> None:
    failed = value("log", 60, 70, "append", "EIO", "2.2")
    assert explains(check([*APPENDED, failed]), "must not fail")


# --- what programs find in files -----------------------------------------------------------------


@pytest.mark.parametrize("part", [part for part in PARTS if part.value_bytes], ids=str)
def test_a_value_is_known_again_and_a_mixture_is_not_taken_for_one(part: Part) -> None:
    old, new = (content(each, size_of(each, part)) for each in ("0.1", "1.23"))
    assert value_of(new, part) == (OK, ("1.23",))
    assert value_of(b"", part) == (EMPTY, ())
    for cut in (1, 16, 50, len(new) - 1):
        assert value_of(new[:cut], part)[0] == MIXED
        assert value_of(new[:cut] + bytes(len(new) - cut), part)[0] == MIXED
    assert value_of(old[:32] + new[32:], part)[0] == MIXED
    assert value_of(new + new[:16], part)[0] == MIXED
    assert value_of(b"\xff" * 100, part)[0] == MIXED


def test_lines_are_known_again_and_torn_ones_are_not_taken_for_some() -> None:
    one, other = line("0.1", 20), line("1.1", 0)
    assert lines_of(one + other) == ["0.1", "1.1"]
    for data in (one[:-1], one[:7] + one, one[:7] + other, one[7:], other[:3], bytes(4) + other):
        assert any(each.startswith("torn") for each in lines_of(data))


# --- histories of programs -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """What one worker sees on a filesystem of this machine: the model must know it as well."""
    worker = Worker(tmp_path_factory.mktemp("local") / "parts", 0, 0)
    worker.prepare()
    for part in PARTS:
        for _ in range(150):
            worker.call(part)
    worker.look()
    return [
        call._replace(start_ns=SLOT * number, end_ns=SLOT * number + 1)
        for number, call in enumerate(worker.history)
    ]


def test_what_a_local_filesystem_does_is_right(sequential: list[Call]) -> None:
    assert check(sequential) == []
    assert {"ok", "ENOENT", "EEXIST", "ENOTEMPTY", "EINVAL"} <= {
        call.outcome for call in sequential
    }
    assert load(dump(sequential)) == sequential


parts = st.sampled_from(PARTS)
spans = st.integers(0, 3 * SLOT)


@given(part=parts, length=st.integers(1, 150), longer=st.lists(st.tuples(spans, spans), max_size=8))
def test_calls_that_take_longer_are_still_right(
    sequential: list[Call], part: Part, length: int, longer: list[tuple[int, int]]
) -> None:
    """Each still takes effect when it did; more orders would explain it now."""
    calls = _first_calls(sequential, part, length)
    for index, (sooner, later) in enumerate(longer[:length], start=1):
        call = calls[-index]
        calls[-index] = call._replace(start_ns=call.start_ns - sooner, end_ns=call.end_ns + later)
    assert check(calls) == []


@given(part=parts, length=st.integers(1, 150), data=st.data())
def test_one_wrong_outcome_is_found(
    sequential: list[Call], part: Part, length: int, data: st.DataObject
) -> None:
    *before, last = _first_calls(sequential, part, length)
    outcomes = {OK, "ENOENT", "EEXIST", "ENOTEMPTY", "EIO"} - {last.outcome}
    wrong = [last._replace(outcome=outcome) for outcome in sorted(outcomes)]
    if last.action == "read" and last.seen:
        other = "0" if last.seen != ("0",) else "0.1"
        wrong += [last._replace(seen=(*last.seen[:-1], other))]
        if part.kind == "log":
            wrong += [last._replace(seen=last.seen[1:])]
    assert explains(check([*before, data.draw(st.sampled_from(wrong))]), ">> ")


def _first_calls(history: Sequence[Call], part: Part, length: int) -> list[Call]:
    return [call for call in history if call.part == part.name][:length]


@st.composite
def register_calls(draw: st.DrawFn) -> list[Call]:
    """Return a few calls with any times; what they read is likely wrong."""
    calls = []
    for number in range(draw(st.integers(1, 5))):
        start, length = draw(st.integers(0, 20)), draw(st.integers(1, 12))
        if draw(st.booleans()):
            calls.append(value("replaced", start, start + length, "write", seen=f"{number}.1"))
        else:
            seen = draw(st.sampled_from(("0", *(call.seen[0] for call in calls))))
            calls.append(value("replaced", start, start + length, "read", seen=seen))
    return calls


@given(calls=register_calls())
def test_an_order_is_found_if_and_only_if_there_is_one(calls: list[Call]) -> None:
    found = linearize(calls, RegisterModel()) is None
    assert found == any(map(_is_right, permutations(calls)))


def _is_right(order: Sequence[Call]) -> bool:
    """Return whether calls can have come in this order, and are right one after the other."""
    holds = "0"
    latest_start = 0
    for call in order:
        latest_start = max(latest_start, call.start_ns)
        if call.end_ns < latest_start:
            return False
        if call.action == "write":
            (holds,) = call.seen
        elif call.seen != (holds,):
            return False
    return True


# --- the record ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["[]", "{}", "[1, 2, 3]", '[1, 2, 0, "flat", "open", "a", "ok", []]']
)
def test_what_is_no_record(text: str) -> None:
    with pytest.raises(ValueError, match="not a call"):
        load(text)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_violations_that_were_seen_are_found_again(path: Path) -> None:
    assert check(load(path.read_text()))
