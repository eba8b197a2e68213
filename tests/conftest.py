"""What holds for every test: hypothesis profiles, what a mount needs, and a silent log."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Deadlines measure the machine, not the code; a slow example is no error.
settings.register_profile(
    "dev", max_examples=30, stateful_step_count=30, deadline=None, print_blob=True
)
settings.register_profile(
    "ci",
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long", settings.get_profile("dev"), max_examples=5_000, stateful_step_count=100
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


class _Recorder(logging.Handler):
    """Keeps the log records of one test."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "logs(*patterns): the test logs warnings or errors that match these regular expressions, "
        "each at least once; any other such record fails a test",
    )


def missing_for_mounts() -> str | None:
    """Return why nothing can be mounted here, with the cure, or None."""
    if shutil.which("fusermount3") is None:
        return "fusermount3 is not installed; run: apt-get install fuse3"
    if not Path("/dev/fuse").exists():
        return "/dev/fuse does not exist; run: modprobe fuse (in a container: --device /dev/fuse)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse may not be opened by this user; run: chmod 666 /dev/fuse"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, never skip, a mount test on a machine that cannot mount."""
    if item.get_closest_marker("mount") is not None:
        missing = missing_for_mounts()
        if missing is not None:
            pytest.fail(f"this test mounts a filesystem: {missing}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test whose warnings and errors in the log are not exactly those it announced."""
    recorder = _Recorder()
    root = logging.getLogger()
    root.addHandler(recorder)
    try:
        outcome = yield
    finally:
        root.removeHandler(recorder)
    marker = item.get_closest_marker("logs")
    patterns: tuple[str, ...] = marker.args if marker is not None else ()
    messages = [f"{record.name}: {record.getMessage()}" for record in recorder.records]
    unexpected = [
        message for message in messages if not any(re.search(each, message) for each in patterns)
    ]
    if unexpected:
        pytest.fail("unexpected in the log: " + "; ".join(unexpected), pytrace=False)
    absent = [
        each for each in patterns if not any(re.search(each, message) for message in messages)
    ]
    if absent:
        pytest.fail("missing in the log: " + "; ".join(absent), pytrace=False)
    return outcome
