"""One application over tiny real components for this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from local_backends import LocalBackends
from tiny_encoder import write_tiny_encoder
from tiny_model import write_tiny_model

from engine.api.app import create_app
from engine.config import EngineConfig, parse_config
from engine.generation.engine import Engine
from engine.retrieval.encoding.encoder import Encoder
from engine.retrieval.service import Retriever

ARGS = {
    "generator": {"dtype": "float32", "max_model_len": 512, "threads": 1},
    "gateway": {"max_body_bytes": 65536, "max_document_bytes": 200_000, "body_timeout_s": 1.0},
}


@pytest.fixture(scope="session")
def engine(tmp_path_factory) -> Iterator[Engine]:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny-model"))
    engine = Engine(folder, parse_config(ARGS, "test").generator)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Encoder:
    return Encoder(write_tiny_encoder(tmp_path_factory.mktemp("tiny-encoder")), threads=1, batch_tokens=4096)


@pytest.fixture
def config() -> EngineConfig:
    return parse_config(ARGS, "test")


@pytest.fixture
def backends(tmp_path, engine, encoder, config) -> Iterator[LocalBackends]:
    retriever = Retriever(tmp_path / "data", encoder, config.retriever)
    config = config.model_copy(update={"data": tmp_path / "data"})
    yield LocalBackends(retriever, engine, config)
    retriever.close()


@pytest.fixture
async def client(backends, config) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(backends, config), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        yield client
