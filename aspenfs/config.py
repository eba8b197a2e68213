"""What a mount is asked to do: options, defaults and exit codes, from argv to one frozen record."""

from __future__ import annotations

import difflib
import enum
import hashlib
import importlib.metadata
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from aspenfs.errors import StartupError
from aspenfs.types import CoherenceLevel

DEFAULT_VOLUME: Final = "default"
SUBTYPE: Final = "aspenfs"
ROOT_DATA_DIR: Final = Path("/var/lib/aspenfs")
ROOT_STATE_DIR: Final = Path("/var/lib/aspenfs-mounts")

TICKET_VARIABLE: Final = "ASPENFS_TICKET"
"""The environment variable that holds a ticket's text."""

DEFAULT_LISTEN: Final = "127.0.0.1:0"
NO_ADDRESS: Final = "none"
DEFAULT_TIMEOUT_S: Final = 30.0

_SOURCE_PREFIX: Final = "aspenfs:"
_STATE_NAME_CHARACTERS_MAX: Final = 100


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
    SERVER_UNREACHABLE = 50
    SERVER_KEY_WRONG = 51
    PROTOCOL_MISMATCH = 52
    ADDRESS_UNUSABLE = 53
    TICKET_UNREADABLE = 60
    TICKET_DAMAGED = 61
    TICKET_UNKNOWN = 62
    TICKET_EXPIRED = 63
    TICKET_REVOKED = 64
    TICKET_OF_OTHER_VOLUME = 65
    TICKET_TOO_WEAK = 66
    INTERNAL = 70  # EX_SOFTWARE, sysexits.h


E = TypeVar("E", bound=enum.StrEnum)


