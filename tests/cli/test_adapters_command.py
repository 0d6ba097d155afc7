"""`switchyard adapters` against the running server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator

import httpx
import pytest
from running_server import SWITCHYARD, Server
from tiny_adapter import write_tiny_adapter
from tiny_model import write_tiny_model

from engine.generation.adapters.registry import AdapterRegistry
from engine.tuning.adapter_store import open_adapters

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(server: Server) -> Run:
    def call(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(SWITCHYARD), *arguments, "--url", server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


@pytest.fixture
def name(server: Server, tmp_path, run: Run) -> Iterator[str]:
    """An adapter of the server's tiny model, in its data folder."""
    base = write_tiny_model(tmp_path / "base")
    write_tiny_adapter(server.data / "adapters" / "cli-tone", base, seed=1)
    yield "cli-tone"
    if any(card["name"] == "cli-tone" for card in json.loads(run("adapters", "list", "--json").stdout)["data"]):
        run("adapters", "remove", "cli-tone")


def test_adapter_is_listed_loaded_asked_unloaded_and_removed(run: Run, name: str):
    assert f"not loaded ({name})" in run("adapters", "list").stdout
    card = json.loads(run("adapters", "load", name, "--json").stdout)
    assert card["loaded"] and card["rank"] == 4
    assert f"loaded, rank 4, q/k/v/o/gate/up/down, digest {card['digest'][:12]}" in run("adapters", "list").stdout
    assert json.loads(run("adapters", "show", name, "--json").stdout) == card
    assert "parent   tiny" in run("adapters", "show", name).stdout
    answer = json.loads(run("ask", "How long?", "--model", name, "--route", "direct", "--json").stdout)
    assert card["digest"] in json.dumps(answer)
    assert run("adapters", "unload", name).stdout == f"{name}: unloaded\n"
    assert "is unknown; known: auto, tiny" in run("ask", "How long?", "--model", name, code=1).stderr
    assert run("adapters", "remove", name).stdout == f"{name}: removed\n"
    assert name not in run("adapters", "list").stdout


def test_failures_are_one_line_with_the_fix(run: Run):
    assert "adapter 'nope' is unknown" in run("adapters", "load", "nope", code=1).stderr
    assert "adapter 'nope' is unknown" in run("adapters", "show", "nope", code=1).stderr
    assert "lies outside" in run("adapters", "load", "nope", "--path", "/etc", code=1).stderr


def test_versions_are_shown_and_rolled_back_and_texts_classified(run: Run, name: str, server: Server):
    registry = AdapterRegistry(server.data / "adapters")
    source = server.data / "adapters" / name
    labels = [{"name": "yes", "text": "yes"}, {"name": "no", "text": "no"}]
    versions = []
    for instruction in ("Is it so?", "Really?"):
        manifest = {"task": "classify", "labels": labels, "instruction": instruction, "metrics": {"accuracy": 0.9}}
        (source / "switchyard.json").write_text(json.dumps(manifest))
        versions.append(registry.add("cli-bot", source))
    first, second = versions
    try:
        assert run("adapters", "load", "cli-bot").stdout.endswith(f"digest {second}, classify with 2 labels\n")
        shown = run("adapters", "show", "cli-bot").stdout
        for line in ("task     classify", "labels   yes, no", "metrics  accuracy 0.9", "instruction Really?"):
            assert line in shown
        assert f"\n{second} added " in shown and "(current) (loaded)\n" in shown and f"\n{first} added " in shown
        answer = httpx.post(
            f"{server.url}/v1/classify", json={"model": "cli-bot", "input": ["Yes?", "No?"]}, timeout=60
        )
        assert answer.status_code == 200, answer.text
        assert [sum(each["scores"].values()) for each in answer.json()["results"]] == pytest.approx([1, 1])
        assert answer.json()["digest"].startswith(second)
        assert f"digest {first}" in run("adapters", "rollback", "cli-bot").stdout
        assert "is the oldest that is kept" in run("adapters", "rollback", "cli-bot", code=1).stderr
        assert json.loads(run("adapters", "rollback", "cli-bot", second, "--json").stdout)["version"] == second
        assert "has no version 'nope'" in run("adapters", "rollback", "cli-bot", "nope", code=1).stderr
        assert "adapter 'nope' is unknown" in run("adapters", "rollback", "nope", code=1).stderr
    finally:
        run("adapters", "remove", "cli-bot")


