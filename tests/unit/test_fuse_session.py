from __future__ import annotations

import errno
import logging
import os

import pytest

from aspenfs.mount.fuse import _is_worth_a_line


@pytest.mark.parametrize(
    ("message", "arguments", "is_worth_a_line"),
    [
        ("fuse_release(): fuse_reply_* failed with %s", (os.strerror(errno.ENOENT),), False),
        ("fuse_release(): fuse_reply_* failed with %s", (os.strerror(errno.EINVAL),), True),
        ("no such thing: %s", (os.strerror(errno.ENOENT),), True),
        ("plain", (), True),
    ],
)
def test_only_a_reply_that_nobody_waits_for_is_left_out_of_the_log(
    message: str, arguments: tuple[str, ...], is_worth_a_line: bool
) -> None:
    record = logging.LogRecord("pyfuse3", logging.ERROR, "", 0, message, arguments, None)
    assert _is_worth_a_line(record) is is_worth_a_line
