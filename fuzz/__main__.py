"""Fuzz every target for a while, one after the other.

Inputs that reached new branches are kept in .cache/fuzz, and the next run begins with them. An
input that crashes a decoder, hangs it or makes it take too much memory stays there as well, and
the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from fuzz import targets

_CACHE: Final = Path(".cache/fuzz")
_INPUT_BYTES_MAX: Final = 4096  # longer ones find no other branches, and are slow
_INPUT_S_MAX: Final = 5  # for one input; it takes microseconds, with a handshake milliseconds
_RSS_MB_MAX: Final = 512


def names() -> list[str]:
    """Return the names of all targets."""
    return sorted(module.name for module in pkgutil.iter_modules(targets.__path__))


def fuzz(name: str, seconds: int) -> bool:
    """Fuzz one target; return whether nothing was found."""
    directory = _CACHE / name
    corpus = directory / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in importlib.import_module(f"{targets.__name__}.{name}").SEEDS:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fuzz.one", name, str(corpus)),
            f"-artifact_prefix={directory}/",
            f"-max_total_time={seconds}",
            f"-max_len={_INPUT_BYTES_MAX}",
            "-len_control=0",  # long inputs from the start: most targets take several steps
            f"-timeout={_INPUT_S_MAX}",
            f"-rss_limit_mb={_RSS_MB_MAX}",
            "-print_final_stats=1",
        ],
        check=False,
    )
    return done.returncode == 0


def main() -> int:
    """Fuzz what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    time = parser.add_mutually_exclusive_group()
    time.add_argument("--seconds", type=int, default=60, help="for each target")
    time.add_argument("--total", type=int, help="seconds for all targets together")
    parser.add_argument("target", nargs="*", choices=[[], *names()], help="default: all")
    options = parser.parse_args()
    chosen: list[str] = options.target or names()
    seconds = options.seconds if options.total is None else max(1, options.total // len(chosen))
    failed = [name for name in chosen if not fuzz(name, seconds)]
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}; the inputs are in {_CACHE}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
