"""docs/operations.md lists every exit code, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from aspenfs.config import ExitCode

_DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"


def test_exit_codes_are_those_of_the_enum() -> None:
    text = _DOCUMENT.read_text(encoding="utf-8").partition("## Exit codes")[2]
    documented = [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert documented == sorted(ExitCode)
