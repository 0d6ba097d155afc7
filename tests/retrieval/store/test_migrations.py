"""Folders of earlier schema versions open, read as before, and are never lost on the way."""

from __future__ import annotations

import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from stub_encoder import SETTINGS, StubEncoder

from engine.errors import DataFolderError
from engine.retrieval.service import Retriever
from engine.retrieval.store import tables
from engine.retrieval.store.store import Store
from engine.values import DocumentWrite, Evidence, Query

VERSION_1 = """
CREATE TABLE collections (
    id INTEGER NOT NULL, name VARCHAR(64) NOT NULL, version BIGINT NOT NULL, generation INTEGER NOT NULL,
    created_at FLOAT NOT NULL, PRIMARY KEY (id), UNIQUE (name)
);
CREATE TABLE embeddings (
    encoder VARCHAR(64) NOT NULL, text_hash VARCHAR(64) NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (encoder, text_hash)
);
CREATE TABLE meta (schema_version INTEGER NOT NULL);
CREATE TABLE documents (
    pk INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL, tenant VARCHAR(64) NOT NULL,
    id VARCHAR(512) NOT NULL, source VARCHAR(512) NOT NULL, title TEXT, content_type VARCHAR(255) NOT NULL,
    body_hash VARCHAR(64) NOT NULL, content_hash VARCHAR(64) NOT NULL, metadata JSON NOT NULL,
    num_chunks INTEGER NOT NULL, version BIGINT NOT NULL, updated_at FLOAT NOT NULL, text TEXT NOT NULL,
    UNIQUE (collection, tenant, id), FOREIGN KEY(collection) REFERENCES collections (id)
);
CREATE TABLE generations (
    collection INTEGER NOT NULL, generation INTEGER NOT NULL, encoder JSON NOT NULL, chunking JSON NOT NULL,
    PRIMARY KEY (collection, generation), FOREIGN KEY(collection) REFERENCES collections (id)
);
CREATE TABLE operations (
    pk INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, collection INTEGER NOT NULL, version BIGINT NOT NULL,
    op VARCHAR(16) NOT NULL, document_pk BIGINT NOT NULL, tenant VARCHAR(64) NOT NULL,
    document VARCHAR(512) NOT NULL, at FLOAT NOT NULL, FOREIGN KEY(collection) REFERENCES collections (id)
);
CREATE INDEX operations_by_version ON operations (collection, version);
CREATE TABLE chunks (
    pk INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, document_pk INTEGER NOT NULL, generation INTEGER NOT NULL,
    ordinal INTEGER NOT NULL, id VARCHAR(32) NOT NULL, start INTEGER NOT NULL, "end" INTEGER NOT NULL,
    heading TEXT NOT NULL, text_hash VARCHAR(64) NOT NULL, FOREIGN KEY(document_pk) REFERENCES documents (pk)
);
CREATE INDEX ix_chunks_document_pk ON chunks (document_pk);
CREATE INDEX ix_chunks_text_hash ON chunks (text_hash);
"""
TABLES = ("collections", "embeddings", "documents", "generations", "operations", "chunks")
FILE = "knowledge.sqlite3"


@pytest.fixture(scope="module")
def old_folder(tmp_path_factory) -> Path:
    """A folder of version 1 with two collections, updates and deletes; copy it before use."""
    new, old = tmp_path_factory.mktemp("new"), tmp_path_factory.mktemp("old")
    retriever = Retriever(new, StubEncoder(), SETTINGS)
    for i in range(12):
        body = b"# Page %d\n\n" % i + b"Region %d has volumes. " % (i % 5) * 20
        retriever.write("docs", [DocumentWrite(f"site/{i}", body, metadata={"page": i})])
    retriever.write("docs", [DocumentWrite("site/3", delete=True), DocumentWrite("site/4", b"Other words.")])
    retriever.write("more", [DocumentWrite("blog/1", b"A day in Madrid.")], tenant="acme")
    retriever.close()
    database = sqlite3.connect(old / FILE)
    database.executescript(VERSION_1)
    database.execute("ATTACH ? AS new", (str(new / FILE),))
    for table in TABLES:
        columns = ", ".join(f'"{row[1]}"' for row in database.execute(f"PRAGMA main.table_info({table})"))
        database.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
    database.execute("INSERT INTO meta VALUES (1)")
    database.commit()
    database.close()
    return old


def held(data: Path) -> dict[str, Any]:
    """Everything that a client can read."""
    retriever = Retriever(data, StubEncoder(), SETTINGS)
    try:
        found: dict[str, Any] = {}
        for tenant in ("", "acme"):
            for row in retriever.collections(tenant=tenant):
                name = row["name"]
                page = retriever.list_documents(name, source=None, after=None, limit=1000, tenant=tenant)
                documents = [retriever.get_document(name, one["id"], tenant=tenant) for one in page]
                (evidence,) = retriever.evidence(
                    [Query("volumes of a region", name, 1000, tenant=tenant, mode="dense")]
                )
                assert isinstance(evidence, Evidence)
                found[f"{name} {tenant}"] = (row, documents, evidence.passages, evidence.version)
        return found
    finally:
        retriever.close()


def rows(database: Path) -> dict[str, list[Any]]:
    with sqlite3.connect(database) as connection:
        found = {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in TABLES}
        found["meta"] = connection.execute("SELECT * FROM meta").fetchall()
    connection.close()
    return found


def schema(database: Path) -> dict[str, str]:
    """Name to statement of all tables and indexes, without blanks."""
    with sqlite3.connect(database) as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {name: re.sub(r"\s", "", sql) for name, sql in found}


