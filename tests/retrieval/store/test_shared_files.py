"""Files in PostgreSQL: kept once and whole, checked when read, gone when nothing names them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
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
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    return path


def keep(shared_files: SharedFiles, name: str, file: Path) -> str:
    with shared_files.changing() as change:
        digest = change.upload(file)
        change.put("adapter", name, {"name": name}, [digest])
    return digest


def ask(shared_files: SharedFiles, statement: str) -> list[tuple]:
    with shared_files._engine.begin() as connection:
        result = connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


def test_postgres_gives_back_what_was_put_under_its_digest(shared_files: SharedFiles, file: Path):
    assert keep(shared_files, "tone", file) == DIGEST
    assert shared_files.records("adapter") == {"tone": {"name": "tone"}} and shared_files.records("router") == {}
    pieces = list(shared_files.content(DIGEST))
    assert b"".join(pieces) == CONTENT
    assert [len(piece) for piece in pieces] == [PIECE_BYTES, PIECE_BYTES, len(CONTENT) - 2 * PIECE_BYTES]


def test_postgres_keeps_an_empty_file(shared_files: SharedFiles, tmp_path: Path):
    (tmp_path / "empty").touch()
    assert list(shared_files.content(keep(shared_files, "tone", tmp_path / "empty"))) == []


def test_postgres_keeps_a_content_once_and_until_no_record_names_it(shared_files: SharedFiles, file: Path):
    keep(shared_files, "tone", file)
    rows = ask(shared_files, "SELECT digest, piece, xmin::text FROM file_pieces ORDER BY piece")
    keep(shared_files, "news", file)
    assert ask(shared_files, "SELECT digest, piece, xmin::text FROM file_pieces ORDER BY piece") == rows
    with shared_files.changing() as change:
        change.drop("adapter", "tone")
    assert b"".join(shared_files.content(DIGEST)) == CONTENT
    with shared_files.changing() as change:
        change.put("adapter", "news", {"name": "news"})
    assert (
        ask(shared_files, "SELECT count(*) FROM file_pieces")
        == ask(shared_files, "SELECT count(*) FROM file_contents")
        == [(0,)]
    )
    with pytest.raises(DataFolderError, match="is not there"):
        list(shared_files.content(DIGEST))


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
    shared_files: SharedFiles, file: Path, damage: str, message: str
):
    keep(shared_files, "tone", file)
    ask(shared_files, damage)
    with pytest.raises(DataFolderError, match=f"{message}.* Add what it belongs to again"):
        list(shared_files.content(DIGEST))
    keep(shared_files, "tone", file)
    assert b"".join(shared_files.content(DIGEST)) == CONTENT


def test_postgres_keeps_nothing_of_a_change_that_fails(shared_files: SharedFiles, file: Path):
    with pytest.raises(ZeroDivisionError), shared_files.changing() as change:
        change.put("adapter", "tone", {}, [change.upload(file)])
        raise ZeroDivisionError
    assert shared_files.records("adapter") == {}
    assert ask(shared_files, "SELECT count(*) FROM file_pieces") == [(0,)]


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


def test_postgres_has_nothing_of_an_upload_whose_process_was_killed(
    shared_files: SharedFiles, postgres_url: str, file: Path
):
    done = subprocess.run([sys.executable, "-c", _KILLED, postgres_url, str(file)], timeout=60)
    assert done.returncode == -9
    # The lock of the dead process is free, and its half of the pieces is not there.
    assert keep(shared_files, "tone", file) == DIGEST
    assert b"".join(shared_files.content(DIGEST)) == CONTENT


def test_postgres_that_is_away_is_said_to_be(tmp_path: Path):
    shared_files = SharedFiles("postgresql://somebody:hidden@127.0.0.1:9/none")
    with contextlib.closing(shared_files), pytest.raises(StoreUnavailable) as caught:
        shared_files.records("adapter")
    assert "hidden" not in str(caught.value)


def test_postgres_files_and_knowledge_base_share_a_schema_in_either_order(postgres: PostgresServer, tmp_path: Path):
    for number, is_first in enumerate((True, False)):
        url = postgres.new_schema()
        with contextlib.ExitStack() as opened:
            shared_files = opened.enter_context(contextlib.closing(SharedFiles(url)))
            if is_first:
                assert shared_files.records("adapter") == {}
            opened.enter_context(contextlib.closing(Store(tmp_path / str(number), url=url)))
            # The writer of the knowledge base holds its lock, and shared_files do not wait for it.
            with shared_files.changing() as change:
                change.put("router", "default", {"at": 1})
            assert shared_files.records("router") == {"default": {"at": 1}}


def test_postgres_files_of_a_later_program_are_refused(shared_files: SharedFiles, postgres_url: str):
    shared_files.records("adapter")
    ask(shared_files, "UPDATE files_meta SET version = 99")
    with (
        contextlib.closing(SharedFiles(postgres_url)) as later,
        pytest.raises(DataFolderError, match="have version 99"),
    ):
        later.records("adapter")
