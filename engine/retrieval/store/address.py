"""Where the store lives: a URL of the configuration or the environment, whose password nobody shows."""

from __future__ import annotations

import os

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from engine.errors import ConfigError

VARIABLE = "SWITCHYARD_STORE"
_DRIVER = "postgresql+psycopg"
_EXAMPLE = f"{_DRIVER}://USER@HOST:5432/DATABASE"


def chosen_store(configured: str | None) -> str | None:
    """The URL of the store: SWITCHYARD_STORE where it is set, else `store` of the configuration; None: SQLite."""
    return os.environ.get(VARIABLE) or configured


def store_url(text: str) -> URL:
    """Raises: ConfigError for anything but a PostgreSQL database; the message holds no password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError(f"the store's URL cannot be read; it looks like {_EXAMPLE}") from None
    if url.drivername == "postgresql":
        url = url.set(drivername=_DRIVER)
    if url.drivername != _DRIVER or not url.database:
        raise ConfigError(
            f"the store {without_secrets(url)} names no PostgreSQL database; allowed: {_EXAMPLE}. "
            "Leave it out to keep the store in the data folder."
        )
    return url


def without_secrets(url: URL) -> str:
    """The URL without password and options, which may hold one."""
    return URL.create(url.drivername, url.username, None, url.host, url.port, url.database).render_as_string()
