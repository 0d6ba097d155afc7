"""What is served survives a restart, and what cannot be served any more says why."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_adapter import write_tiny_adapter

from engine.config import GeneratorSettings
from engine.errors import InvalidAdapter, UnknownAdapter
from engine.generation.adapters.registry import AdapterRegistry
from engine.generation.adapters.service import AdapterService
from engine.generation.engine import Engine


@pytest.fixture
def engine(tiny_model: Path) -> Iterator[Engine]:
    engine = Engine(tiny_model, GeneratorSettings(dtype="float32", threads=1, max_model_len=256, kv_tokens=1024))
    yield engine
    engine.close()


@pytest.fixture
def home(tiny_model: Path, tmp_path: Path) -> Path:
    home = tmp_path / "adapters"
    write_tiny_adapter(home / "tone", tiny_model, seed=1)
    shutil.copytree(home / "tone", home / "news")
    return home


def restarted(engine: Engine, registry: AdapterRegistry) -> AdapterService:
    """As a new process finds it."""
    for info in engine.adapters():
        engine.unload_adapter(info.name)
    return AdapterService(engine, registry, base_name="tiny")


def loaded(service: AdapterService) -> dict[str, bool]:
    return {status.name: status.is_loaded for status in service.statuses()}


def test_loaded_adapters_are_served_again_after_a_restart_and_unloaded_ones_are_not(engine: Engine, home: Path):
    registry = AdapterRegistry(home)
    service = restarted(engine, registry)
    for name in ("tone", "news"):
        service.load(name)
    service.load("alias", "tone")
    service.unload("news")
    assert loaded(restarted(engine, registry)) == {"alias": True, "news": False, "tone": True}


def test_adapter_that_vanished_says_so_and_the_others_are_served(engine: Engine, home: Path):
    registry = AdapterRegistry(home)
    service = restarted(engine, registry)
    for name in ("tone", "news"):
        service.load(name)
    shutil.rmtree(home / "tone")
    service = restarted(engine, registry)
    assert loaded(service) == {"news": True, "tone": False}
    assert next(status.error for status in service.statuses() if status.name == "tone") == (
        "adapter 'tone' cannot be loaded: its folder is not there."
    )
    service.unload("tone")
    assert loaded(restarted(engine, registry)) == {"news": True}


def test_folder_elsewhere_is_served_only_where_a_setting_allows_it(engine: Engine, home: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere" / "tone"
    shutil.copytree(home / "tone", elsewhere)
    with pytest.raises(InvalidAdapter, match="lies outside"):
        restarted(engine, AdapterRegistry(home)).load("tone", str(elsewhere))
    allowed = AdapterRegistry(home, GeneratorSettings(adapter_paths=(tmp_path / "elsewhere",)).adapter_paths)
    assert restarted(engine, allowed).load("tone", str(elsewhere)).path == str(elsewhere)
    assert loaded(restarted(engine, allowed))["tone"]
    assert not loaded(restarted(engine, AdapterRegistry(home)))["tone"]


def test_unknown_names_are_refused(engine: Engine, home: Path):
    service = restarted(engine, AdapterRegistry(home))
    with pytest.raises(UnknownAdapter, match="'tone' is unknown; known: none"):
        service.unload("tone")
    with pytest.raises(UnknownAdapter):
        service.unload("nope", delete_files=True)
    service.unload("tone", delete_files=True)
    assert loaded(service) == {"news": False}


def test_restart_serves_the_version_that_was_loaded_and_not_one_added_since(engine: Engine, home: Path):
    registry = AdapterRegistry(home)
    first = registry.add("bot", home / "tone")
    service = restarted(engine, registry)
    service.load("bot")
    (home / "news" / "switchyard.json").write_text('{"task": "chat"}')
    second = registry.add("bot", home / "news")

    def version() -> str | None:
        return next(status.version for status in service.statuses() if status.name == "bot")

    service = restarted(engine, registry)
    assert (version(), loaded(service)["bot"]) == (first, True)
    service.load("bot")
    service = restarted(engine, registry)
    assert (version(), loaded(service)["bot"]) == (second, True)
    registry.use("bot", first)  # by somebody who found no server
    service = restarted(engine, registry)
    assert (version(), loaded(service)["bot"]) == (first, True)
