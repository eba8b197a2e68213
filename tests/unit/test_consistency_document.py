"""docs/consistency.md promises nothing without the tests that hold it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_DOCUMENT = Path(__file__).parents[2] / "docs" / "consistency.md"
_TEST = re.compile(r"\[(?P<name>test_\w+)\]\((?P<path>\S+\.py)\)")


def sections() -> Iterator[tuple[str, str]]:
    """Yield each section of the second level: its title and its text."""
    text = _DOCUMENT.read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        yield title, body


def promises() -> Iterator[str]:
    """Yield each item that promises something."""
    for title, body in sections():
        if title.startswith("The promise"):
            yield from re.findall(r"^- .*(?:\n  .*)*", body, re.MULTILINE)
        elif title == "After a crash":
            yield from re.findall(r"^\| [^|-].*", body, re.MULTILINE)[1:]


def test_there_are_promises() -> None:
    assert len(list(promises())) > 20


@pytest.mark.parametrize("promise", list(promises()))
def test_each_promise_names_the_tests_that_hold_it(promise: str) -> None:
    assert _TEST.search(promise), promise


def test_each_test_that_is_named_exists() -> None:
    for link in _TEST.finditer(_DOCUMENT.read_text(encoding="utf-8")):
        source = (_DOCUMENT.parent / link["path"]).read_text(encoding="utf-8")
        assert re.search(rf"^(?:async )?def {link['name']}\(", source, re.MULTILINE), link[0]
