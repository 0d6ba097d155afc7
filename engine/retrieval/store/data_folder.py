"""The data folder: one owner at a time, and database errors told apart by what a user can do about them."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from engine.errors import DataFolderError, StorageFull, SwitchyardError
from engine.retrieval.store.database import Settled, begin_write
from engine.retrieval.store.migrations import prepare_schema

DATABASE_FILE = "knowledge.sqlite3"
_BUSY_TIMEOUT_MS = 5_000
_LOOK_S = 0.1
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


def await_folder(folder: Path, wait_s: float) -> None:
    """Wait while another process owns a data folder, at most `wait_s`: it may be on its way out.

    Whoever takes the folder then says what is wrong with it.
    """
    give_up_at = time.monotonic() + wait_s
    while time.monotonic() < give_up_at:
        try:
            FolderLock(folder).release()
        except DataFolderError:
            time.sleep(_LOOK_S)
        else:
            return


class SqliteDatabase:
    """The SQLite file of a data folder, whose lock its owner holds; see Database."""

    is_remote = False
    is_away = False
    is_settled = True

    def __init__(self, data: Path, *, is_owner: bool = True) -> None:
        """Raises: DataFolderError when this process is not the owner, and the owner has made no file yet."""
        self.where = str(data)
        self._file = data / DATABASE_FILE
        if not is_owner and not self._file.is_file():
            raise DataFolderError(f"{data}: holds no knowledge base yet. The retriever that writes makes it.")
        self.engine = connect(f"sqlite:///{self._file}", is_read_only=not is_owner)

    def prepare(self) -> None:
        """Create or migrate the tables; a copy of an earlier version's file is kept."""
        with self.errors():
            prepare_schema(self.engine, self.where, self._file)

    def errors(self) -> AbstractContextManager[None]:
        """See `storage_errors`."""
        return storage_errors(self.where)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Connection]:
        """See Database."""
        with self.errors(), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """See Database; the driver starts a transaction at the first change only."""
        with self.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection

    @contextlib.contextmanager
    def writing(self, give_up_at: float) -> Iterator[Connection]:
        """See Database; there is nothing to wait for."""
        with self.connect() as connection:
            begin_write(connection)
            yield connection

    def commit(self, connection: Connection) -> None:
        """See Database."""
        with self.errors():
            connection.commit()

    def settle(self, give_up_at: float, late: Settled | None = None) -> bool:
        """See Database; a commit here always has an answer."""
        return False

    def close(self) -> None:
        """See Database."""
        self.engine.dispose()


def connect(url: str, *, is_read_only: bool = False) -> Engine:
    """A pool of connections to an SQLite file; every commit reaches the disk before it returns."""
    engine = create_engine(url)
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
    is_failing = code is not None and code & 0xFF == sqlite3.SQLITE_IOERR
    if code == sqlite3.SQLITE_FULL or (is_failing and _has_no_room(where)):
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