def test_folder_of_version_1_is_migrated_and_reads_as_before(old_folder, tmp_path):
    data = shutil.copytree(old_folder, tmp_path / "data")
    before = rows(data / FILE)
    found = held(data)
    assert [row["documents"] for row, *_ in found.values()] == [11, 0, 1]
    assert found["docs "][2][0].text.startswith("Region") or found["docs "][2][0].text.startswith("# Page")
    after = rows(data / FILE)
    assert after.pop("meta") == [(tables.SCHEMA_VERSION,)] and before.pop("meta") == [(1,)]
    for row in after.pop("generations"):
        # The model is recorded at the first start of the program that serves the collection by it.
        encoder = StubEncoder().identity.digest
        assert (row[4:6], row[7:]) == ((SETTINGS.model, encoder), (None, None, None, 0))
        assert row[:4] in before["generations"]
    before.pop("generations")
    assert after.pop("documents") == [(*row, None) for row in before.pop("documents")]
    assert after == before


def test_copy_of_the_old_database_is_kept_and_is_whole(old_folder, tmp_path):
    data = shutil.copytree(old_folder, tmp_path / "data")
    before = rows(data / FILE)
    held(data)
    copy = data / f"{FILE}.v1.bak"
    assert rows(copy) == before
    kept = copy.stat().st_mtime_ns
    held(data)
    assert copy.stat().st_mtime_ns == kept
    assert not (data / f"{FILE}.v1.bak.partial").exists()


def test_migrated_folder_has_the_schema_of_a_new_one(old_folder, tmp_path):
    data = shutil.copytree(old_folder, tmp_path / "data")
    Store(data).close()
    Store(tmp_path / "new").close()
    assert schema(data / FILE) == schema(tmp_path / "new" / FILE)


def test_migrated_folder_takes_writes_and_gives_no_row_number_twice(old_folder, tmp_path):
    data = shutil.copytree(old_folder, tmp_path / "data")
    highest = max(row[4] for row in rows(data / FILE)["operations"])
    retriever = Retriever(data, StubEncoder(), SETTINGS)
    version = retriever.collection("docs")["version"]
    assert retriever.write("docs", [DocumentWrite("site/new", b"New words.")])[0].version == version + 1
    retriever.close()
    assert max(row[4] for row in rows(data / FILE)["operations"]) > highest


def test_folder_of_a_later_version_is_refused_and_left_alone(tmp_path):
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE meta SET schema_version = ?", (tables.SCHEMA_VERSION + 1,))
    connection.close()
    before = (tmp_path / FILE).read_bytes()
    told = rf"schema version {tables.SCHEMA_VERSION + 1}, this program reads {tables.SCHEMA_VERSION}\. Use the program"
    with pytest.raises(DataFolderError, match=f"{told} that wrote it"):
        Store(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    assert not list(tmp_path.glob("*.bak*"))


def test_folder_whose_copy_cannot_be_written_is_not_migrated(old_folder, tmp_path):
    data = shutil.copytree(old_folder, tmp_path / "data")
    (data / f"{FILE}.v1.bak.partial").mkdir()
    with pytest.raises(DataFolderError, match=r"v1\.bak: the copy of schema version 1 cannot be written"):
        Store(data)
    assert rows(data / FILE)["meta"] == [(1,)]


def test_migration_killed_at_any_line_leaves_a_folder_that_opens_and_reads_as_before(old_folder, tmp_path, forks):
    expected = held(shutil.copytree(old_folder, tmp_path / "expected"))
    data = shutil.copytree(old_folder, tmp_path / "data")
    versions = set()
    for line in forks.kills("open_store", ["migrations.py", "data_folder.py"], data=str(data)):
        versions.add(rows(data / FILE)["meta"][0][0])
        if line % 4 == 0:
            assert held(shutil.copytree(data, tmp_path / str(line))) == expected
        shutil.rmtree(data)
        shutil.copytree(old_folder, data)
    assert versions == {1, tables.SCHEMA_VERSION}
    assert held(data) == expected


def test_queries_that_grow_with_the_knowledge_base_use_an_index(tmp_path):
    retriever = Retriever(tmp_path, StubEncoder(), SETTINGS)
    retriever.write("docs", [DocumentWrite("site/a", b"Some words."), DocumentWrite("site/b", b"Other words.")])
    statements: list[tuple[str, Any]] = []
    engine = retriever._store._engine
    event.listen(engine, "before_cursor_execute", lambda _c, _cu, statement, values, _x, _m: note(statement, values))

    def note(statement: str, values: Any) -> None:
        if not statement.startswith("EXPLAIN"):
            statements.append((statement, values))

    retriever.list_documents("docs", source="site", after="site/a", limit=10)
    retriever.collections()
    retriever.write("docs", [DocumentWrite("site/a", b"New words."), DocumentWrite("site/b", delete=True)])
    with engine.connect() as connection:
        plans = {
            statement: [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
            for statement, values in list(statements)
            if statement.startswith(("SELECT", "UPDATE", "DELETE")) and not isinstance(values, list)
        }
    retriever.close()
    assert sum("documents_by_source" in step for plan in plans.values() for step in plan) == 2
    assert [(statement, step) for statement, plan in plans.items() for step in plan if is_scan(step)] == []


def is_scan(step: str) -> bool:
    """A walk through all rows of a table that grows with the documents."""
    return step.startswith("SCAN") and step.split()[1] in ("documents", "chunks", "embeddings", "operations")
