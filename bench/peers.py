"""The filesystems that are measured: how each is mounted, made cold and taken down."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Final, TypeVar

from bench import system
from bench.system import BenchError

_CACHE: Final = Path(".cache", "bench")


class Peer(ABC):
    """A filesystem that stands ready at :attr:`directory` while it is mounted."""

    def __init__(self, scratch: Path) -> None:
        """Take an empty directory, on a local disk, for all that the filesystem keeps."""
        self.scratch = scratch
        self.directory = scratch / "mnt"
        self.directory.mkdir()

    @abstractmethod
    def mount(self) -> None:
        """Make the filesystem answer at :attr:`directory`."""

    @abstractmethod
    def unmount(self) -> None:
        """Take it down in good order, with all that was written on the disk."""

    @abstractmethod
    def abandon(self) -> None:
        """Take it down after a failure, or do nothing if it is down."""

    def make_cold(self) -> None:
        """Empty every cache: mount it anew, with the kernel's caches dropped in between."""
        self.unmount()
        system.drop_caches()
        self.mount()


class Tmpfs(Peer):
    """The kernel alone, in memory: an upper bound, and nothing to make cold."""

    def __init__(self, scratch: Path) -> None:
        """Ask for root, whom alone the kernel lets mount."""
        super().__init__(scratch)
        if os.geteuid() != 0:
            raise BenchError("tmpfs is mounted by root only; leave it out, or run as root")

    def mount(self) -> None:
        """Mount it."""
        system.run(["mount", "-t", "tmpfs", "aspenfs-bench", self.directory])

    def unmount(self) -> None:
        """Unmount it."""
        system.run(["umount", self.directory])

    def abandon(self) -> None:
        """Detach it."""
        if self.directory.is_mount():
            system.run(["umount", "--lazy", self.directory])

    def make_cold(self) -> None:
        """Do nothing: its memory is its store."""


class FusePeer(Peer):
    """A filesystem that a process in the foreground serves."""

    def __init__(
        self, scratch: Path, command: Sequence[str | Path], env: Mapping[str, str] | None = None
    ) -> None:
        """Take the command, without the mountpoint, which is added at its end."""
        super().__init__(scratch)
        self._command = [*map(str, command), str(self.directory)]
        self._env = {**os.environ, **(env or {})}
        self._log = scratch / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        assert self._process is not None
        return self._process.pid

    def mount(self) -> None:
        """Start the process, and wait until the mount answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            system.await_mount(self.directory, self._process)
        except BenchError as error:
            last = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise BenchError(f"{error}; its last words: {last}") from None

    def unmount(self) -> None:
        """Unmount, and wait for the process to end."""
        assert self._process is not None
        system.unmount(self.directory, self._process)
        self._process = None

    def abandon(self) -> None:
        """End the process, and detach the mount."""
        if self._process is not None:
            system.abandon(self.directory, self._process)
            self._process = None


def aspenfs(scratch: Path) -> FusePeer:
    """Return aspenfs on an embedded server, as ``aspenfs mount`` starts it."""
    command = [sys.executable, "-m", "aspenfs", "mount", "--foreground"]
    return FusePeer(scratch, [*command, "--data", scratch / "data"])


def passthrough(scratch: Path, program: Path | None) -> FusePeer:
    """Return pyfuse3's own example: what a filesystem costs that only passes calls on."""
    source = scratch / "source"
    source.mkdir()
    return FusePeer(scratch, [sys.executable, program or _passthrough_example(), source])


def _passthrough_example() -> Path:
    """Return the example of the installed release of pyfuse3, out of its source distribution."""
    version = metadata.version("pyfuse3")
    example = _CACHE / f"pyfuse3-{version}" / "examples" / "passthroughfs.py"
    if not example.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as download:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            system.run([*pip, "--no-binary", ":all:", "--dest", download, f"pyfuse3=={version}"])
            archive = next(Path(download).glob("*.tar.gz"))
            shutil.unpack_archive(archive, _CACHE)
    return example.resolve()


def juicefs(scratch: Path, program: Path | None) -> FusePeer:
    """Return JuiceFS with its metadata in sqlite and its data in local files."""
    found = program or shutil.which("juicefs") or Path(sys.executable).with_name("juicefs")
    if not Path(found).exists():
        raise BenchError("juicefs is not on the PATH; leave it out, or name it: --juicefs FILE")
    database = f"sqlite3://{scratch}/meta.db"
    env = {"HOME": str(scratch)}
    bucket = f"{scratch}/bucket/"
    system.run(
        [found, "format", "--storage", "file", "--bucket", bucket, database, "bench"], env=env
    )
    options = ["--no-usage-report", "--cache-dir", f"{scratch}/cache"]
    return FusePeer(scratch, [found, "mount", *options, database], env)


P = TypeVar("P", bound=Peer)
PeerFactory = Callable[[Path], Peer]


@contextmanager
def mounted(factory: Callable[[Path], P], scratch_parent: Path) -> Iterator[P]:
    """Mount a new, empty filesystem; at the end nothing of it is left, whatever happened."""
    with tempfile.TemporaryDirectory(prefix="aspenfs-bench-", dir=scratch_parent) as scratch:
        peer = factory(Path(scratch))
        try:
            peer.mount()
            yield peer
            peer.unmount()
        finally:
            peer.abandon()
