"""Opening a data directory: its store, or one line that says why not."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aspenfs.config import ExitCode
from aspenfs.control import serving_process
from aspenfs.errors import StartupError
from aspenfs.mountpoint import read_mounts
from aspenkv.engine.rocksdb import RocksdbEngine
from aspenkv.errors import DataCorruptError, DataDirectoryLockedError, EngineError
from aspenkv.hosting import ADMIN_TICKET_NAME

DIRECTORY_MODE = 0o700


@asynccontextmanager
async def open_storage(data_dir: Path, *, create: bool) -> AsyncIterator[RocksdbEngine]:
    """Open the store of a data directory, for this process alone, until the block ends.

    Args:
        data_dir: where it is.
        create: make the directory and an empty store if there is none.

    Raises:
        StartupError: it is missing, locked, damaged or forbidden.
    """
    async with AsyncExitStack() as stack:
        try:
            _check_directory(data_dir, create=create)
            engine = await stack.enter_async_context(RocksdbEngine.open(data_dir))
        except DataDirectoryLockedError as error:
            raise StartupError(_locked(data_dir, error), ExitCode.DATA_LOCKED) from None
        except DataCorruptError as error:
            raise StartupError(str(error), ExitCode.DATA_DAMAGED) from None
        except EngineError as error:
            raise StartupError(str(error), ExitCode.FAILURE) from None
        except OSError as error:
            raise _unusable(data_dir, error) from None
        yield engine


def _check_directory(data_dir: Path, *, create: bool) -> None:
    """Raise OSError where the engine could only fail, or would make what nobody asked for."""
    if create and not data_dir.exists():
        data_dir.mkdir(mode=DIRECTORY_MODE, parents=True)
    if not any(data_dir.iterdir()) and not create:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(data_dir))
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(data_dir))


def _unusable(data_dir: Path, error: OSError) -> StartupError:
    if isinstance(error, PermissionError):
        return StartupError(
            f"no permission on data directory {data_dir}: run as its owner or as root, or choose "
            f"another with --data DIR",
            ExitCode.DATA_PERMISSION,
        )
    if isinstance(error, FileNotFoundError):
        return StartupError(
            f"there is no data in {data_dir}: name the data directory with --data DIR, or make "
            f"one by mounting it read-write",
            ExitCode.DATA_MISSING,
        )
    return StartupError(
        f"data directory {data_dir} cannot be used ({error.strerror}): choose another with "
        f"--data DIR",
        ExitCode.FAILURE,
    )


def _locked(data_dir: Path, error: DataDirectoryLockedError) -> str:
    """Say who holds it: the mount if it is one, else what the engine knows."""
    pid = serving_process(data_dir)
    if pid is None:
        return f"{error}; if it serves that, use --ticket {data_dir / ADMIN_TICKET_NAME}"
    where = data_dir.resolve()
    for entry in read_mounts():
        if entry.state_dir == where:
            return (
                f"data directory {data_dir} is in use by the mount on {entry.mountpoint} "
                f"(process {pid}): use that one, unmount it with "
                f"'aspenfs umount {entry.mountpoint}', or choose another with --data DIR"
            )
    return (
        f"data directory {data_dir} is in use by process {pid}, which is mounting or unmounting: "
        f"try again when it is done, or choose another with --data DIR"
    )
