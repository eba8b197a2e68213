"""What the commands print: tables for people, JSON for programs, names that are not text."""

from __future__ import annotations

import datetime
import io
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aspenfs.metadata import NS_PER_S

_UNBOUNDED_COLUMNS: Final = 100_000
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(\\))")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NOT_PLAIN: Final = re.compile(rb"[^ -~]|\\")


def displayed(text: str | Path) -> str:
    r"""Return a path, or a line with paths in it, for the screen.

    What is no UTF-8 in it and what steers a terminal or would begin a new line is shown as
    ``\xNN``.
    """
    decoded = os.fsencode(text).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", decoded)


def escaped(data: bytes) -> str:
    r"""Return bytes as ASCII text: what is not printable as ``\xNN``, a backslash doubled."""
    return _NOT_PLAIN.sub(
        lambda match: b"\\\\" if match[0] == b"\\" else b"\\x%02x" % match[0][0], data
    ).decode("ascii")


def unescaped(text: str) -> bytes:
    r"""Return the bytes that text means: ``\xNN`` is a byte, ``\\`` a backslash, the rest UTF-8."""
    return _ESCAPE.sub(
        lambda match: b"\\" if match[2] else bytes((int(match[1], 16),)), os.fsencode(text)
    )


def print_fields(rows: Iterable[tuple[str, object]]) -> None:
    """Print names and values in two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(str(value)))
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table: to a terminal as wide as that is, else as wide as it needs."""
    if sys.stdout.isatty():
        Console().print(table)
        return
    # A file or pipe has no width to keep to, and no use for blanks at the end.
    with io.StringIO() as text:
        Console(file=text, width=_UNBOUNDED_COLUMNS).print(table)
        for line in text.getvalue().splitlines():
            click.echo(line.rstrip())


def print_json(value: object) -> None:
    """Print a value as JSON, bytes as :func:`escaped` text."""
    click.echo(json.dumps(_plain(value), indent=2))


def _plain(value: object) -> object:
    """Return a value with nothing but what JSON knows."""
    if isinstance(value, bytes):
        return escaped(value)
    if isinstance(value, str):
        return displayed(value)
    if isinstance(value, dict):
        return {str(_plain(name)): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def readable_bytes(size: int) -> str:
    """Return a size for people: three digits or so, and a unit."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


def readable_time(time_ns: int) -> str:
    """Return a time in UTC; seconds since the epoch where no calendar reaches."""
    seconds, ns = divmod(time_ns, NS_PER_S)
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"@{seconds}.{ns:09}"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ns:09} UTC"
