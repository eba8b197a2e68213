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


class ServedPeer(FusePeer):
    """A filesystem on a server of its own, which runs on while the mount is made cold."""

    def __init__(
        self,
        scratch: Path,
        *,
        server: Sequence[str | Path],
        is_ready: Callable[[], bool],
        prepare: Callable[[], object] = lambda: None,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Take the two commands, and what is done once between them."""
        super().__init__(scratch, command, env)
        self._server_command = [*map(str, server)]
        self._is_ready = is_ready
        self._prepare = prepare
        self._server: subprocess.Popen[bytes] | None = None

    def mount(self) -> None:
        """Start the server if it does not run yet, then mount."""
        if self._server is None:
            with self._log.open("ab") as log:
                self._server = subprocess.Popen(
                    self._server_command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            system.await_condition(self._is_ready, self._server)
            self._prepare()
        super().mount()

    def abandon(self) -> None:
        """End both processes."""
        super().abandon()
        if self._server is not None:
            system.end(self._server)
            self._server = None


def aspenfs(scratch: Path) -> FusePeer:
    """Return aspenfs on an embedded server, as ``aspenfs mount`` starts it."""
    command = [sys.executable, "-m", "aspenfs", "mount", "--foreground"]
    return FusePeer(scratch, [*command, "--data", scratch / "data"])


def aspenfs_served(scratch: Path) -> ServedPeer:
    """Return aspenfs on a server of its own, over QUIC on the loopback device."""
    ticket = scratch / "data" / "admin.ticket"
    python = [sys.executable, "-m"]
    return ServedPeer(
        scratch,
        server=[*python, "aspenkv", "serve", "--data", ticket.parent, "--listen", "127.0.0.1:0"],
        is_ready=ticket.exists,
        command=[*python, "aspenfs", "mount", "--foreground", "--ticket", ticket],
    )


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
    format_command, mount_command, env = _juicefs_commands(
        scratch, program, f"sqlite3://{scratch}/meta.db"
    )
    system.run(format_command, env=env)
    return FusePeer(scratch, mount_command, env)


def juicefs_served(scratch: Path, program: Path | None) -> ServedPeer:
    """Return JuiceFS with its metadata on a redis server and its data in local files."""
    redis = shutil.which("redis-server")
    if redis is None:
        raise BenchError("redis-server is missing: run 'apt-get install redis-server'")
    port = system.free_port()
    format_command, mount_command, env = _juicefs_commands(
        scratch, program, f"redis://127.0.0.1:{port}/1"
    )
    server = [redis, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(scratch)]
    return ServedPeer(
        scratch,
        server=server,
        is_ready=lambda: system.listens(port),
        prepare=lambda: system.run(format_command, env=env),
        command=mount_command,
        env=env,
    )


def _juicefs_commands(
    scratch: Path, program: Path | None, database: str
) -> tuple[list[str | Path], list[str | Path], dict[str, str]]:
    """Return the commands that format and mount it, and the environment of both."""
    found = program or shutil.which("juicefs") or Path(sys.executable).with_name("juicefs")
    if not Path(found).exists():
        raise BenchError("juicefs is not on the PATH; leave it out, or name it: --juicefs FILE")
    store = ["--storage", "file", "--bucket", f"{scratch}/bucket/"]
    options = ["--no-usage-report", "--cache-dir", f"{scratch}/cache"]
    return (
        [found, "format", *store, database, "bench"],
        [found, "mount", *options, database],
        {"HOME": str(scratch)},
    )


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
