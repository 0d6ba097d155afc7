"""The one server of a test run: real Ray, real SQLite and FAISS, tiny models that need no network."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

if not Path("/dev/nvidia0").exists():
    # Triton's kernels then run on a CPU, in its interpreter; it decides that when it is imported.
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
from running_server import STOP_TIMEOUT_S, Server, start_server
from tiny_encoder import write_tiny_encoder
from tiny_model import write_tiny_model

from engine.retrieval.store.shared_files import SharedFiles
from loadtest.postgres_server import PostgresServer, missing


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> tuple[str, ...]:
    """Options that make a server use tiny models."""
    generator = write_tiny_model(tmp_path_factory.mktemp("generator"))
    encoder = write_tiny_encoder(tmp_path_factory.mktemp("encoder"))
    return (
        *("--set", f"generator.model={generator}", "--set", "generator.max_model_len=512"),
        *("--set", "generator.name=tiny", "--set", f"retriever.model={encoder}"),
    )


@pytest.fixture(scope="session")
def tiny_sources(tiny_models: tuple[str, ...]) -> dict[str, str]:
    """The sources of these models, as load tests that start a service of their own take them."""
    values = dict(each.split("=", 1) for each in tiny_models if "=" in each)
    return {"generator": values["generator.model"], "encoder": values["retriever.model"]}


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_models) -> Iterator[Server]:
    """The server that every end-to-end test shares; tests keep to collections of their own."""
    server = start_server(tmp_path_factory.mktemp("server"), *tiny_models)
    yield server
    left = server.stop()
    assert not left, f"still there {STOP_TIMEOUT_S} s after Ctrl-C: {left}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The PostgreSQL server that tests share in which it does not crash; each has a schema of its own."""
    yield from _postgres(is_durable=False)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """A schema of the test's own."""
    return postgres.new_schema()


@pytest.fixture
def shared_files(postgres_url: str) -> Iterator[SharedFiles]:
    """The files in it."""
    with contextlib.closing(SharedFiles(postgres_url)) as opened:
        yield opened


@pytest.fixture
def crashing() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own."""
    yield from _postgres(is_durable=True)


def _postgres(*, is_durable: bool) -> Iterator[PostgresServer]:
    why = missing()
    if why is not None:
        pytest.skip(why)
    server = PostgresServer(is_durable=is_durable)
    try:
        server.start()
        yield server
    finally:
        server.close()
