"""Loads the compiled part in the way that makes pyfuse3 find its functions before libfuse's."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from aspenfs.fuse_extension._native import Request

_MODULE: Final = "aspenfs.fuse_extension._native"
_INTERFACE: Final = 1  # that module.c says it has: an older build may lie about


class Native(Protocol):
    """The module ``_native``; extension.h and module.c describe it."""

    LIBFUSE_VERSION: str
    CAP_DONT_MASK: int

    def arm(  # noqa: PLR0913  # one keyword for each setting
        self,
        *,
        receiver: Callable[[Request], None],
        interrupted: Callable[[int], None],
        operations: Sequence[str],
        want: int,
        do_not_want: int,
        max_background: int,
        congestion_threshold: int,
        kill_privileges: bool,
        direct_mmap: bool,
    ) -> None:
        """Extend the next session that pyfuse3 makes."""
        ...

    def disarm(self) -> None:
        """Leave later sessions as they are, and call Python no more."""
        ...

    def is_extended(self) -> bool:
        """Return whether a session is served that the extension has a part in."""
        ...

    def allows_direct_mmap(self) -> bool:
        """Return whether files that bypass the page cache can be mapped shared."""
        ...

    def last_request(self) -> tuple[int, int, int]:
        """Return unique, flags and lock owner of the request that was read last."""
        ...


def load(
    import_module: Callable[[str], ModuleType] = importlib.import_module,
) -> tuple[Native | None, str]:
    """Load the compiled part.

    RTLD_GLOBAL puts its symbols into the scope that all objects loaded later are searched in first;
    see "Symbol relocation" in dlopen(3). If pyfuse3 is there already and its symbols are bound,
    :meth:`Native.is_extended` will tell.

    Returns:
        The module, or None and why it is missing.
    """
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_GLOBAL)
    try:
        module = import_module(_MODULE)
    except ImportError as error:
        return None, str(error)
    finally:
        sys.setdlopenflags(flags)
    if getattr(module, "INTERFACE", 0) != _INTERFACE:
        return None, "it was built from other sources: install aspenfs anew"
    return cast("Native", module), ""


NATIVE, WHY_MISSING = load()
