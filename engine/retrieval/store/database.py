"""What the store asks of a database, whichever it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from engine.errors import StoreUnavailable

# Told whether a write whose commit got no answer is stored.
Settled = Callable[[bool], None]
# Longest wait of a write for a database that does not answer.
WRITE_WAIT_S = 20.0
PAUSE_S = 0.2


class CommitUnknown(StoreUnavailable):
    """The answer to a commit was lost; `Database.settle` finds out what became of it."""

    def __init__(self, store: str) -> None:
        super().__init__(store, "whether the write was stored is not known yet; it may be sent again", is_settled=False)


class Database(Protocol):
    """Connections to one database, its errors told apart, and the right to write that one process has at a time."""

    where: str  # names it in errors; holds no secret
    is_remote: bool  # whether it may be away while this process goes on
    engine: Engine

    @property
    def is_away(self) -> bool:
        """Whether the last that was asked of it got no answer."""

    @property
    def is_settled(self) -> bool:
        """Whether it is known of every write what became of it."""

    def prepare(self) -> None:
        """Take the right to write, create or migrate the tables. Raises: DataFolderError, StoreUnavailable."""

    def errors(self) -> AbstractContextManager[None]:
        """Turns database errors into StorageFull, DataFolderError or StoreUnavailable."""

    def connect(self) -> AbstractContextManager[Connection]:
        """A connection for reading, whose errors are told apart."""

    def reading(self) -> AbstractContextManager[Connection]:
        """As `connect`, in a transaction whose reads all see the same moment."""

    def writing(self, give_up_at: float) -> AbstractContextManager[Connection]:
        """A connection in the one write transaction; waits for the database until `give_up_at` (time.monotonic)."""

    def commit(self, connection: Connection) -> None:
        """Make the transaction durable. Raises: CommitUnknown; StorageFull, with nothing of it kept."""

    def settle(self, give_up_at: float, late: Settled | None = None) -> bool:
        """Whether the write is stored whose commit was lost; its connection must be closed.

        Args:
            late: called by a later `writing` or `settle` where this one has to give up.
        Raises: StoreUnavailable, not settled.
        """

    def close(self) -> None:
        """Give up the connections and the right to write; may be called twice."""


def begin_write(connection: Connection) -> None:
    """Start a write transaction now.

    SQLite's driver starts one at the first change only: tables made and rows read before are not part of it.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def rows_of(database: Database, query: Any, **values: Any) -> Sequence[Any]:
    """All rows of one query; asked again once where the database goes away meanwhile. Raises: StoreUnavailable."""
    for tries_left in (1, 0):
        try:
            with database.connect() as connection:
                return connection.execute(query, values).all()
        except StoreUnavailable:
            if not tries_left:
                raise
    raise AssertionError


class Patience:
    """How long one write waits for a database that is away, over all that it tries."""

    def __init__(self) -> None:
        self.give_up_at = time.monotonic() + WRITE_WAIT_S

    def wait_after(self, error: StoreUnavailable) -> None:
        """Pause before the next try. Raises: `error` where there is to be none."""
        if not error.is_settled or time.monotonic() >= self.give_up_at:
            raise error
        time.sleep(PAUSE_S)
