"""What the tests of faults share."""

from __future__ import annotations

import logging

import pytest

from tests.mount.conftest import mounted

__all__ = ["mounted"]  # a fixture is found where its name is


@pytest.fixture
def failures_may_be_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the filesystem's log out of the way of a test that meets failures in some runs only."""
    monkeypatch.setattr(logging.getLogger("aspenfs"), "propagate", False)
