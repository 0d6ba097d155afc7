"""`switchyard adapters` against the running server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest
from running_server import SWITCHYARD, Server
from tiny_adapter import write_tiny_adapter
from tiny_model import write_tiny_model

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
