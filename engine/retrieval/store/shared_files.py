"""Files that every machine of a cluster needs, in the PostgreSQL database of the store: adapters, and the router.

A file's content is named by its SHA-256 and kept once, in pieces. Records say which contents belong together and under
which name; what no record names is deleted with the change that dropped it. A change is one transaction, so a kill in
the middle of an upload leaves nothing. The writer of the knowledge base is another process, so these tables have a
version and a lock of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    delete,
    func,
    insert,
    select,
    text,
)

from engine.errors import DataFolderError
from engine.retrieval.store.address import store_url, without_secrets
from engine.retrieval.store.postgres import connection_pool, errors_of
from engine.retrieval.store.tables import String
from engine.retrieval.store.timeouts import require_driver

PIECE_BYTES = 1 << 20
# One who changes something waits so long for another one's upload.
STATEMENT_TIMEOUT_S = 120
# A change of the tables raises it.
VERSION = 1

_metadata = MetaData()
_meta = Table("files_meta", _metadata, Column("version", Integer, nullable=False))
_contents = Table(
    "file_contents",
    _metadata,
    Column("digest", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
)
_pieces = Table(
    "file_pieces",
    _metadata,
    Column("digest", ForeignKey("file_contents.digest", ondelete="CASCADE"), primary_key=True),
    Column("piece", Integer, primary_key=True),
    Column("content", LargeBinary, nullable=False),
)
_records = Table(
    "file_records",
    _metadata,
    Column("kind", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("body", JSON, nullable=False),
)
_uses = Table(
    "file_uses",
    _metadata,
    Column("kind", String(32), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("digest", ForeignKey("file_contents.digest"), primary_key=True, index=True),
)


class SharedFiles:
    """Thread-safe; several processes may use one database. Every method raises StoreUnavailable, DataFolderError."""

    def __init__(self, url: str) -> None:
        """Nothing is connected yet. Raises: ConfigError as PostgresDatabase."""
        parsed = store_url(url)
        require_driver()
        self.where = without_secrets(parsed)
        self._engine = connection_pool(parsed, 4, STATEMENT_TIMEOUT_S)
        self._is_prepared = False

    def close(self) -> None:
        """Give up the connections; may be called twice."""
        self._engine.dispose()

    def records(self, kind: str) -> dict[str, Any]:
        """Bodies of the records of a kind, by name."""
        with self._connected() as connection:
            query = select(_records.c.name, _records.c.body).where(_records.c.kind == kind)
            return {row.name: row.body for row in connection.execute(query)}

    @contextlib.contextmanager
    def changing(self) -> Iterator[Change]:
        """One change at a time, kept where the block ends without an error."""
        with self._connected() as connection:
            _lock(connection)
            # What was answered must survive a crash, as for the rest of the store.
            if connection.execute(text("SHOW synchronous_commit")).scalar() == "off":
                connection.execute(text("SET LOCAL synchronous_commit = 'on'"))
            yield Change(connection)
            used = select(_uses.c.digest)
            connection.execute(delete(_contents).where(_contents.c.digest.not_in(used)))
            connection.commit()

    def content(self, digest: str) -> Iterator[bytes]:
        """The pieces of a content. The last of them is followed by DataFolderError where they are not what was kept,
        so nothing may be used before the end.
        """
        with self._connected() as connection:
            size = connection.execute(select(_contents.c.size).where(_contents.c.digest == digest)).scalar()
        if size is None:
            raise self._damaged(digest, "is not there")
        found, num_read, number = sha256(), 0, 0
        while num_read < size:
            piece = self._piece(digest, number)
            found.update(piece)
            num_read, number = num_read + len(piece), number + 1
            if not piece or num_read > size:
                raise self._damaged(digest, f"has a piece {number - 1} of {len(piece)} bytes too many or too few")
            yield piece
        if found.hexdigest() != digest:
            raise self._damaged(digest, f"has the SHA-256 {found.hexdigest()[:12]}... now")

    def _piece(self, digest: str, number: int) -> bytes:
        """A connection for each: who reads may take its time."""
        query = select(_pieces.c.content).where(_pieces.c.digest == digest, _pieces.c.piece == number)
        with self._connected() as connection:
            return bytes(connection.execute(query).scalar() or b"")

    def _damaged(self, digest: str, why: str) -> DataFolderError:
        return DataFolderError(
            f"store {self.where}: the file of SHA-256 {digest[:12]}... {why}. Add what it belongs to again; that "
            "mends it."
        )

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        with errors_of(self.where):
            if not self._is_prepared:
                self._prepare()
            with self._engine.connect() as connection:
                yield connection

    def _prepare(self) -> None:
        """Make the tables where there are none. Raises: DataFolderError for those of another program."""
        with self._engine.begin() as connection:
            _lock(connection)
            _metadata.create_all(connection)
            found = connection.execute(select(_meta.c.version)).scalar()
            if found is None:
                connection.execute(insert(_meta).values(version=VERSION))
            elif found != VERSION:
                raise DataFolderError(
                    f"store {self.where}: its files have version {found}, this program reads {VERSION}. Use the "
                    "program that wrote them."
                )
        self._is_prepared = True


class Change:
    """What a transaction does. Names and digests are those of SharedFiles."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def record(self, kind: str, name: str) -> Any:
        """The body of a record, None where there is none."""
        query = select(_records.c.body).where(_records.c.kind == kind, _records.c.name == name)
        return self._connection.execute(query).scalar()

    def put(self, kind: str, name: str, body: Mapping[str, Any], digests: Collection[str] = ()) -> None:
        """Write a record, over an earlier one. `digests` are of the contents that it names."""
        self.drop(kind, name)
        self._connection.execute(insert(_records).values(kind=kind, name=name, body=dict(body)))
        for digest in sorted(set(digests)):
            self._connection.execute(insert(_uses).values(kind=kind, name=name, digest=digest))

    def drop(self, kind: str, name: str) -> None:
        """Delete a record; contents that no other one names go with it."""
        for table in (_uses, _records):
            self._connection.execute(delete(table).where(table.c.kind == kind, table.c.name == name))

    def upload(self, path: Path) -> str:
        """Keep the content of a file; returns its SHA-256. Pieces that are here and intact are not sent again.

        Raises: OSError.
        """
        with path.open("rb") as file:
            whole = sha256()
            while piece := file.read(PIECE_BYTES):
                whole.update(piece)
            digest, size = whole.hexdigest(), file.tell()
            known = self._known(digest, size)
            file.seek(0)
            number = 0
            while piece := file.read(PIECE_BYTES):
                if known.get(number) != sha256(piece).digest():
                    self._write(digest, number, piece)
                number += 1
        return digest

    def _known(self, digest: str, size: int) -> dict[int, bytes]:
        """SHA-256 of the pieces that are here: what is damaged is sent again."""
        here = self._connection.execute(select(_contents.c.size).where(_contents.c.digest == digest)).scalar()
        if here is None:
            self._connection.execute(insert(_contents).values(digest=digest, size=size))
            return {}
        query = select(_pieces.c.piece, func.sha256(_pieces.c.content)).where(_pieces.c.digest == digest)
        return {number: bytes(found) for number, found in self._connection.execute(query)}

    def _write(self, digest: str, number: int, piece: bytes) -> None:
        self._connection.execute(delete(_pieces).where(_pieces.c.digest == digest, _pieces.c.piece == number))
        self._connection.execute(insert(_pieces).values(digest=digest, piece=number, content=piece))


def _lock(connection: Connection) -> None:
    """Keep others from changing anything until the end of the transaction; by schema, as the store's own lock."""
    name = func.concat("switchyard files ", func.current_schema())
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
