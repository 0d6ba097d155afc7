"""Statements on PostgreSQL end in time: the server ends what takes long, the client what gets no answer."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event

from engine.errors import ConfigError

# What an answer may take longer than its statement.
_ANSWER_S = 2


def require_driver() -> None:
    """Raises: ConfigError naming the extra that provides the driver."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ConfigError("a PostgreSQL store needs psycopg, which is missing: pip install '.[postgres]'") from None


def bound_statements(engine: Engine, timeout_s: int) -> None:
    """Let every statement on the engine's connections take at most `timeout_s`, also where the server has frozen."""
    from psycopg import Connection, OperationalError
    from psycopg.errors import Error

    class Bounded(Connection[Any]):
        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval, timeout or timeout_s + _ANSWER_S)
            except Error as error:
                if type(error).__name__ != "_WaitTimeout":
                    raise
                self.close()
                raise OperationalError(f"no answer within {timeout_s + _ANSWER_S} s") from None

    def connect(_dialect: Any, _record: Any, arguments: Any, named: Any) -> Any:
        return Bounded.connect(*arguments, **named)

    def configure(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = '{timeout_s}s'")
            # The server notices within a minute that this machine is gone, and gives up what it held.
            cursor.execute("SET tcp_keepalives_idle = 20")
            cursor.execute("SET tcp_keepalives_interval = 10")
            cursor.execute("SET tcp_keepalives_count = 3")
        connection.commit()

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "connect", configure)
