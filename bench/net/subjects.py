"""What is measured, each beside those before it."""

from __future__ import annotations

from typing import Final

from bench.net import driver, plain, store
from bench.net.subject import Subject

SUBJECTS: Final = (
    Subject("plain aioquic", plain.serve, plain.connect),
    Subject("driver", driver.serve, driver.connect),
    Subject("pool and service", store.serve, store.connect),
)
