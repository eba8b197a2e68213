"""What a mount is asked to do: options, defaults and exit codes, from argv to one frozen record."""

from __future__ import annotations

import difflib
import enum
import importlib.metadata
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aspenfs.errors import StartupError

DEFAULT_VOLUME: Final = "default"
SUBTYPE: Final = "aspenfs"
ROOT_DATA_DIR: Final = Path("/var/lib/aspenfs")

_SOURCE_PREFIX: Final = "aspenfs:"


class ExitCode(enum.IntEnum):
    """What each command ends with. docs/operations.md has the table for users."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CHECK_FOUND_PROBLEMS = 4  # as fsck(8): errors left uncorrected
    MOUNTPOINT_MISSING = 10
    MOUNTPOINT_NOT_DIRECTORY = 11
    MOUNTPOINT_NOT_EMPTY = 12
    MOUNTPOINT_IN_USE = 13
    MOUNTPOINT_PERMISSION = 14
    FUSE_MISSING = 20
    FUSE_PERMISSION = 21
    FUSERMOUNT_MISSING = 22
    ALLOW_OTHER_FORBIDDEN = 23
    MOUNT_FAILED = 24
    MOUNT_SILENT = 25
    DATA_PERMISSION = 30
    DATA_LOCKED = 31
    DATA_DAMAGED = 32
    DATA_NEWER_FORMAT = 33
    DATA_MISSING = 34
    NOT_MOUNTED = 40
    BUSY = 41
    STILL_RUNNING = 42
    KEY_ABSENT = 43
    INTERNAL = 70  # EX_SOFTWARE, sysexits.h


@dataclass(frozen=True, slots=True, kw_only=True)
class MountConfig:
    """One mount. Paths are absolute; ``kernel_options`` are mount(8)'s words for the kernel.

    ``log_file`` None means standard error in the foreground, else :attr:`default_log_file`.
    """

    mountpoint: Path
    data_dir: Path
    volume: str = DEFAULT_VOLUME
    read_only: bool = False
    allow_other: bool = False
    nonempty: bool = False
    log_file: Path | None = None
    kernel_options: tuple[str, ...] = ()

    @property
    def default_log_file(self) -> Path:
        """Where a mount in the background logs unless told otherwise."""
        return self.data_dir / "aspenfs.log"

    def arguments(self) -> list[str]:
        """Return the arguments of ``aspenfs mount`` that give this configuration again."""
        words = ["ro" if self.read_only else "rw", *self.kernel_options]
        words += ["allow_other"] if self.allow_other else []
        words += ["nonempty"] if self.nonempty else []
        log = ["--log-file", str(self.log_file)] if self.log_file else []
        return [
            f"--data={self.data_dir}",
            f"--volume={self.volume}",
            *log,
            "-o",
            ",".join(words),
            "--",
            str(self.mountpoint),
        ]

    def fuse_options(self) -> set[str]:
        """Return the options for libfuse.

        The kernel checks permissions (``default_permissions``), always: the filesystem does not.
        """
        options = {
            f"fsname={source_of(self.data_dir)}",
            f"subtype={SUBTYPE}",
            "default_permissions",
            *self.kernel_options,
        }
        if self.allow_other:
            options.add("allow_other")
        if self.read_only:
            options.add("ro")
        return options


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What the words of ``-o`` say; None and () where they say nothing."""

    read_only: bool | None = None
    allow_other: bool = False
    nonempty: bool = False
    data_dir: Path | None = None
    volume: str | None = None
    log_file: Path | None = None
    kernel_options: tuple[str, ...] = ()


_KERNEL_PAIRS: Final = (
    ("dev", "nodev"),
    ("suid", "nosuid"),
    ("exec", "noexec"),
    ("async", "sync"),
)
_KERNEL_WORDS: Final = frozenset({"noatime", "nodiratime", "dirsync"}.union(*_KERNEL_PAIRS))
_OPPOSITE: Final = {
    word: other for pair in _KERNEL_PAIRS for word, other in (pair, tuple(reversed(pair)))
}

# What stands in /etc/fstab for mount(8), systemd or the boot order, or is the case anyway.
_SWALLOWED_WORDS: Final = frozenset(
    {
        "_netdev",
        "atime",
        "auto",
        "default_permissions",
        "defaults",
        "diratime",
        "group",
        "lazytime",
        "loud",
        "noauto",
        "nofail",
        "nogroup",
        "nolazytime",
        "noowner",
        "norelatime",
        "nostrictatime",
        "nouser",
        "nousers",
        "owner",
        "relatime",
        "silent",
        "strictatime",
        "user",
        "users",
    }
)
_SWALLOWED_NAMES: Final = frozenset({"comment", "helper", "uhelper", "user"})
_OWN_WORDS: Final = frozenset({"ro", "rw", "allow_other", "nonempty"})
_VALUE_NAMES: Final = frozenset({"data", "volume", "log_file"})
_KNOWN: Final = sorted(_KERNEL_WORDS | _SWALLOWED_WORDS | _OWN_WORDS | _VALUE_NAMES)

