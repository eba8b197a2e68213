"""Fuzz one target with libFuzzer: ``python -m fuzz.one TARGET [LIBFUZZER-OPTION ...]``."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Final

import atheris

_PACKAGE: Final = "fuzz.targets"
# What reads bytes from elsewhere is instrumented, so that libFuzzer sees which branches they take.
_INSTRUMENTED: Final = ["aspenfs", "aspenkv", "aioquic.quic", "aioquic.tls", _PACKAGE]


def main() -> None:
    """Run until libFuzzer's limits end it, or with its exit code at the first crash."""
    program, name, *options = sys.argv
    with atheris.instrument_imports(include=_INSTRUMENTED):
        target = importlib.import_module(f"{_PACKAGE}.{name}")

    def check(data: bytes) -> None:
        try:
            target.check(data)
        except BaseException:
            traceback.print_exc()  # atheris shows nothing of what is in an exception group
            raise

    atheris.Setup([program, *options], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
