"""Prefixes as ranges of keys. Pure."""

from __future__ import annotations


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the first key behind all that start with ``prefix``; None if nothing lies there."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        return None
    return trimmed[:-1] + bytes((trimmed[-1] + 1,))
