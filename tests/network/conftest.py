"""What the tests over a network share."""

from tests.mount.conftest import workplace

__all__ = ["workplace"]  # a fixture is found where its name is
