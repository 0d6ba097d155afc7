"""The adapter among the versions in the data folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import InvalidAdapter
from engine.generation.adapters.manifest import MANIFEST_FILE, AdapterManifest
from engine.generation.adapters.registry import AdapterRegistry
from engine.tuning.run.registering import register, write_manifest


def made(folder: Path, weights: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(weights)
    write_manifest(folder, AdapterManifest(task="chat"))
    return folder


def test_registered_adapter_is_the_current_version_and_the_earlier_one_is_kept(tmp_path: Path):
    first = register(tmp_path, "bot", made(tmp_path / "one", "first"))
    second = register(tmp_path, "bot", made(tmp_path / "two", "second"))
    registry = AdapterRegistry(tmp_path / "adapters")
    assert registry.locate("bot") == second != first
    assert (first / "adapter_model.safetensors").read_text() == "first"
    assert '"chat"' in (second / MANIFEST_FILE).read_text()


def test_adapter_that_is_not_whole_leaves_what_was_there(tmp_path: Path):
    first = register(tmp_path, "bot", made(tmp_path / "one", "first"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidAdapter, match="cannot be read"):
        register(tmp_path, "bot", tmp_path / "empty")
    assert AdapterRegistry(tmp_path / "adapters").locate("bot") == first
