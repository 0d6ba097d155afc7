"""Adapters in a folder and in PostgreSQL: the same to whoever uses them, and in the latter case on every machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from engine.errors import DataFolderError, InvalidAdapter, UnknownAdapter, UnknownVersion
from engine.generation.adapters.catalogue import AdapterCatalogue
from engine.generation.adapters.registry import AdapterRegistry
from engine.tuning.adapter_store import open_adapters
from loadtest.postgres_server import PostgresServer

Make = Callable[[str], Path]
Open = Callable[[str], AdapterCatalogue]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Folders that training leaves, told apart by their weights."""

    def folder(weights: str) -> Path:
        made = tmp_path / "trained" / weights
        made.mkdir(parents=True, exist_ok=True)
        (made / "adapter_config.json").write_text("{}")
        (made / "adapter_model.safetensors").write_text(weights)
        (made / "notes.md").write_text("kept as well")
        return made

    return folder


def opener(tmp_path: Path, url: str | None) -> Iterator[Open]:
    opened: list[AdapterCatalogue] = []

    def on(machine: str) -> AdapterCatalogue:
        opened.append(open_adapters(tmp_path / machine, url, (tmp_path / "trained",)))
        return opened[-1]

    yield on
    for each in opened:
        if url is not None:
            each._files.close()


