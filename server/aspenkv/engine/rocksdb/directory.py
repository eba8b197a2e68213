"""Makes, checks and opens the data directory of the rocksdb engine. Blocks: call it in a thread."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rocksdict import Rdict

from aspenkv.engine.rocksdb.errors import TypedErrors
from aspenkv.engine.rocksdb.layout import LAYOUT, LAYOUT_VERSION
from aspenkv.engine.rocksdb.options import database_options
from aspenkv.errors import DataCorruptError, EngineError

DIRECTORY_MODE: Final = 0o700


def open_database(path: Path) -> Rdict:
    """Open the database in ``path``; an absent or empty directory becomes a new one.

    Raises:
        DataDirectoryLockedError: another process has it open.
        DataCorruptError: it is damaged.
        EngineError: the directory cannot be made, or holds something else.
    """
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        _refuse_other_content(path)
        path.chmod(DIRECTORY_MODE)  # rocksdb makes its files readable for all
    except OSError as error:
        raise EngineError(
            f"data directory {path} cannot be used ({error.strerror}): name another directory"
        ) from error
    with TypedErrors(path):
        db = Rdict(str(path), database_options())
    try:
        _check_layout(db, path)
    except BaseException:
        db.close()
        raise
    return db


def close_database(db: Rdict, path: Path) -> None:
    """Sync and close a database. It is closed even if an error is raised.

    Raises:
        EngineError: what was written last could not be flushed.
    """
    with TypedErrors(path):
        db.close()


def _refuse_other_content(path: Path) -> None:
    """Refuse a directory in which rocksdb would lay a new database over something else."""
    names = {entry.name for entry in path.iterdir()}
    if not names or "CURRENT" in names:
        return
    if any(name.endswith((".sst", ".blob")) or name.startswith("MANIFEST") for name in names):
        raise DataCorruptError(
            f"{path} holds a database without its CURRENT file: restore the directory from a "
            f"backup, or move it away"
        )
    raise EngineError(f"{path} holds files that are not a database: name an empty directory")


def _check_layout(db: Rdict, path: Path) -> None:
    stored = db.get(LAYOUT)
    if stored is None:
        db.put(LAYOUT, LAYOUT_VERSION)
    elif stored != LAYOUT_VERSION:
        raise EngineError(
            f"{path} is of storage layout {stored.decode(errors='replace')}, this program knows "
            f"{LAYOUT_VERSION.decode()}: use the program that wrote it"
        )