def test_a_folder_is_added_as_a_version_and_loaded(run: Run, server: Server, tmp_path):
    base = write_tiny_model(tmp_path / "base")
    write_tiny_adapter(tmp_path / "cli-added", base, seed=3)
    data = ("--data", str(server.data))
    try:
        shown = run("adapters", "add", str(tmp_path / "cli-added"), *data).stdout
        version = next(iter(AdapterRegistry(server.data / "adapters").versions("cli-added").names()))
        assert f"version {version} is the current one" in shown and "ask for it by model 'cli-added'" in shown
        assert json.loads(run("adapters", "show", "cli-added", "--json").stdout)["version"] == version
        wide = write_tiny_model(tmp_path / "other-base", head_dim=32)
        write_tiny_adapter(tmp_path / "other", wide, seed=3)
        refused = run("adapters", "add", str(tmp_path / "other"), "--name", "cli-added", *data, code=1).stderr
        assert refused.count("\n") == 1 and "switchyard adapters rollback cli-added" in refused
        assert json.loads(run("adapters", "show", "cli-added", "--json").stdout)["digest"].startswith(version)
        assert "is no folder" in run("adapters", "add", str(tmp_path / "none"), *data, code=1).stderr
    finally:
        run("adapters", "remove", "cli-added")


def test_an_adapter_added_where_no_server_answers_is_loaded_later(tmp_path):
    base = write_tiny_model(tmp_path / "base")
    write_tiny_adapter(tmp_path / "bot", base, seed=3)
    done = subprocess.run(
        [SWITCHYARD, "adapters", "add", tmp_path / "bot", "--data", tmp_path / "data", "--url", "http://127.0.0.1:9"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "switchyard adapters load bot" in done.stdout
    assert AdapterRegistry(tmp_path / "data" / "adapters").versions("bot").current


def test_rollback_changes_the_data_folder_where_no_server_answers(tmp_path):
    registry = AdapterRegistry(tmp_path / "adapters")
    for weights in "ab":
        (tmp_path / "trained").mkdir(exist_ok=True)
        (tmp_path / "trained" / "adapter_config.json").write_text("{}")
        (tmp_path / "trained" / "adapter_model.safetensors").write_text(weights)
        registry.add("bot", tmp_path / "trained")
    first, _ = registry.versions("bot").names()
    registry.set_served("bot", registry.locate("bot"))

    def rollback(name: str, code: int) -> subprocess.CompletedProcess[str]:
        options = ["--url", "http://127.0.0.1:9", "--data", str(tmp_path)]
        command = [str(SWITCHYARD), "adapters", "rollback", name, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    assert f"bot: version {first} is the current one; no server answers" in rollback("bot", 0).stdout
    assert registry.versions("bot").current == first and registry.served() == {"bot": registry.folder / "bot" / first}
    assert "is the oldest that is kept" in rollback("bot", 1).stderr
    assert "no server answers at http://127.0.0.1:9" in rollback("other", 1).stderr


def test_add_and_rollback_change_postgres_where_the_environment_names_it(tmp_path, postgres):
    environment = os.environ | {"SWITCHYARD_STORE": postgres.new_schema()}

    def adapters(*arguments: str, machine: str) -> str:
        command = [str(SWITCHYARD), "adapters", *arguments, "--url", "http://127.0.0.1:9"]
        command += ["--data", str(tmp_path / machine)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    base = write_tiny_model(tmp_path / "base")
    for seed in range(2):
        write_tiny_adapter(tmp_path / str(seed), base, seed=seed)
        assert "is the current one in the store" in adapters(
            "add", str(tmp_path / str(seed)), "--name", "bot", machine="one"
        )
    shown = adapters("rollback", "bot", machine="two")
    kept = open_adapters(tmp_path / "three", environment["SWITCHYARD_STORE"])
    versions = kept.versions("bot")
    assert f"bot: version {versions.current} is the current one" in shown and versions.current == versions.names()[0]
    assert (kept.locate("bot") / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "0" / "adapter_model.safetensors"
    ).read_bytes()
    kept._files.close()