@pytest.fixture(params=["folder", "postgres"])
def either(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens the adapters of a machine, whichever way they are kept."""
    url = None if request.param == "folder" else request.getfixturevalue("postgres").new_schema()
    yield from opener(tmp_path, url)


@pytest.fixture
def on(tmp_path: Path, postgres: PostgresServer) -> Iterator[Open]:
    """Opens the adapters of machines that share a database, and nothing else."""
    yield from opener(tmp_path, postgres.new_schema())


def weights(kept: AdapterCatalogue, name: str = "tone", version: str | None = None) -> str:
    return (kept.locate(name, version=version) / "adapter_model.safetensors").read_text()


def listed(kept: AdapterCatalogue) -> list[str]:
    return [weights(kept, "tone", each) for each in kept.versions("tone").names()]


def test_versions_are_added_used_and_gone_back_to(either: Open, make: Make):
    kept = either("here")
    a, b = kept.add("tone", make("a")), kept.add("tone", make("b"))
    assert kept.names() == ["tone"] and kept.versions("tone").names() == [a, b]
    assert weights(kept) == "b" and weights(kept, version=a) == "a"
    assert kept.use("tone", kept.versions("tone").previous("tone")) == a and weights(kept) == "a"
    assert kept.add("tone", make("b")) == b and kept.versions("tone").names() == [a, b]
    assert kept.locate("tone") == kept.folder / "tone" / b
    assert (kept.locate("tone") / "notes.md").read_text() == "kept as well"
    with pytest.raises(UnknownVersion):
        kept.use("tone", "0" * 12)
    with pytest.raises(UnknownAdapter, match="known: tone"):
        kept.locate("other")
    with pytest.raises(InvalidAdapter, match="its files have the digest"):
        kept.add("tone", make("c"), digest="0" * 64)
    with pytest.raises(InvalidAdapter, match="a name has 1 to 64"):
        kept.add("../tone", make("c"))


def test_five_versions_stay_and_older_ones_only_while_they_are_served(either: Open, make: Make):
    kept = either("here")
    kept.set_served("other", kept.folder / "tone" / kept.add("tone", make("0")))
    for number in range(1, 8):
        kept.add("tone", make(str(number)))
    assert listed(kept) == ["0", "3", "4", "5", "6", "7"]
    kept.set_served("other", None)
    kept.add("tone", make("8"))
    assert listed(kept) == ["4", "5", "6", "7", "8"]
    kept.locate("tone")
    assert {each.name for each in (kept.folder / "tone").iterdir() if each.is_dir()} == set(
        kept.versions("tone").names()
    )


def test_served_set_follows_a_rollback_and_is_changed_name_by_name(either: Open, make: Make):
    kept, other = either("here"), either("here")
    a, b = kept.add("tone", make("a")), kept.add("tone", make("b"))
    kept.set_served("tone", kept.locate("tone"))
    other.set_served("news", other.locate("tone"))  # not undone by the next change of somebody else
    kept.use("tone", a)
    home = kept.folder / "tone"
    assert kept.served() == other.served() == {"tone": home / a, "news": home / b}
    kept.set_served("tone", None)
    assert other.served() == {"news": home / b}


def test_removed_adapter_is_gone_with_its_versions(either: Open, make: Make):
    kept = either("here")
    kept.add("tone", make("a"))
    home = kept.locate("tone")
    kept.remove("tone")
    assert kept.names() == [] and not home.exists()
    with pytest.raises(UnknownAdapter):
        kept.remove("tone")


def test_postgres_gives_another_machine_with_an_empty_disk_the_same_adapters(on: Open, make: Make):
    here, there = on("here"), on("there")
    a = here.add("tone", make("a"))
    here.set_served("tone", here.locate("tone"))
    ((name, folder),) = there.served().items()
    assert (name, folder) == ("tone", there.folder / "tone" / a) and not folder.exists()
    assert there.locate(name, str(folder)) == folder
    assert {each.name for each in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "notes.md"}
    b = there.add("tone", make("b"))
    there.use("tone", a)
    assert weights(here) == "a" and weights(here, version=b) == "b"
    assert here.served() == {"tone": here.folder / "tone" / a}


def test_postgres_puts_right_a_cached_file_that_was_changed_or_half_removed(on: Open, make: Make):
    kept = on("here")
    kept.add("tone", make("a"))
    folder = kept.locate("tone")
    (folder / "adapter_model.safetensors").write_text("changed")
    assert weights(kept) == "a"
    (folder / "adapter_config.json").unlink()
    assert kept.locate("tone") == folder and (folder / "adapter_config.json").exists()


def test_postgres_piece_that_is_damaged_is_refused_and_nothing_takes_its_place(on: Open, make: Make):
    here, there = on("here"), on("there")
    here.add("tone", make("a"))
    with here._files._engine.begin() as connection:
        connection.execute(text("UPDATE file_pieces SET content = '\\x62' WHERE content = '\\x61'"))
    with pytest.raises(DataFolderError, match=r"the file of SHA-256 .* has the SHA-256 .*Add what it belongs to again"):
        there.locate("tone")
    assert list((there.folder / "tone").iterdir()) == []
    here.add("tone", make("a"))
    assert weights(there) == "a"


def test_postgres_takes_what_a_machine_has_in_its_folder_when_it_is_loaded(on: Open, make: Make, tmp_path: Path):
    folder = AdapterRegistry(tmp_path / "here" / "adapters")
    versions = [folder.add("tone", make(name)) for name in "abc"]
    folder.use("tone", versions[1])
    kept = on("here")
    assert kept.names() == ["tone"] and weights(kept) == "b"
    assert sorted(kept.versions("tone").names()) == sorted(versions)
    assert folder.names() == []  # so there is one truth
    folder.add("tone", make("d"))
    assert weights(kept) == "d" and weights(on("there")) == "d"
    folder.add("tone", make("a"))  # what it had before, and is to be the current one again
    assert weights(on("there")) == "d" and weights(kept) == "a" and weights(on("there")) == "a"
    (tmp_path / "here" / "adapters" / "news").mkdir()
    for file in make("plain").iterdir():
        file.rename(tmp_path / "here" / "adapters" / "news" / file.name)
    assert on("there").names() == ["tone"] and kept.names() == ["news", "tone"]
    assert weights(kept, "news") == weights(on("there"), "news") == "plain"


def test_postgres_takes_what_a_link_leads_to_when_that_is_new(on: Open, make: Make, tmp_path: Path):
    kept = on("here")
    home = tmp_path / "here" / "adapters"
    home.mkdir(parents=True)
    (home / "tone").symlink_to(make("a"))
    first = kept.locate("tone").name
    second = kept.add("tone", make("b"))
    assert weights(kept) == "b" and (home / "tone").is_symlink()
    (make("a") / "adapter_model.safetensors").write_text("newer")
    assert weights(kept) == "newer"
    assert kept.versions("tone").names()[:2] == [first, second]


def test_postgres_takes_over_what_was_served_from_the_folder_alone(on: Open, make: Make, tmp_path: Path):
    folder = AdapterRegistry(tmp_path / "here" / "adapters", (tmp_path / "trained",))
    old, new = folder.add("tone", make("a")), folder.add("tone", make("b"))
    folder.set_served("tone", folder.locate("tone", version=old))
    folder.set_served("far", make("far"))
    folder.set_served("gone", tmp_path / "trained" / "gone")
    kept = on("here")
    assert set(kept.served()) == {"tone", "far"}
    there = on("there")
    served = there.served()
    assert {name: weights(there, *Path(path).relative_to(there.folder).parts) for name, path in served.items()} == {
        "tone": "a",
        "far": "far",
    }
    assert kept.versions("tone").current == new
    # What could not be taken over is tried again at the next start, and nothing else is.
    assert json.loads((folder.folder / "served.json").read_text()).keys() == {"gone"}


def test_postgres_makes_a_version_of_what_is_loaded_from_elsewhere(on: Open, make: Make, tmp_path: Path):
    kept = on("here")
    folder = kept.locate("tone", str(make("far")))
    kept.set_served("tone", folder)
    assert weights(on("there")) == "far" and on("there").served().keys() == {"tone"}
    with pytest.raises(InvalidAdapter, match=r"lies outside .* generator\.adapter_paths"):
        kept.locate("tone", str(tmp_path))
