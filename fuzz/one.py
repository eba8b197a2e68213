"""Fuzz one target with libFuzzer: ``python -m fuzz.one TARGET [LIBFUZZER-OPTION ...]``."""

from __future__ import annotations

import importlib
import sys

import atheris

_PACKAGE = "fuzz.targets"


def main() -> None:
    """Run until libFuzzer's limits end it, or with its exit code at the first crash."""
    program, name, *options = sys.argv
    # What a target imports is instrumented, so that libFuzzer sees which branches an input takes.
    with atheris.instrument_imports(include=["aspenkv", _PACKAGE]):
        target = importlib.import_module(f"{_PACKAGE}.{name}")
    atheris.Setup([program, *options], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
