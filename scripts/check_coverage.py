"""Fail, and show the lines that no test ran, if the coverage of branches is below its aims.

The pure modules are those of the import contract ``pure`` in pyproject.toml: nothing keeps a test
from reaching every branch of them. Run from the root of the repository, after ``coverage combine``.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

_PURE_PERCENT: Final = 100
_ALL_PERCENT: Final = 90
_SOURCE_ROOTS: Final = {"aspenfs": Path(), "aspenkv": Path("server")}


def pure_files() -> list[str]:
    """Return the files of the pure modules, relative to the root of the repository."""
    settings = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    modules = next(each["source_modules"] for each in contracts if each["id"] == "pure")
    return [str(_file_of(module)) for module in modules]


def _file_of(module: str) -> Path:
    package, _, rest = module.partition(".")
    return _SOURCE_ROOTS[package] / package / f"{rest.replace('.', '/')}.py"


def reached(what: str, percent: int, *options: str) -> bool:
    """Return whether the coverage of some files is ``percent`` at least; say what is missing."""
    command = [sys.executable, "-m", "coverage", "report", f"--fail-under={percent}", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(f"{done.stdout}{done.stderr}coverage of {what} is below {percent} %\n")
    return done.returncode == 0


def main() -> int:
    """Check both aims; return the exit code."""
    pure = reached("the pure modules", _PURE_PERCENT, f"--include={','.join(pure_files())}")
    whole = reached("the whole", _ALL_PERCENT)
    return 0 if pure and whole else 1


if __name__ == "__main__":
    sys.exit(main())