class Carrier(enum.StrEnum):
    """How the mount that hosts the store reaches it."""

    DIRECT = "direct"
    QUIC = "quic"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedStore:
    """A store that the mount's own process serves, to itself and to who has a ticket.

    ``listen`` is ``HOST:PORT``, with port 0 for one that the kernel picks; None: for itself only.
    ``advertise`` are the addresses by which others reach it, if not that one.
    """

    data_dir: Path
    listen: str | None = DEFAULT_LISTEN
    advertise: tuple[str, ...] = ()
    carrier: Carrier = Carrier.DIRECT

    def arguments(self) -> list[str]:
        """Return the arguments of ``aspenfs mount`` that name this store."""
        return [
            f"--data={self.data_dir}",
            f"--listen={self.listen or NO_ADDRESS}",
            *(f"--advertise={address}" for address in self.advertise),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteStore:
    """A store that a server elsewhere serves; the ticket names it.

    ``ticket_file`` None: the ticket is in the environment, as :data:`TICKET_VARIABLE`.
    ``state_dir`` is where the mount keeps its control socket and log.
    """

    ticket_file: Path | None
    state_dir: Path

    def arguments(self) -> list[str]:
        """Return the arguments of ``aspenfs mount`` that name this store."""
        return [] if self.ticket_file is None else [f"--ticket={self.ticket_file}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountConfig:
    """One mount. Paths are absolute; ``kernel_options`` are mount(8)'s words for the kernel.

    ``volume`` None means the ticket's own, or else the default one. ``timeout_s`` bounds each call
    of a store that is reached over a network. ``log_file`` None means standard error in the
    foreground, else :attr:`default_log_file`. With ``local_locks`` file locks are the kernel's, for
    this mount alone.
    """

    mountpoint: Path
    store: HostedStore | RemoteStore
    volume: str | None = None
    read_only: bool = False
    allow_other: bool = False
    nonempty: bool = False
    local_locks: bool = False
    coherence: CoherenceLevel = CoherenceLevel.DEFAULT
    timeout_s: float = DEFAULT_TIMEOUT_S
    log_file: Path | None = None
    kernel_options: tuple[str, ...] = ()

    @property
    def state_dir(self) -> Path:
        """Where the control socket is, which is also the mount's name in the mount table."""
        if isinstance(self.store, HostedStore):
            return self.store.data_dir
        return self.store.state_dir

    @property
    def is_networked(self) -> bool:
        """Whether the mount's own calls of its store go over a network."""
        return isinstance(self.store, RemoteStore) or self.store.carrier is Carrier.QUIC

    @property
    def default_log_file(self) -> Path:
        """Where a mount in the background logs unless told otherwise."""
        return self.state_dir / "aspenfs.log"

    def arguments(self) -> list[str]:
        """Return the arguments of ``aspenfs mount`` that give this configuration again."""
        words = ["ro" if self.read_only else "rw", *self.kernel_options]
        words += ["allow_other"] if self.allow_other else []
        words += ["nonempty"] if self.nonempty else []
        words += ["local_locks"] if self.local_locks else []
        if isinstance(self.store, HostedStore):
            words += [f"carrier={self.store.carrier}"]
        return [
            *self.store.arguments(),
            *([f"--volume={self.volume}"] if self.volume else []),
            f"--coherence={self.coherence}",
            f"--timeout={self.timeout_s}",
            *(["--log-file", str(self.log_file)] if self.log_file else []),
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
            f"fsname={source_of(self.state_dir)}",
            f"subtype={SUBTYPE}",
            "default_permissions",
            *self.kernel_options,
        }
        if self.allow_other:
            options.add("allow_other")
        if self.read_only:
            options.add("ro")
        return options


class Mounted(NamedTuple):
    """What a mount says of itself when it answers.

    ``addresses`` are where its store listens for others, or for a remote store where that is;
    ``ticket_file`` is for others to use, if this mount hosts the store and listens.
    """

    volume: str
    read_only: bool
    addresses: list[str]
    ticket_file: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What the words of ``-o`` say; None and () where they say nothing."""

    read_only: bool | None = None
    allow_other: bool = False
    nonempty: bool = False
    local_locks: bool = False
    data_dir: Path | None = None
    ticket_file: Path | None = None
    listen: str | None = None
    carrier: Carrier | None = None
    coherence: CoherenceLevel | None = None
    timeout: str | None = None
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
_OWN_WORDS: Final = frozenset({"ro", "rw", "allow_other", "local_locks", "nonempty"})
_VALUE_NAMES: Final = frozenset(
    {"carrier", "coherence", "data", "listen", "log_file", "ticket", "timeout", "volume"}
)
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
        local_locks=flags.get("local_locks", False),
        data_dir=_optional_path(values.get("data")),
        ticket_file=_optional_path(values.get("ticket")),
        listen=values.get("listen"),
        carrier=_one_of(Carrier, "carrier", values.get("carrier")),
        coherence=_one_of(CoherenceLevel, "coherence", values.get("coherence")),
        timeout=values.get("timeout"),
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


def _one_of(kind: type[E], name: str, value: str | None) -> E | None:
    try:
        return None if value is None else kind(value)
    except ValueError:
        raise StartupError(
            f"{name} '{value}' is not known: use one of {', '.join(kind)}", ExitCode.USAGE
        ) from None


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
        privileged: root gets :data:`ROOT_DATA_DIR`, others a place of their own.

    Raises:
        StartupError: the environment does not say where home is.
    """
    if privileged:
        return ROOT_DATA_DIR
    return _own_directory(environ, "XDG_DATA_HOME", ".local/share") / "aspenfs"


def state_dir_of_mount(mountpoint: Path, environ: Mapping[str, str], *, privileged: bool) -> Path:
    """Return the directory in which a mount of a remote store keeps its socket and its log.

    Its name tells people the mountpoint, and programs by a hash, since two paths may read the same.

    Raises:
        StartupError: the environment does not say where home is.
    """
    place = bytes(mountpoint)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", str(mountpoint)).strip("-")
    name = f"{readable[-_STATE_NAME_CHARACTERS_MAX:]}-{hashlib.sha256(place).hexdigest()[:8]}"
    if privileged:
        return ROOT_STATE_DIR / name
    return _own_directory(environ, "XDG_STATE_HOME", ".local/state") / "aspenfs" / name


def _own_directory(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    """Follow the XDG base directory specification: a relative path in a variable is ignored."""
    named = Path(environ.get(variable, ""))
    if named.is_absolute():
        return named
    home = Path(environ.get("HOME", ""))
    if home.is_absolute():
        return home / below_home
    raise StartupError(
        f"HOME is not set, so there is no place for this user's files: set it, or {variable}, or "
        f"name a data directory with --data DIR",
        ExitCode.USAGE,
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


def source_of(state_dir: Path) -> str:
    """Return what the mount table shows as a mount's source: its data or state directory.

    Percent-encoded, since libfuse's options take ASCII and no commas or blanks;
    :func:`state_dir_of` is the way back.
    """
    return _SOURCE_PREFIX + urllib.parse.quote(bytes(state_dir))


def state_dir_of(source: str) -> Path | None:
    """Return the directory that a mount table's source names; None: it names none."""
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
    path = state_dir_of(source) or Path(source)
    if not path.is_absolute():
        raise StartupError(
            f"source '{source}' is not known: write 'aspenfs' for the default data directory, "
            f"or the absolute path of one",
            ExitCode.USAGE,
        )
    return path
