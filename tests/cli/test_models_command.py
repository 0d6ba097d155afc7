"""`switchyard models`: one JSON object on standard output, or a table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hub_stub import HubStub
from tiny_model import write_tiny_model

from engine.cli.main import main
from engine.generation.perplexity_memo import remember, remembered
from engine.models import list_models

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": (2).to_bytes(8, "little") + b"{}",
    "tokenizer.json": b"{}",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWITCHYARD_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    with HubStub("acme/Tiny-Llama", dict(FILES)).running() as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield stub


def test_pulled_model_is_reported_and_then_listed(cache):
    pulled = CliRunner().invoke(main, ["models", "pull", "hf:acme/Tiny-Llama", "--json"])
    assert pulled.exit_code == 0, pulled.output
    (model,) = json.loads(pulled.stdout)["models"]
    assert (model["name"], model["source"]) == ("tiny-llama", "hf:acme/Tiny-Llama")
    assert Path(model["path"], "model.safetensors").is_file()
    listed = json.loads(CliRunner().invoke(main, ["models", "list", "--json"]).stdout)
    assert listed["cache"] == str(cache)
    assert listed["models"][0].items() >= model.items()
    assert listed["models"][0]["size_bytes"] == sum(len(content) for content in FILES.values())
    assert "tiny-llama" in CliRunner().invoke(main, ["models", "list"]).stdout


def test_list_of_an_empty_cache_names_the_command_that_fills_it():
    assert "switchyard models pull" in CliRunner().invoke(main, ["models", "list"]).stdout


def test_encoder_pulled_as_a_generator_is_refused_with_the_option_that_helps(hub):
    hub.files["config.json"] = b'{"model_type": "bert"}'
    refused = CliRunner().invoke(main, ["models", "pull", "hf:acme/Tiny-Llama"])
    assert refused.exit_code == 1
    assert "'bert'; a generator must be one of llama" in refused.stderr
    assert "--kind encoder" in refused.stderr
    assert CliRunner().invoke(main, ["models", "pull", "hf:acme/Tiny-Llama", "--kind", "encoder"]).exit_code == 0


def test_measured_perplexity_is_printed_and_listed_from_then_on(cache):
    tiny = write_tiny_model(cache / "tiny")
    command = ["models", "perplexity", str(tiny), "--weights"]
    printed = CliRunner().invoke(main, [*command, "plain"])
    assert printed.exit_code == 0, printed.output
    assert re.fullmatch(r"tiny  plain \d+\.\d{3}\n", printed.stdout)
    CliRunner().invoke(main, ["models", "pull", "hf:acme/Tiny-Llama"])
    digest = list_models()[0].model.digest
    remember(cache, digest, "plain", 14.25)
    remember(cache, digest, "int8", 14.5)
    listed = json.loads(CliRunner().invoke(main, ["models", "list", "--json"]).stdout)
    assert listed["models"][0]["perplexity"] == {"plain": 14.25, "int8": 14.5}
    table = CliRunner().invoke(main, ["models", "list"], env={"COLUMNS": "200"}).stdout
    assert "plain 14.250, int8 14.500" in table


def test_perplexity_of_a_damaged_memo_is_forgotten(cache):
    remember(cache, "d" * 64, "int8", 2.0)
    (memo,) = (cache / "perplexity").iterdir()
    for content in ("[1]", "{", '{"int8": "x"}', '{"int2": 1.0}'):
        memo.write_text(content)
        assert remembered(cache, "d" * 64) == {}


@pytest.mark.parametrize("command", [["models"], ["models", "list"], ["models", "pull"], ["models", "perplexity"]])
def test_help_holds_an_example(command):
    assert "Example:\n" in CliRunner().invoke(main, [*command, "--help"]).stdout
