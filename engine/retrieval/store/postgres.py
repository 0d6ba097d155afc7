"""PostgreSQL as the database of the store: one writer at a time, who outlives the server's restarts.

All writes go through one session, which holds an advisory lock: who loses the connection loses the right to write. Each
write begins by counting up the row of `store_writer`, which says whose turn it is. So a process that was replaced
meanwhile writes nothing more, and the count tells what became of a commit whose answer was lost.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from engine.errors import ConfigError, DataFolderError, StoreUnavailable
from engine.retrieval.store.address import store_url, without_secrets
from engine.retrieval.store.database import PAUSE_S, CommitUnknown, Settled
from engine.retrieval.store.migrations import prepare_schema
from engine.retrieval.store.postgres_errors import translated
from engine.retrieval.store.timeouts import bound_statements, require_driver

# A server that has died leaves its lock for as long as PostgreSQL takes to notice.
LOCK_WAIT_S = 15.0
# Longest time of a statement. Searches wait for those of the first kind.
READ_TIMEOUT_S = 10
SCAN_TIMEOUT_S = 600
WRITE_TIMEOUT_S = 120
# Between two tries to reach a server that is away. Meanwhile reads fail at once: searches wait for some of them.
_PROBE_S = 0.5
_CONNECTING = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "switchyard",
}
_metadata = MetaData()
_writer = Table(
    "store_writer",
    _metadata,
    Column("one", Integer, primary_key=True),
    Column("owner", String(32), nullable=False),
    Column("num_writes", BigInteger, nullable=False),
)


class PostgresDatabase:
    """See Database. Short reads, scans and the writer have connections of their own, so that none waits for another."""

    is_remote = True

    def __init__(self, url: str) -> None:
        """Raises: ConfigError for a URL that names no PostgreSQL database, or where the driver is not installed."""
        parsed = store_url(url)
        require_driver()
        self.where = without_secrets(parsed)
        self.engine = connection_pool(parsed, 8, READ_TIMEOUT_S)
        self._scans = connection_pool(parsed, 4, SCAN_TIMEOUT_S)
        self._session = connection_pool(parsed, 1, WRITE_TIMEOUT_S)
        event.listen(self._session, "connect", self._take_lock)
        self._owner = secrets.token_hex(16)
        self._is_owner = False
        self._number = 0  # of the write that runs or ran last
        self._unsettled: int | None = None
        self._late: Settled | None = None
        self._closed = threading.Event()
        self._probing = threading.Lock()
        self._probe: threading.Thread | None = None  # while the server is away

    @property
    def is_away(self) -> bool:
        """See Database."""
        return self._probe is not None

    @property
    def is_settled(self) -> bool:
        """See Database."""
        return self._unsettled is None

    def prepare(self) -> None:
        """See Database."""
        try:
            self._open_session(time.monotonic() + LOCK_WAIT_S).close()
        except _Locked:
            raise DataFolderError(
                f"store {self.where}: another server uses it. Stop that one, or name another database."
            ) from None
        with self.errors():
            prepare_schema(self._session, self.where, None)
            with self._session.begin() as connection:
                _writer.create(connection, checkfirst=True)
                # Waits for a write of whoever was here before, and is seen by every later one of theirs.
                connection.execute(delete(_writer))
                connection.execute(insert(_writer).values(one=1, owner=self._owner, num_writes=0))
        self._is_owner = True

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """See Database."""
        return errors_of(self.where)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Connection]:
        """See Database; where a connection failed just now, the next fails at once."""
        with self._reader(self.engine) as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """See Database."""
        with self._reader(self._scans) as connection:
            yield connection.execution_options(isolation_level="REPEATABLE READ")

    @contextlib.contextmanager
    def writing(self, give_up_at: float) -> Iterator[Connection]:
        """See Database."""
        with self._begun(give_up_at) as connection, self.errors():
            yield connection

    def commit(self, connection: Connection) -> None:
        """See Database."""
        try:
            with self.errors():
                connection.commit()
        except StoreUnavailable as error:
            self._unsettled = self._number
            raise CommitUnknown(self.where) from error

    def settle(self, give_up_at: float, late: Settled | None = None) -> bool:
        """See Database."""
        if self._unsettled is None:
            return False
        self._late = late or self._late
        try:
            with self._open_session(give_up_at) as connection, self.errors():
                query = select(_writer.c.num_writes).where(_writer.c.owner == self._owner)
                num_writes = connection.execute(query).scalar_one()
        except StoreUnavailable as error:
            raise CommitUnknown(self.where) from error
        if late is not None:
            self._late = None  # the caller is told
        return self._settled(num_writes)

    def close(self) -> None:
        """See Database."""
        self._closed.set()
        probe = self._probe
        if probe is not None:
            probe.join()
        for engine in (self._session, self._scans, self.engine):
            engine.dispose()

    def _begun(self, give_up_at: float) -> Connection:
        """The session in a transaction that has counted itself, whatever it takes until `give_up_at`."""
        while True:
            connection = self._open_session(give_up_at)
            try:
                with self.errors():
                    mine = update(_writer).where(_writer.c.owner == self._owner)
                    mine = mine.values(num_writes=_writer.c.num_writes + 1)
                    number = connection.execute(mine.returning(_writer.c.num_writes)).scalar_one_or_none()
                if number is None:
                    raise self._replaced()
                self._settled(number - 1)
                self._number = number
                return connection
            except StoreUnavailable:
                connection.close()
                if time.monotonic() >= give_up_at or self._closed.wait(PAUSE_S):
                    raise
            except BaseException:
                connection.close()
                raise

    def _settled(self, num_writes: int) -> bool:
        """What became of the unsettled write, now that so many are known to be stored."""
        if self._unsettled is None:
            return False
        is_stored = num_writes >= self._unsettled
        late, self._late, self._unsettled = self._late, None, None
        if late is not None:
            late(is_stored)
        return is_stored

    def _open_session(self, give_up_at: float) -> Connection:
        """The session that holds the lock, made anew where it was lost; waits for the server and for the lock."""
        while True:
            if self._closed.is_set():
                raise StoreUnavailable(self.where, "this server gives it up")
            try:
                with self.errors():
                    return self._connected(self._session)
            except StoreUnavailable:
                if time.monotonic() >= give_up_at or self._closed.wait(PAUSE_S):
                    raise

    @contextlib.contextmanager
    def _reader(self, engine: Engine) -> Iterator[Connection]:
        if self._probe is not None:
            raise StoreUnavailable(self.where, "it does not answer")
        with self.errors(), self._connected(engine) as connection:
            yield connection

    def _connected(self, engine: Engine) -> Connection:
        try:
            return engine.connect()
        except DBAPIError:
            with self._probing:
                if self._probe is None and not self._closed.is_set():
                    self._probe = threading.Thread(target=self._reach, name="store", daemon=True)
                    self._probe.start()
            raise

    def _reach(self) -> None:
        """Try to connect until it works."""
        while not self._closed.wait(_PROBE_S):
            with contextlib.suppress(DBAPIError, PoolTimeout), self.engine.connect():
                break
        with self._probing:
            self._probe = None

    def _take_lock(self, connection: Any, _record: Any) -> None:
        """Run on each new session. Raises: _Locked, DataFolderError where another server has written since."""
        import psycopg

        try:
            with connection.cursor() as cursor:
                # Row locks are held by one more writer at most, for a moment.
                cursor.execute("SET lock_timeout = '10s'")
                if _shown(cursor, "server_encoding") != "UTF8":
                    raise ConfigError(f"store {self.where}: its encoding is not UTF8. Create it with ENCODING 'UTF8'.")
                # What was answered must survive a crash, as with SQLite.
                if _shown(cursor, "synchronous_commit") == "off":
                    cursor.execute("SET synchronous_commit = 'on'")
                # By schema: a database may hold several stores.
                cursor.execute(
                    "SELECT pg_try_advisory_lock(hashtextextended('switchyard store ' || current_schema(), 0))"
                )
                is_locked = cursor.fetchone()[0]
                if self._is_owner:
                    cursor.execute("SELECT count(*) FROM store_writer WHERE owner = %s", (self._owner,))
                    if not cursor.fetchone()[0]:
                        raise self._replaced()
                if not is_locked:
                    raise _Locked(self.where, "another session holds the right to write")
            connection.commit()
        except psycopg.Error as error:
            raise translated(error, self.where) or error from error

    def _replaced(self) -> DataFolderError:
        return DataFolderError(
            f"store {self.where}: another server has taken over, so this one writes nothing any more. Stop one of "
            "the two, and start this one again to see what the other wrote."
        )


def connection_pool(url: URL, size: int, timeout_s: int) -> Engine:
    """At most `size` connections, on which a statement takes at most `timeout_s`."""
    options = {name: value for name, value in _CONNECTING.items() if name not in url.query}
    pool = {"pool_size": size, "max_overflow": 0, "pool_timeout": 10, "pool_pre_ping": True}
    engine = create_engine(url, connect_args=options, hide_parameters=True, **pool)
    bound_statements(engine, timeout_s)
    return engine


@contextlib.contextmanager
def errors_of(where: str) -> Iterator[None]:
    """Turns the errors of PostgreSQL into StorageFull, DataFolderError or StoreUnavailable naming `where`."""
    try:
        yield
    except DBAPIError as error:
        meant = translated(error.orig, where)
        if meant is None:
            raise
        raise meant from error
    except PoolTimeout:
        raise StoreUnavailable(where, "all of its connections are in use") from None


class _Locked(StoreUnavailable):
    """Another session holds the right to write."""


def _shown(cursor: Any, name: str) -> str:
    cursor.execute(f"SHOW {name}")
    return str(cursor.fetchone()[0])
