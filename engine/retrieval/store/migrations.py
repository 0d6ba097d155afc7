"""The schema's versions: new databases get this program's, earlier ones are brought to it step by step."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, insert, inspect, select, update

from engine.durable_files import move_into_place
from engine.errors import DataFolderError
from engine.retrieval.store import tables
from engine.retrieval.store.database import begin_write

# The statements that lead from a version to the next, for SQLite. Never changed once released: later versions of the
# tables must not leak into the step of an earlier one, so they are not made from tables.py.
_STEPS: dict[int, tuple[str, ...]] = {
    1: (
        "CREATE INDEX documents_by_source ON documents (collection, tenant, source, id, num_chunks)",
        "CREATE INDEX ix_embeddings_text_hash ON embeddings (text_hash)",
        """CREATE TABLE jobs (
            id VARCHAR(32) NOT NULL,
            kind VARCHAR(32) NOT NULL,
            collection VARCHAR(64) NOT NULL,
            tenant VARCHAR(64) NOT NULL,
            state VARCHAR(16) NOT NULL,
            total INTEGER,
            done INTEGER NOT NULL,
            failed INTEGER NOT NULL,
            errors JSON NOT NULL,
            created_at FLOAT NOT NULL,
            started_at FLOAT,
            updated_at FLOAT NOT NULL,
            finished_at FLOAT,
            PRIMARY KEY (id)
        )""",
        "CREATE INDEX ix_jobs_state ON jobs (state)",
        "CREATE INDEX jobs_by_tenant ON jobs (tenant, created_at)",
    ),
    2: (
        # No program that wrote version 2 has stored a job.
        "DROP TABLE jobs",
        """CREATE TABLE jobs (
            id VARCHAR(32) NOT NULL,
            kind VARCHAR(32) NOT NULL,
            collection VARCHAR(64) NOT NULL,
            tenant VARCHAR(64) NOT NULL,
            state VARCHAR(16) NOT NULL,
            total INTEGER,
            done INTEGER NOT NULL,
            failed INTEGER NOT NULL,
            errors JSON NOT NULL,
            created_at FLOAT NOT NULL,
            started_at FLOAT,
            updated_at FLOAT NOT NULL,
            finished_at FLOAT,
            version BIGINT,
            PRIMARY KEY (id)
        )""",
        "CREATE INDEX ix_jobs_state ON jobs (state)",
        "CREATE INDEX jobs_by_tenant ON jobs (tenant, created_at)",
        """CREATE TABLE inbox (
            sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            job VARCHAR(32) NOT NULL,
            collection VARCHAR(64) NOT NULL,
            tenant VARCHAR(64) NOT NULL,
            document VARCHAR(512) NOT NULL,
            is_delete BOOLEAN NOT NULL,
            content_type VARCHAR(255) NOT NULL,
            title TEXT,
            metadata JSON NOT NULL,
            body BLOB NOT NULL,
            UNIQUE (collection, tenant, document),
            FOREIGN KEY(job) REFERENCES jobs (id)
        )""",
        "CREATE INDEX inbox_by_collection ON inbox (collection, tenant, sequence)",
        "CREATE INDEX ix_inbox_job ON inbox (job)",
    ),
    3: (
        """CREATE TABLE judgements (
            collection INTEGER NOT NULL,
            tenant VARCHAR(64) NOT NULL,
            query_hash VARCHAR(64) NOT NULL,
            document VARCHAR(512) NOT NULL,
            grade INTEGER NOT NULL,
            "query" TEXT NOT NULL,
            PRIMARY KEY (collection, tenant, query_hash, document),
            FOREIGN KEY(collection) REFERENCES collections (id)
        )""",
        """CREATE TABLE fits (
            collection INTEGER NOT NULL,
            tenant VARCHAR(64) NOT NULL,
            revision BIGINT NOT NULL,
            fitted BIGINT NOT NULL,
            alpha FLOAT,
            report JSON NOT NULL,
            PRIMARY KEY (collection, tenant),
            FOREIGN KEY(collection) REFERENCES collections (id)
        )""",
    ),
    4: (
        """CREATE TABLE feedback (
            pk INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            tenant VARCHAR(64) NOT NULL,
            id VARCHAR(64) NOT NULL,
            content JSON NOT NULL,
            UNIQUE (tenant, id)
        )""",
    ),
    5: (
        "ALTER TABLE generations RENAME TO old_generations",
        """CREATE TABLE generations (
            collection INTEGER NOT NULL,
            generation INTEGER NOT NULL,
            encoder JSON NOT NULL,
            chunking JSON NOT NULL,
            model TEXT,
            digest VARCHAR(64) NOT NULL,
            created_at FLOAT NOT NULL,
            task VARCHAR(16),
            job VARCHAR(32),
            report JSON,
            is_dropped BOOLEAN NOT NULL,
            PRIMARY KEY (collection, generation),
            FOREIGN KEY(collection) REFERENCES collections (id)
        )""",
        """INSERT INTO generations
            SELECT g.collection, g.generation, g.encoder, g.chunking, NULL, json_extract(g.encoder, '$.digest'),
                c.created_at, NULL, NULL, NULL, 0
            FROM old_generations g JOIN collections c ON c.id = g.collection""",
        "DROP TABLE old_generations",
        "ALTER TABLE documents ADD COLUMN outline JSON",
        "DROP INDEX ix_chunks_document_pk",
        "CREATE INDEX chunks_by_document ON chunks (document_pk, generation)",
    ),
}

# The same for PostgreSQL, whose first version is 5.
_POSTGRES_STEPS: dict[int, tuple[str, ...]] = {
    5: (
        """ALTER TABLE generations ADD COLUMN model VARCHAR COLLATE "C",
            ADD COLUMN digest VARCHAR COLLATE "C" NOT NULL DEFAULT '',
            ADD COLUMN created_at FLOAT NOT NULL DEFAULT 0,
            ADD COLUMN task VARCHAR COLLATE "C",
            ADD COLUMN job VARCHAR COLLATE "C",
            ADD COLUMN report JSON,
            ADD COLUMN is_dropped BOOLEAN NOT NULL DEFAULT false""",
        """UPDATE generations g SET digest = g.encoder->>'digest', created_at = c.created_at
            FROM collections c WHERE c.id = g.collection""",
        """ALTER TABLE generations ALTER COLUMN digest DROP DEFAULT, ALTER COLUMN created_at DROP DEFAULT,
            ALTER COLUMN is_dropped DROP DEFAULT""",
        "ALTER TABLE documents ADD COLUMN outline JSON",
        "DROP INDEX ix_chunks_document_pk",
        "CREATE INDEX chunks_by_document ON chunks (document_pk, generation)",
    ),
}


def prepare_schema(engine: Engine, where: str, database: Path | None) -> None:
    """Create or migrate the tables in one transaction.

    Args:
        where: names the knowledge base in errors.
        database: the SQLite file, of which a copy is kept before it is migrated; None for other databases.
    Raises: DataFolderError for a version that this program does not know.
    """
    with engine.connect() as connection:
        found = _version(connection)
    if found == tables.SCHEMA_VERSION:
        return
    if found is not None and found not in _steps(engine):
        raise DataFolderError(
            f"{where}: the knowledge base has schema version {found}, this program reads "
            f"{tables.SCHEMA_VERSION}. Use the program that wrote it, or name another folder with --data."
        )
    if found is not None and database is not None:
        _keep_copy(engine, database, found)
    with engine.connect() as connection:
        begin_write(connection)
        if found is None:
            _create(connection)
        else:
            migrate(connection, found)
        connection.commit()


def check_schema(engine: Engine, where: str) -> None:
    """Raises: DataFolderError when the tables are not there yet, or are not this program's."""
    with engine.connect() as connection:
        found = _version(connection)
    if found is None:
        raise DataFolderError(f"{where}: holds no knowledge base yet. The retriever that writes makes it.")
    if found != tables.SCHEMA_VERSION:
        raise DataFolderError(
            f"{where}: the knowledge base has schema version {found}, this program reads {tables.SCHEMA_VERSION}. "
            "A retriever of this program that writes brings it there."
        )