# A comma or backslash in a value is written with a backslash before it, as mount(8) and libfuse do.
_WORD: Final = re.compile(r"(?:[^,\\]|\\.)+")


def parse_options(texts: Sequence[str], *, sloppy: bool = False) -> MountOptions:
    """Read the values of all ``-o`` options; a later word beats an earlier one.

    Args:
        texts: comma-separated words, one string for each ``-o``.
        sloppy: leave out unknown words, as ``mount -s`` asks, in place of an error.

    Raises:
        StartupError: a word is unknown or has a value where it takes none, or none where it does.
    """
    flags: dict[str, bool] = {}
    values: dict[str, str] = {}
    kernel: dict[str, None] = {}
    for word in _words(texts):
        name, equals, value = word.partition("=")
        if _is_swallowed(name, has_value=bool(equals)):
            continue
        if name in _VALUE_NAMES and value:
            values[name] = value
        elif word in _KERNEL_WORDS:
            kernel.pop(_OPPOSITE.get(word, word), None)
            kernel[word] = None
        elif word in {"ro", "rw"}:
            flags["ro"] = word == "ro"
        elif word in _OWN_WORDS:
            flags[word] = True
        elif not sloppy:
            raise StartupError(_unknown(word, name), ExitCode.USAGE)
    return MountOptions(
        read_only=flags.get("ro"),
        allow_other=flags.get("allow_other", False),
        nonempty=flags.get("nonempty", False),
        data_dir=_optional_path(values.get("data")),
        volume=values.get("volume"),
        log_file=_optional_path(values.get("log_file")),
        kernel_options=tuple(kernel),
    )


def _words(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        for match in _WORD.finditer(text):
            yield re.sub(r"\\(.)", r"\1", match[0])


def _is_swallowed(name: str, *, has_value: bool) -> bool:
    if name.startswith(("x-", "X-")):
        return True
    return name in (_SWALLOWED_NAMES if has_value else _SWALLOWED_WORDS)


def _optional_path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _unknown(word: str, name: str) -> str:
    if name in _VALUE_NAMES:
        return f"mount option '{name}' needs a value: write -o {name}=VALUE"
    if name == "remount":
        return "mount option 'remount' is not supported: unmount and mount again"
    near = difflib.get_close_matches(name, _KNOWN, n=1)
    cure = f"did you mean '{near[0]}'?" if near else "'aspenfs mount --help' lists them"
    return f"unknown mount option '{word}': {cure}"


def default_data_dir(environ: Mapping[str, str], *, privileged: bool) -> Path:
    """Return the data directory for who did not name one.

    Args:
        environ: the process environment.
        privileged: root gets :data:`ROOT_DATA_DIR`, others a place of their own as the XDG base
            directory specification says (a relative ``XDG_DATA_HOME`` is invalid and ignored).

    Raises:
        StartupError: neither variable says where home is.
    """
    if privileged:
        return ROOT_DATA_DIR
    data_home = Path(environ.get("XDG_DATA_HOME", ""))
    if data_home.is_absolute():
        return data_home / "aspenfs"
    home = Path(environ.get("HOME", ""))
    if home.is_absolute():
        return home / ".local" / "share" / "aspenfs"
    raise StartupError(
        "no place for the data: HOME is not set; name a directory with --data DIR", ExitCode.USAGE
    )


def aspenfs_version() -> str:
    """Return the installed version."""
    try:
        return importlib.metadata.version("aspenfs")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "0+source"


def privileged_options(options: Sequence[str]) -> tuple[str, ...]:
    """Return the kernel options of a mount by root: devices and set-uid programs work, as on disk.

    libfuse forbids both unless told; who asked for ``nodev`` or ``nosuid`` keeps it.
    """
    added = (word for word in ("dev", "suid") if word not in options and f"no{word}" not in options)
    return (*options, *added)


def source_of(data_dir: Path) -> str:
    """Return what the mount table shows as the source of a mount of ``data_dir``.

    Percent-encoded, since libfuse's options take ASCII and no commas or blanks;
    :func:`data_dir_of` is the way back.
    """
    return _SOURCE_PREFIX + urllib.parse.quote(bytes(data_dir))


def data_dir_of(source: str) -> Path | None:
    """Return the data directory that a mount table's source names; None: it names none."""
    if not source.startswith(_SOURCE_PREFIX):
        return None
    path = Path(urllib.parse.unquote(source.removeprefix(_SOURCE_PREFIX), errors="surrogateescape"))
    return path if path.is_absolute() else None


def data_dir_of_fstab(source: str) -> Path | None:
    """Return the data directory of the first field of an /etc/fstab line; None: the default one.

    Raises:
        StartupError: the field is neither ``aspenfs``, ``none``, a data directory, nor a source as
            the mount table shows it.
    """
    if source in {"aspenfs", "none"}:
        return None
    path = data_dir_of(source) or Path(source)
    if not path.is_absolute():
        raise StartupError(
            f"source '{source}' is not known: write 'aspenfs' for the default data directory, "
            f"or the absolute path of one",
            ExitCode.USAGE,
        )
    return path
