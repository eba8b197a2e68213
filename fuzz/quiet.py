"""The log while an input is tried: a warning or an error in it is a finding."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def quiet_log() -> Iterator[None]:
    """Fail if anything is logged as a warning or worse before the block ends.

    Raises:
        AssertionError: the message, and the traceback that was logged with it.
    """
    recorder = _Recorder()
    root = logging.getLogger()
    root.addHandler(recorder)
    try:
        yield
    finally:
        root.removeHandler(recorder)
    assert not recorder.records, "\n".join(map(logging.Formatter().format, recorder.records))
