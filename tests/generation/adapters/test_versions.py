"""Versions of adapters: added atomically, named by content, kept within bounds, gone back to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DataFolderError, InvalidAdapter, UnknownAdapter, UnknownVersion
from engine.generation.adapters import registry as registry_module
from engine.generation.adapters.content import content_digest
from engine.generation.adapters.registry import AdapterRegistry

REPOSITORY = Path(__file__).parents[3]
Make = Callable[[str], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Folders that training leaves, told apart by their weights."""

    def folder(weights: str, **files: str) -> Path:
        made = tmp_path / "trained" / weights
        made.mkdir(parents=True, exist_ok=True)
        contents = {"adapter_config.json": "{}", "adapter_model.safetensors": weights, **files}
        for name, text in contents.items():
            (made / name).write_text(text)
        return made

    return folder


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "data" / "adapters")


def weights(registry: AdapterRegistry, name: str = "tone", version: str | None = None) -> str:
    return (registry.locate(name, version=version) / "adapter_model.safetensors").read_text()


def listed(registry: AdapterRegistry, name: str = "tone") -> list[str]:
    return [weights(registry, name, each) for each in registry.versions(name).names()]


def folders(registry: AdapterRegistry, name: str = "tone") -> set[str]:
    return {each.name for each in (registry.folder / name).iterdir() if each.is_dir()}


def test_added_files_are_a_version_named_by_their_digest(registry: AdapterRegistry, make: Make):
    source = make("a")
    (source / "switchyard.json").write_text('{"task": "qa"}')
    (source / "notes.md").write_text("kept as well")
    (source / ".hidden").write_text("left out")
    (source / "checkpoints").mkdir()
    (source / "elsewhere").symlink_to("/etc/hostname")
    version = registry.add("tone", source)
    names = ("adapter_config.json", "adapter_model.safetensors", "switchyard.json")
    digest = content_digest({name: (source / name).read_bytes() for name in names})
    (added,) = registry.versions("tone").versions
    assert (version, added.version, added.digest) == (digest[:12], digest[:12], digest)
    assert registry.names() == ["tone"] and registry.locate("tone") == registry.folder / "tone" / version
    assert {each.name for each in registry.locate("tone").iterdir()} == {*names, "notes.md"}


def test_same_files_are_one_version_and_a_changed_manifest_is_another(registry: AdapterRegistry, make: Make):
    first = registry.add("tone", make("a"))
    before = (registry.folder / "tone" / "versions.json").read_bytes()
    assert registry.add("tone", make("a")) == first
    assert (registry.folder / "tone" / "versions.json").read_bytes() == before
    (make("a") / "switchyard.json").write_text('{"task": "qa"}')
    second = registry.add("tone", make("a"))
    assert second != first and registry.versions("tone").current == second
    (make("a") / "switchyard.json").unlink()
    assert registry.add("tone", make("a")) == first  # added again after another: it counts as the newest
    assert registry.versions("tone").names() == [second, first]


def test_newest_version_is_current_until_another_is_used(registry: AdapterRegistry, make: Make):
    a, b, c = (registry.add("tone", make(name)) for name in "abc")
    assert weights(registry) == "c" and weights(registry, version=a) == "a"
    assert registry.versions("tone").previous("tone") == b
    assert registry.use("tone", a) == a and weights(registry) == "a"
    with pytest.raises(InvalidAdapter, match=f"nothing to go back to: version {a} is the oldest"):
        registry.versions("tone").previous("tone")
    assert registry.use("tone", registry.versions("tone").versions[2].digest) == c  # a whole digest will do
    assert [each.added_at for each in registry.versions("tone").versions] == sorted(
        each.added_at for each in registry.versions("tone").versions
    )


@pytest.mark.parametrize("version", ["", "..", "../tone", "0" * 12, "0" * 64, "x" * 5000, "/etc"])
def test_version_that_is_not_there_is_refused_by_name(registry: AdapterRegistry, make: Make, version: str):
    known = registry.add("tone", make("a"))
    for act in (lambda: registry.use("tone", version), lambda: registry.locate("tone", version=version)):
        with pytest.raises(UnknownVersion, match=f"adapter 'tone' has no version .* it has: {known}") as error:
            act()
        assert len(str(error.value)) < 300


