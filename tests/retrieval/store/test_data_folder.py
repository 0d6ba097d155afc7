"""The data folder: one owner, and errors that say what to do."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading

import pytest
from sqlalchemy import select

from engine.errors import DataFolderError
from engine.retrieval.store import tables
from engine.retrieval.store.data_folder import FolderLock, await_folder, connect
from engine.retrieval.store.store import Store

HOLD = """
import sys, pathlib
from engine.retrieval.store.data_folder import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_second_process_on_the_same_folder_is_refused_until_the_first_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        with pytest.raises(DataFolderError, match=r"another server uses this data folder. Stop it, or name another"):
            FolderLock(tmp_path)
        holder.kill()
    FolderLock(tmp_path).release()


def test_next_owner_waits_for_the_one_before_to_end_and_not_forever(tmp_path):
    held = FolderLock(tmp_path)
    await_folder(tmp_path, 0.3)
    with pytest.raises(DataFolderError, match="another server uses"):
        FolderLock(tmp_path)
    waiting = threading.Thread(target=await_folder, args=(tmp_path, 60))
    waiting.start()
    held.release()
    waiting.join(30)
    assert not waiting.is_alive()
    FolderLock(tmp_path).release()


def test_second_store_in_the_same_process_is_refused_until_the_first_is_closed(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(DataFolderError, match="another server uses"):
        Store(tmp_path)
    store.close()
    store.close()
    Store(tmp_path).close()


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataFolderError, match=r"file/data: cannot be written \(Not a directory\)"):
        FolderLock(tmp_path / "file" / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataFolderError, match="cannot be written"):
        Store(tmp_path)


def test_sqlite_commits_are_durable_and_checked(tmp_path):
    with connect(f"sqlite:///{tmp_path / 'x.sqlite3'}").connect() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


def test_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "knowledge.sqlite3"
    file.write_bytes(b"something else entirely " * 100)
    with pytest.raises(DataFolderError, match="is no database"):
        Store(tmp_path)
    assert file.read_bytes().startswith(b"something else")


def test_unknown_schema_version_is_refused_with_both_versions(tmp_path):
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "knowledge.sqlite3") as connection:
        connection.execute("UPDATE meta SET schema_version = 99")
    connection.close()
    with pytest.raises(DataFolderError, match=rf"schema version 99, this program reads {tables.SCHEMA_VERSION}\."):
        Store(tmp_path)


def test_schema_that_a_crash_left_without_a_version_is_completed(tmp_path):
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "knowledge.sqlite3") as connection:
        connection.execute("DELETE FROM meta")
        connection.execute("DROP TABLE operations")
    connection.close()
    Store(tmp_path).close()
    with connect(f"sqlite:///{tmp_path / 'knowledge.sqlite3'}").connect() as connection:
        assert connection.execute(select(tables.meta.c.schema_version)).scalars().all() == [tables.SCHEMA_VERSION]
        assert connection.execute(select(tables.operations)).all() == []
