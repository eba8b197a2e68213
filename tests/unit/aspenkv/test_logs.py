"""What the server's log looks like."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aspenkv.logs import JsonFormatter, log_to_stderr


@contextmanager
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Log to no handlers of pytest's, which would be closed, and leave no trace."""
    root, ours = logging.getLogger(), logging.getLogger("aspenkv")
    levels = root.level, ours.level
    with monkeypatch.context() as patch:
        patch.setattr(root, "handlers", [])
        yield
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def record_of(message: str, *arguments: object, failed: bool = False) -> logging.LogRecord:
    error = sys.exc_info() if failed else None
    record = logging.LogRecord(
        "aspenkv.listen", logging.WARNING, "file.py", 1, message, arguments, error
    )
    record.created = 1_700_000_000.25
    return record


def test_a_record_is_one_object_on_one_line() -> None:
    line = JsonFormatter().format(record_of("it is %s:\n%r", "said", "ä"))
    assert "\n" not in line
    assert line.isascii()
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "WARNING",
        "logger": "aspenkv.listen",
        "message": "it is said:\n'ä'",
    }


def test_a_traceback_belongs_to_its_record() -> None:
    line = ""
    try:
        int("none")
    except ValueError:
        line = JsonFormatter().format(record_of("failed", failed=True))
    assert "\n" not in line
    assert json.loads(line)["traceback"].endswith("base 10: 'none'")


@pytest.mark.parametrize("as_json", [False, True])
def test_our_words_and_the_warnings_of_others_go_to_standard_error(
    as_json: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_logging(monkeypatch):
        log_to_stderr(as_json=as_json)
        logging.getLogger("aspenkv.test").info("what we say")
        logging.getLogger("aspenkv.test").debug("what we think")
        logging.getLogger("others").info("what others say")
        logging.getLogger("others").warning("a warning of others")
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    if as_json:
        found = [json.loads(line) for line in (first, second)]
        assert [line["message"] for line in found] == ["what we say", "a warning of others"]
        assert datetime.datetime.fromisoformat(found[0]["time"]).tzinfo is not None
    else:
        assert first.endswith("INFO aspenkv.test: what we say")
        assert second.endswith("WARNING others: a warning of others")