def migrate(connection: Connection, from_version: int) -> None:
    """Run every step from `from_version` to this program's version, inside the caller's transaction."""
    for version in range(from_version, tables.SCHEMA_VERSION):
        for statement in _steps(connection)[version]:
            connection.exec_driver_sql(statement)
    connection.execute(update(tables.meta).values(schema_version=tables.SCHEMA_VERSION))


def _steps(database: Connection | Engine) -> dict[int, tuple[str, ...]]:
    return _STEPS if database.dialect.name == "sqlite" else _POSTGRES_STEPS


def _version(connection: Connection) -> int | None:
    if not inspect(connection).has_table(tables.meta.name):
        return None
    return connection.execute(select(tables.meta.c.schema_version)).scalar()


def _create(connection: Connection) -> None:
    """All tables and indexes; some are there where version 1 was killed while it made them one by one."""
    tables.metadata.create_all(connection)
    for table in tables.metadata.sorted_tables:
        for index in table.indexes:
            index.create(connection, checkfirst=True)
    connection.execute(insert(tables.meta).values(schema_version=tables.SCHEMA_VERSION))


def _keep_copy(engine: Engine, database: Path, version: int) -> None:
    copy = database.with_name(f"{database.name}.v{version}.bak")
    partial = copy.with_name(f"{copy.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        # Unlike a copy of the file alone, this holds what is still in the write-ahead log.
        with engine.connect() as connection:
            connection.exec_driver_sql("VACUUM INTO ?", (str(partial),))
        move_into_place(partial, copy)
    except OSError as error:
        raise DataFolderError(
            f"{copy}: the copy of schema version {version} cannot be written ({error.strerror}). "
            "Nothing was migrated; make the folder writable and start again."
        ) from None
