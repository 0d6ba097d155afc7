"""The tables of the knowledge base: the only truth; vector rows are a cache of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    UniqueConstraint,
)
from sqlalchemy import String as PlainString
from sqlalchemy import Text as PlainText
from sqlalchemy.types import TypeDecorator, TypeEngine

# A change of the tables raises it and comes with a step in migrations.py.
SCHEMA_VERSION = 6

metadata = MetaData()


class _Characters:
    """Texts as SQLite keeps and orders them: of any length, by code point. PostgreSQL has no place for U+0000."""

    def load_dialect_impl(self, dialect: Any) -> TypeEngine[Any]:
        is_postgres = dialect.name == "postgresql"
        plain: TypeEngine[Any] = self.impl_instance  # type: ignore[attr-defined]
        return dialect.type_descriptor(PlainText(collation="C") if is_postgres else plain)  # type: ignore[no-any-return]

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return value if value is None or dialect.name != "postgresql" else value.replace("\0", "\ufffd")


class String(_Characters, TypeDecorator[str]):
    """A short text."""

    impl = PlainString
    cache_ok = True


class Text(_Characters, TypeDecorator[str]):
    """A text of any length."""

    impl = PlainText
    cache_ok = True


# SQLite numbers rows by itself only where the column's type is INTEGER.
_RowId = BigInteger().with_variant(Integer, "sqlite")

meta = Table("meta", metadata, Column("schema_version", Integer, nullable=False))

# `version` counts the writes of a collection; it is set last in the transaction of each.
collections = Table(
    "collections",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("version", BigInteger, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)

# How the chunks of a generation were made: vectors of different encoders cannot be compared. `model` says where the
# encoder comes from (null before version 6), `digest` repeats the encoder's; both are empty until it was loaded first.
# `task` is what is under way with the generation, counted by `job`; `report` says what came of it. Numbers are never
# given out twice, so the row of one that was dropped stays.
generations = Table(
    "generations",
    metadata,
    Column("collection", ForeignKey("collections.id"), primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("encoder", JSON, nullable=False),
    Column("chunking", JSON, nullable=False),
    Column("model", Text),
    Column("digest", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("task", String(16)),
    Column("job", String(32)),
    Column("report", JSON(none_as_null=True)),
    Column("is_dropped", Boolean, nullable=False),
)

# `body_hash` is the SHA-256 (hex) of the body as sent, so that a client can compute it; `content_hash` covers
# content type, title and metadata as well. `version` is that of the write that brought this content. `num_chunks` are
# those of the collection's generation. `outline` has the sections ([start, path]) where the text does not show them;
# null where it does, or where version 5 or an earlier one stored the document.
documents = Table(
    "documents",
    metadata,
    Column("pk", _RowId, primary_key=True),
    Column("collection", ForeignKey("collections.id"), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("id", String(512), nullable=False),
    Column("source", String(512), nullable=False),
    Column("title", Text),
    Column("content_type", String(255), nullable=False),
    Column("body_hash", String(64), nullable=False),
    Column("content_hash", String(64), nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("num_chunks", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("text", Text, nullable=False),
    Column("outline", JSON(none_as_null=True)),
    UniqueConstraint("collection", "tenant", "id"),
    # Pages of one source and the sizes of a collection are read from here; a row of the table drags its text along.
    Index("documents_by_source", "collection", "tenant", "source", "id", "num_chunks").ddl_if("sqlite"),
    # An entry of an index has less room there.
    Index("documents_of_source", "collection", "tenant", "source").ddl_if("postgresql"),
    # A number is never given out twice, so that a follower of the log cannot mistake one row for another.
    sqlite_autoincrement=True,
)

# `id` is the public, stable id; the chunk's text is the slice [start, end) of its document's. A document has chunks in
# several generations; a write drops them all and makes those of the current one.
chunks = Table(
    "chunks",
    metadata,
    Column("pk", _RowId, primary_key=True),
    Column("document_pk", ForeignKey("documents.pk"), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("id", String(32), nullable=False),
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("heading", Text, nullable=False),
    Column("text_hash", String(64), nullable=False, index=True),
    Index("chunks_by_document", "document_pk", "generation"),
    sqlite_autoincrement=True,
)

# One row per embedded text, whatever number of chunks share it. `vector`: E little-endian float32.
embeddings = Table(
    "embeddings",
    metadata,
    Column("encoder", String(64), primary_key=True),
    # A write looks for unused vectors by text alone.
    Column("text_hash", String(64), primary_key=True, index=True),
    Column("vector", LargeBinary, nullable=False),
)

# Append-only. Followers replay what is above the version that they have applied.
operations = Table(
    "operations",
    metadata,
    Column("pk", _RowId, primary_key=True),
    Column("collection", ForeignKey("collections.id"), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("op", String(16), nullable=False),
    Column("document_pk", BigInteger, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("document", String(512), nullable=False),
    Column("at", Float, nullable=False),
    Index("operations_by_version", "collection", "version"),
    sqlite_autoincrement=True,
)

# Long tasks of the server. `total` is unknown while the items are still counted; `errors` is a list of {item, error};
# `version` is the collection's after the last item that was applied.
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("collection", String(64), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("total", Integer),
    Column("done", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("errors", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("updated_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("version", BigInteger),
    Index("jobs_by_tenant", "tenant", "created_at"),
)

# Writes that are durable and not yet applied, in the order of `sequence`; at most one per document, the latest. The
# body comes last, so that the other columns are read without it.
inbox = Table(
    "inbox",
    metadata,
    Column("sequence", _RowId, primary_key=True),
    Column("job", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("collection", String(64), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("document", String(512), nullable=False),
    Column("is_delete", Boolean, nullable=False),
    Column("content_type", String(255), nullable=False),
    Column("title", Text),
    Column("metadata", JSON, nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("collection", "tenant", "document"),
    Index("inbox_by_collection", "collection", "tenant", "sequence"),
    # A worker that comes back with a number must not meet a later write under it.
    sqlite_autoincrement=True,
)

# How relevant a document is to a query, by a person's judgement. In the key a hash (SHA-256, hex) stands for the text,
# which may be longer than databases allow in one. Documents may be deleted and come back.
judgements = Table(
    "judgements",
    metadata,
    Column("collection", ForeignKey("collections.id"), primary_key=True),
    Column("tenant", String(64), primary_key=True),
    Column("query_hash", String(64), primary_key=True),
    Column("document", String(512), primary_key=True),
    Column("grade", Integer, nullable=False),
    Column("query", Text, nullable=False),
)

# What was fitted to a tenant's judgements. `revision` counts their changes, `fitted` is the last that was
# fitted, `alpha` is the weight of meaning, null where the default fusion stays.
fits = Table(
    "fits",
    metadata,
    Column("collection", ForeignKey("collections.id"), primary_key=True),
    Column("tenant", String(64), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("fitted", BigInteger, nullable=False),
    Column("alpha", Float),
    Column("report", JSON, nullable=False),
)

# What users said of answers. `id` is the response's, `content` says how it came about and how it was rated. A rating
# that replaces an earlier one gets a new number, so that whoever reads on from a number sees it.
feedback = Table(
    "feedback",
    metadata,
    Column("pk", _RowId, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("id", String(64), nullable=False),
    Column("content", JSON, nullable=False),
    UniqueConstraint("tenant", "id"),
    sqlite_autoincrement=True,
)