def test_five_versions_are_kept_and_older_ones_only_while_they_are_served(registry: AdapterRegistry, make: Make):
    served = registry.add("tone", make("0"))
    alias = registry.add("tone", make("1"))
    home = registry.folder / "tone"
    registry.set_served("tone", home / served)
    registry.set_served("other", home / alias)
    for number in range(2, 9):
        registry.add("tone", make(str(number)))
    assert listed(registry) == ["0", "1", "4", "5", "6", "7", "8"]
    registry.set_served("tone", None)
    registry.add("tone", make("9"))
    assert listed(registry) == ["1", "5", "6", "7", "8", "9"]
    assert folders(registry) == set(registry.versions("tone").names())


def test_current_version_is_kept_however_old(registry: AdapterRegistry, make: Make):
    for number in range(5):
        registry.add("tone", make(str(number)))
    registry.use("tone", registry.versions("tone").names()[0])
    registry.add("tone", make("5"))
    assert listed(registry) == ["1", "2", "3", "4", "5"]


def test_plain_folder_goes_on_working_and_is_kept_as_the_version_before(registry: AdapterRegistry, make: Make):
    home = registry.folder / "tone"
    registry.folder.mkdir(parents=True)
    make("plain").rename(home)
    assert registry.locate("tone") == home and registry.versions("tone").names() == []
    with pytest.raises(UnknownVersion, match="it has: none"):
        registry.use("tone", "0" * 12)
    with pytest.raises(InvalidAdapter, match="nothing to go back to: it has no versions"):
        registry.versions("tone").previous("tone")
    registry.set_served("tone", home)
    registry.add("tone", make("new"))
    assert listed(registry) == ["plain", "new"]
    assert registry.served() == {"tone": home} and (home / "adapter_model.safetensors").read_text() == "plain"
    registry.use("tone", registry.versions("tone").previous("tone"))
    assert weights(registry) == "plain"


def test_restart_serves_what_was_served_after_an_add_and_what_is_used_after_a_rollback(
    registry: AdapterRegistry, make: Make
):
    home = registry.folder / "tone"
    a = registry.add("tone", make("a"))
    registry.set_served("tone", home / a)
    registry.set_served("pinned", home / a)
    b = registry.add("tone", make("b"))
    assert registry.served()["tone"] == home / a
    registry.use("tone", b)
    assert registry.served() == {"tone": home / b, "pinned": home / a}


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_folder_without_an_adapter_adds_nothing(registry: AdapterRegistry, make: Make, missing: str):
    source = make("a")
    (source / missing).unlink()
    with pytest.raises(InvalidAdapter, match=f"{missing} cannot be read"):
        registry.add("tone", source)
    with pytest.raises(InvalidAdapter, match="is no folder"):
        registry.add("tone", source / "nowhere")
    assert registry.names() == [] and folders(registry) == set()


def test_digest_that_the_files_do_not_have_and_a_broken_manifest_are_refused(registry: AdapterRegistry, make: Make):
    version = registry.add("tone", make("a"))
    whole = registry.versions("tone").versions[0].digest
    assert registry.add("tone", make("a"), digest=whole) == version
    with pytest.raises(InvalidAdapter, match=f"its files have the digest {whole}, not eeee"):
        registry.add("tone", make("a"), digest="e" * 64)
    (make("b") / "switchyard.json").write_text("{")
    with pytest.raises(InvalidAdapter, match=r"switchyard\.json is not a JSON object"):
        registry.add("tone", make("b"))
    assert listed(registry) == ["a"] and len(folders(registry)) == 1


@pytest.mark.parametrize("name", ["", "auto", "../x", "a/b", ".hidden", "x" * 65])
def test_hostile_names_are_refused(registry: AdapterRegistry, make: Make, name: str):
    for act in (
        lambda: registry.add(name, make("a")),
        lambda: registry.use(name, "0"),
        lambda: registry.versions(name),
    ):
        with pytest.raises(InvalidAdapter, match="a name has 1 to 64"):
            act()
    assert not registry.folder.exists()


