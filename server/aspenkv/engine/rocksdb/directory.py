"""Makes, checks and opens the data directory of the rocksdb engine. Blocks: call it in a thread."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from rocksdict import AccessType, Rdict

from aspenkv.engine.rocksdb.errors import TypedErrors
from aspenkv.engine.rocksdb.layout import LAYOUT, LAYOUT_VERSION, LAYOUT_VERSIONS
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
        if db.latest_sequence_number() == 0:  # nothing was ever written
            db.put(LAYOUT, LAYOUT_VERSION)
        _check_layout_or_close(db, path)
    return db


def open_read_only(path: Path) -> Rdict:
    """Open the database in ``path`` as it is now, whoever writes it meanwhile.

    Raises:
        DataCorruptError: it is damaged.
        EngineError: there is none, or it may not be read.
    """
    try:
        _refuse_other_content(path)
        if not (path / "CURRENT").exists():
            raise EngineError(f"{path} holds no database: name the directory that a server uses")
    except OSError as error:
        raise EngineError(
            f"data directory {path} cannot be read ({error.strerror}): name the directory that a "
            f"server uses"
        ) from error
    with TypedErrors(path):
        db = Rdict(str(path), database_options(), access_type=AccessType.read_only(False))
        _check_layout_or_close(db, path)
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


def _check_layout_or_close(db: Rdict, path: Path) -> None:
    try:
        _check_layout(db.get(LAYOUT), path)
    except BaseException:
        with suppress(Exception):  # what it says of the same damage
            db.close()
        raise


def _check_layout(stored: bytes | None, path: Path) -> None:
    if stored not in LAYOUT_VERSIONS:
        found = "no" if stored is None else stored.decode("latin-1")
        raise EngineError(
            f"{path} has storage layout {found}, this program knows "
            f"{max(LAYOUT_VERSIONS).decode()} and older: use the program that wrote it"
        )
