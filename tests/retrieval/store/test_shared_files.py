"""Files in PostgreSQL: kept once and whole, checked when read, gone when nothing names them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import text

from engine.errors import DataFolderError, StoreUnavailable
from engine.retrieval.store.shared_files import PIECE_BYTES, SharedFiles
from engine.retrieval.store.store import Store
from loadtest.postgres_server import PostgresServer

# Three pieces, the last of them short, and no two alike.
CONTENT = b"".join(number.to_bytes(4, "big") for number in range((2 * PIECE_BYTES + 100) // 4))
DIGEST = sha256(CONTENT).hexdigest()


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.new_schema()


@pytest.fixture
def files(url: str) -> Iterator[SharedFiles]:
    with contextlib.closing(SharedFiles(url)) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    return path


def keep(files: SharedFiles, name: str, file: Path) -> str:
    with files.changing() as change:
        digest = change.upload(file)
        change.put("adapter", name, {"name": name}, [digest])
    return digest


def ask(files: SharedFiles, statement: str) -> list[tuple]:
    with files._engine.begin() as connection:
        result = connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


def test_postgres_gives_back_what_was_put_under_its_digest(files: SharedFiles, file: Path):
    assert keep(files, "tone", file) == DIGEST
    assert files.records("adapter") == {"tone": {"name": "tone"}} and files.records("router") == {}
    pieces = list(files.content(DIGEST))
    assert b"".join(pieces) == CONTENT
    assert [len(piece) for piece in pieces] == [PIECE_BYTES, PIECE_BYTES, len(CONTENT) - 2 * PIECE_BYTES]


def test_postgres_keeps_an_empty_file(files: SharedFiles, tmp_path: Path):
    (tmp_path / "empty").touch()
    assert list(files.content(keep(files, "tone", tmp_path / "empty"))) == []


def test_postgres_keeps_a_content_once_and_until_no_record_names_it(files: SharedFiles, file: Path):
    keep(files, "tone", file)
    rows = ask(files, "SELECT digest, piece, xmin::text FROM file_pieces ORDER BY piece")
    keep(files, "news", file)
    assert ask(files, "SELECT digest, piece, xmin::text FROM file_pieces ORDER BY piece") == rows
    with files.changing() as change:
        change.drop("adapter", "tone")
    assert b"".join(files.content(DIGEST)) == CONTENT
    with files.changing() as change:
        change.put("adapter", "news", {"name": "news"})
    assert ask(files, "SELECT count(*) FROM file_pieces") == ask(files, "SELECT count(*) FROM file_contents") == [(0,)]
    with pytest.raises(DataFolderError, match="is not there"):
        list(files.content(DIGEST))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("UPDATE file_pieces SET content = overlay(content PLACING '\\x7f'::bytea FROM 9) WHERE piece = 1", "SHA-256"),
        ("UPDATE file_pieces SET content = substr(content, 1, 50) WHERE piece = 1", "too many or too few"),
        ("UPDATE file_pieces SET content = content || '\\x00'::bytea WHERE piece = 2", "too many or too few"),
        ("DELETE FROM file_pieces WHERE piece = 1", "a piece 1 of 0 bytes"),
    ],
)
def test_postgres_piece_that_is_damaged_is_found_and_mended_by_adding_again(
    files: SharedFiles, file: Path, damage: str, message: str
):
    keep(files, "tone", file)
    ask(files, damage)
    with pytest.raises(DataFolderError, match=f"{message}.* Add what it belongs to again"):
        list(files.content(DIGEST))
    keep(files, "tone", file)
    assert b"".join(files.content(DIGEST)) == CONTENT


def test_postgres_keeps_nothing_of_a_change_that_fails(files: SharedFiles, file: Path):
    with pytest.raises(ZeroDivisionError), files.changing() as change:
        change.put("adapter", "tone", {}, [change.upload(file)])
        raise ZeroDivisionError
    assert files.records("adapter") == {}
    assert ask(files, "SELECT count(*) FROM file_pieces") == [(0,)]


_KILLED = """
import os, signal, sys
from pathlib import Path
from engine.retrieval.store.shared_files import Change, SharedFiles

def killed(self, digest, number, piece, write=Change._write):
    write(self, digest, number, piece)
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)

Change._write = killed
with SharedFiles(sys.argv[1]).changing() as change:
    change.upload(Path(sys.argv[2]))
"""


def test_postgres_has_nothing_of_an_upload_whose_process_was_killed(files: SharedFiles, url: str, file: Path):
    done = subprocess.run([sys.executable, "-c", _KILLED, url, str(file)], timeout=60)
    assert done.returncode == -9
    # The lock of the dead process is free, and its half of the pieces is not there.
    assert keep(files, "tone", file) == DIGEST
    assert b"".join(files.content(DIGEST)) == CONTENT


def test_postgres_that_is_away_is_said_to_be(tmp_path: Path):
    files = SharedFiles("postgresql://somebody:hidden@127.0.0.1:9/none")
    with contextlib.closing(files), pytest.raises(StoreUnavailable) as caught:
        files.records("adapter")
    assert "hidden" not in str(caught.value)


def test_postgres_files_and_knowledge_base_share_a_schema_in_either_order(postgres: PostgresServer, tmp_path: Path):
    for number, is_first in enumerate((True, False)):
        url = postgres.new_schema()
        with contextlib.ExitStack() as opened:
            files = opened.enter_context(contextlib.closing(SharedFiles(url)))
            if is_first:
                assert files.records("adapter") == {}
            opened.enter_context(contextlib.closing(Store(tmp_path / str(number), url=url)))
            # The writer of the knowledge base holds its lock, and files do not wait for it.
            with files.changing() as change:
                change.put("router", "default", {"at": 1})
            assert files.records("router") == {"default": {"at": 1}}


def test_postgres_files_of_a_later_program_are_refused(files: SharedFiles, url: str):
    files.records("adapter")
    ask(files, "UPDATE files_meta SET version = 99")
    with contextlib.closing(SharedFiles(url)) as later, pytest.raises(DataFolderError, match="have version 99"):
        later.records("adapter")
