"""The one part of the build that pyproject.toml cannot say: the C extension beside pyfuse3.

It is built with the libfuse that pkg-config names, as pyfuse3 is. It is optional: a mount runs
without it and says what it lacks, so a libfuse that is too old is no reason to fail.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from setuptools import Extension, setup

_SOURCES = Path("aspenfs/fuse_extension")


def pkg_config(option: str) -> list[str]:
    """Return what pkg-config answers about libfuse; nothing if it knows none, and gcc says so."""
    try:
        done = subprocess.run(  # noqa: S603
            ["pkg-config", option, "fuse3"],  # noqa: S607  # as the PATH of who builds has it
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return shlex.split(done.stdout)


setup(
    ext_modules=[
        Extension(
            "aspenfs.fuse_extension._native",
            sources=sorted(str(path) for path in _SOURCES.glob("*.c")),
            depends=[str(_SOURCES / "extension.h")],
            # What stands before libfuse's functions is named in session.c, and nothing else does.
            extra_compile_args=[*pkg_config("--cflags"), "-std=gnu11", "-fvisibility=hidden"],
            extra_link_args=pkg_config("--libs"),
            optional=True,
        )
    ]
)
