"""The data folder: one owner at a time, and database errors told apart by what a user can do about them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from engine.errors import DataFolderError, StorageFull, SwitchyardError

_BUSY_TIMEOUT_MS = 5_000
_DISK_FULL = "53100"  # PostgreSQL's SQLSTATE
_UNUSABLE = {
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_PERM: "cannot be opened",
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_NOTADB: "is no database",
    sqlite3.SQLITE_IOERR: "cannot be read or written",
    sqlite3.SQLITE_BUSY: "is locked by another program",
    sqlite3.SQLITE_LOCKED: "is locked by another program",
}


class FolderLock:
    """Owns a data folder until `release` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        """Create the folder where needed and lock it.

        Raises: DataFolderError when it cannot be written or another process owns it.
        """
        path = folder / "lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise DataFolderError(
                f"{folder}: cannot be written ({error.strerror}). Name another folder with --data or SWITCHYARD_DATA."
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise DataFolderError(
                f"{folder}: another server uses this data folder. Stop it, or name another with --data."
            ) from None

    def release(self) -> None:
        """Give the folder up; may be called twice."""
        self._file.close()


def connect(url: str, *, is_read_only: bool = False) -> Engine:
    """A pool of connections; on SQLite every commit reaches the disk before it returns."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_reader if is_read_only else _configure_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    _set(connection, "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_TIMEOUT_MS}")


def _configure_reader(connection: Any, _record: Any) -> None:
    _set(connection, "query_only=ON", f"busy_timeout={_BUSY_TIMEOUT_MS}")


def _set(connection: Any, *pragmas: str) -> None:
    cursor = connection.cursor()
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def begin(connection: Connection, *, is_write: bool) -> None:
    """Start a transaction now, whose reads all see the same moment.

    SQLite's driver starts one at the first change only: tables made and rows read before are not part of it.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
    elif not is_write:
        connection.execution_options(isolation_level="REPEATABLE READ")


def move_into_place(partial: Path, final: Path) -> None:
    """Give a finished file its name: after a crash, `final` is what it was before or all of the new file."""
    _sync(partial)
    partial.replace(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn database errors into StorageFull or DataFolderError naming `where`."""
    try:
        yield
    except DBAPIError as error:
        translated = _translated(error, where)
        if translated is None:
            raise
        raise translated from error


def _translated(error: DBAPIError, where: str) -> SwitchyardError | None:
    original = error.orig
    code = getattr(original, "sqlite_errorcode", None)
    # The write-ahead log reports a full disk as an I/O error on some file systems.
    is_full = code == sqlite3.SQLITE_FULL or getattr(original, "sqlstate", None) == _DISK_FULL
    if is_full or (code is not None and code & 0xFF == sqlite3.SQLITE_IOERR and _has_no_room(where)):
        return StorageFull(where)
    what = _UNUSABLE.get(code & 0xFF) if code is not None else None
    if what is None:
        return None
    return DataFolderError(f"{where}: {what} ({original}). Check the folder, or name another with --data.")


def _has_no_room(where: str) -> bool:
    try:
        return shutil.disk_usage(where).free < 1 << 20
    except OSError:
        return False
