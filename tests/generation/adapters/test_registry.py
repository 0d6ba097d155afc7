"""The adapters folder: names, confined paths, and the set that survives a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import DataFolderError, InvalidAdapter, UnknownAdapter
from engine.generation.adapters.registry import AdapterRegistry


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    for name in ("tone", "news"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "adapter_config.json").write_text("{}")
    (tmp_path / "adapters" / "empty").mkdir()
    return AdapterRegistry(tmp_path / "adapters")


def test_names_are_those_of_folders_with_a_configuration(registry: AdapterRegistry, tmp_path: Path):
    assert registry.names() == ["news", "tone"]
    assert AdapterRegistry(tmp_path / "nowhere").names() == []


def test_name_finds_its_folder_and_a_path_another_one(registry: AdapterRegistry):
    assert registry.locate("tone") == registry.folder / "tone"
    assert registry.locate("tone", "news") == registry.folder / "news"
    with pytest.raises(UnknownAdapter, match=r"'other' is unknown; known: news, tone"):
        registry.locate("other")


@pytest.mark.parametrize("name", ["", "auto", "../x", "a/b", ".hidden", "x" * 65, "a b", "ä"])
def test_name_that_is_no_plain_folder_name_is_refused(registry: AdapterRegistry, name: str):
    with pytest.raises(InvalidAdapter, match="a name has 1 to 64"):
        registry.locate(name)
    with pytest.raises(InvalidAdapter, match="a name has 1 to 64"):
        registry.remove(name)


@pytest.mark.parametrize("path", ["..", "../outside", "/etc", "tone/../../outside", "."])
def test_path_outside_the_folder_is_refused(registry: AdapterRegistry, path: str):
    with pytest.raises(InvalidAdapter, match=r"lies outside .* generator\.adapter_paths"):
        registry.locate("tone", path)


def test_link_out_of_the_folder_is_refused_and_a_folder_that_is_allowed_is_not(tmp_path: Path):
    outside = tmp_path / "outside" / "tone"
    outside.mkdir(parents=True)
    (outside / "adapter_config.json").write_text("{}")
    home = tmp_path / "adapters"
    home.mkdir()
    (home / "linked").symlink_to(outside)
    with pytest.raises(InvalidAdapter, match="lies outside"):
        AdapterRegistry(home).locate("linked")
    open_registry = AdapterRegistry(home, (tmp_path / "outside",))
    assert open_registry.locate("linked") == open_registry.locate("x", str(outside)) == outside
    with pytest.raises(InvalidAdapter, match="is a link, which is not followed to delete"):
        open_registry.remove("linked")
    assert outside.exists()


def test_removed_folder_is_gone(registry: AdapterRegistry):
    registry.remove("tone")
    assert registry.names() == ["news"]
    with pytest.raises(UnknownAdapter):
        registry.remove("tone")


def test_served_set_is_found_again(registry: AdapterRegistry, tmp_path: Path):
    assert registry.served() == {}
    folders = {"a": registry.folder / "tone", "b": tmp_path / "elsewhere"}
    for name, folder in folders.items():
        registry.set_served(name, folder)
    assert AdapterRegistry(registry.folder).served() == folders
    assert '"a": "tone"' in (registry.folder / "served.json").read_text()  # so the data folder may move
    assert [each.name for each in registry.folder.iterdir() if each.is_file()] == ["served.json"]


def test_damaged_set_is_named(registry: AdapterRegistry):
    (registry.folder / "served.json").write_text("[1]")
    with pytest.raises(DataFolderError, match=r"served\.json: cannot be read"):
        registry.served()
