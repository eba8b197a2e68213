"""Where a serving process logs."""

from __future__ import annotations

import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from aspenfs.limits import LOG_FILE_BYTES_MAX, LOG_FILES_KEPT

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_STDOUT: Final = 1
_STDERR: Final = 2


def log_to_stderr() -> None:
    """Log to standard error, also what Python warns of."""
    logging.captureWarnings(capture=True)
    logging.basicConfig(level=logging.INFO, format=_FORMAT, stream=sys.stderr, force=True)


def log_to_file(path: Path) -> None:
    """Log to a file that is rotated and so never takes more than a few megabytes.

    Standard output and error go there too, for what no logger sees: libfuse's messages and the last
    words of a crash.

    Raises:
        OSError: the file cannot be written.
    """
    handler = RotatingFileHandler(path, maxBytes=LOG_FILE_BYTES_MAX, backupCount=LOG_FILES_KEPT)
    logging.captureWarnings(capture=True)
    logging.basicConfig(level=logging.INFO, format=_FORMAT, handlers=[handler], force=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    os.dup2(descriptor, _STDOUT)
    os.dup2(descriptor, _STDERR)
    os.close(descriptor)