def test_folder_that_is_a_link_is_not_written_through(registry: AdapterRegistry, make: Make, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    registry.folder.mkdir(parents=True)
    (registry.folder / "tone").symlink_to(outside)
    with pytest.raises(InvalidAdapter, match="its folder is a link"):
        registry.add("tone", make("a"))
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"current": "../../x", "versions": []}',
        json.dumps(
            {"current": "../../../x", "versions": [{"version": "../../../x", "digest": "0" * 64, "added_at": 1}]}
        ),
        '{"format": 2, "versions": []}',
    ],
)
def test_damaged_list_of_versions_is_named_and_leads_nowhere(registry: AdapterRegistry, make: Make, content: str):
    registry.add("tone", make("a"))
    (registry.folder / "tone" / "versions.json").write_text(content)
    for act in (
        lambda: registry.locate("tone"),
        lambda: registry.use("tone", "0" * 12),
        lambda: registry.add("tone", make("b")),
    ):
        with pytest.raises(DataFolderError, match=r"versions\.json: cannot be read"):
            act()
    registry.remove("tone")
    assert registry.names() == []


def test_version_changed_by_hand_is_put_right_when_it_is_added_again(registry: AdapterRegistry, make: Make):
    version = registry.add("tone", make("a"))
    (registry.locate("tone") / "adapter_model.safetensors").write_text("other")
    assert registry.add("tone", make("a")) == version and weights(registry) == "a"
    assert folders(registry) == {version}


def test_remove_deletes_every_version(registry: AdapterRegistry, make: Make):
    for name in "ab":
        registry.add("tone", make(name))
    registry.remove("tone")
    assert not (registry.folder / "tone").exists()
    with pytest.raises(UnknownAdapter):
        registry.use("tone", "0" * 12)


@pytest.mark.parametrize("step", ["copy_files", "sync_folder", "write_file"])
def test_add_that_is_cut_short_leaves_the_earlier_version_and_the_next_one_clears_up(
    registry: AdapterRegistry, make: Make, monkeypatch: pytest.MonkeyPatch, step: str
):
    class Killed(BaseException):
        """Not an error that anybody handles."""

    registry.add("tone", make("a"))
    real = getattr(registry_module, step)

    def killed(*arguments: Any) -> Any:
        if step == "write_file":
            arguments[0].with_name(".versions.json.123.tmp").touch()
        else:
            real(*arguments)
        # As after a kill: what was written stays.
        monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"engine.generation.adapters.registry.{step}", killed)
        with pytest.raises(Killed):
            registry.add("tone", make("b"))
    monkeypatch.undo()
    assert listed(registry) == ["a"] and weights(registry) == "a"
    assert len(folders(registry)) == 2
    registry.add("tone", make("c"))
    assert listed(registry) == ["a", "c"] and folders(registry) == set(registry.versions("tone").names())
    assert {each.name for each in (registry.folder / "tone").iterdir()} == {*folders(registry), "versions.json"}


def test_full_disk_is_an_error_that_names_the_folder(
    registry: AdapterRegistry, make: Make, monkeypatch: pytest.MonkeyPatch
):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataFolderError, match=r"tone: cannot be written \(No space left on device\)"):
        registry.add("tone", make("a"))
    assert folders(registry) == set()


def test_processes_that_add_at_once_lose_nothing(registry: AdapterRegistry, make: Make, tmp_path: Path):
    """A trainer in its own process, beside a server that reads and writes."""
    for number in range(8):
        make(str(number))
    code = (
        "import sys; from pathlib import Path; from engine.generation.adapters.registry import AdapterRegistry\n"
        "registry = AdapterRegistry(Path(sys.argv[1]))\n"
        "for name in sys.argv[3:]: registry.add('tone', Path(sys.argv[2], name))"
    )
    seen: list[str] = []
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            if registry.names():
                seen.append(weights(registry))
                registry.set_served("tone", registry.locate("tone"))

    reader = threading.Thread(target=serve)
    reader.start()
    command = [sys.executable, "-c", code, str(registry.folder), str(tmp_path / "trained")]
    writers = [subprocess.Popen([*command, *names], cwd=REPOSITORY) for names in ("0123", "4567")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    stop.set()
    reader.join()
    versions = registry.versions("tone")
    assert len(versions.names()) >= 5 and {"3", "7"} <= set(listed(registry))
    assert folders(registry) == set(versions.names()) and seen
    assert json.loads((registry.folder / "served.json").read_text())["tone"].startswith("tone/")
