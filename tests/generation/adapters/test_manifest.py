"""switchyard.json: what it says of an adapter, and every way of being wrong, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_adapter import write_tiny_adapter

from engine.errors import InvalidAdapter
from engine.generation.adapters.files import AdapterInfo, read_adapter
from engine.generation.adapters.manifest import AdapterManifest, Label, parse_manifest
from engine.generation.decoder.spec import read_spec

CLASSIFY = {
    "task": "classify",
    "instruction": "Name the intent.",
    "labels": [{"name": "card_arrival", "text": "card arrival"}, {"name": "fee", "text": "fee"}],
    "temperature": 1.5,
    "verdict": "ok",
    "metrics": {"accuracy": 0.9},
}


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    return write_tiny_adapter(tmp_path / "intents", tiny_model, seed=1)


def read(folder: Path, model: Path) -> AdapterInfo:
    info, _ = read_adapter(folder, "intents", read_spec(model), model_digest="m" * 64, max_rank=64, dtype=torch.float32)
    return info


def test_manifest_is_read_with_its_adapter(folder: Path, tiny_model: Path):
    (folder / "switchyard.json").write_text(json.dumps(CLASSIFY))
    manifest = read(folder, tiny_model).manifest
    assert manifest.labels == (Label(name="card_arrival", text="card arrival"), Label(name="fee", text="fee"))
    assert (manifest.task, manifest.instruction, manifest.temperature) == ("classify", "Name the intent.", 1.5)
    assert (manifest.verdict, manifest.metrics) == ("ok", {"accuracy": 0.9})


def test_adapter_without_a_manifest_has_every_default(folder: Path, tiny_model: Path):
    assert read(folder, tiny_model).manifest == AdapterManifest()


def test_manifest_written_by_training_reads_back_as_it_was():
    written = AdapterManifest.model_validate(CLASSIFY | {"base_digest": "b" * 64, "num_examples": 100})
    assert parse_manifest(written.model_dump_json().encode(), "intents") == written


def test_digest_covers_the_manifest_since_labels_and_instruction_decide_answers(folder: Path, tiny_model: Path):
    bare = read(folder, tiny_model).digest
    (folder / "switchyard.json").write_text(json.dumps(CLASSIFY))
    first = read(folder, tiny_model).digest
    (folder / "switchyard.json").write_text(json.dumps(CLASSIFY | {"instruction": "Other words."}))
    assert len({bare, first, read(folder, tiny_model).digest}) == 3


def test_fields_of_later_versions_are_left_alone():
    assert parse_manifest(json.dumps(CLASSIFY | {"invented_later": 1}).encode(), "intents").task == "classify"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 2}, "format: Input should be 1"),
        ({"task": "poetry"}, "task: Input should be 'classify', 'qa' or 'chat'"),
        ({"labels": []}, "labels and the task classify belong together"),
        ({"task": "chat"}, "labels and the task classify belong together"),
        ({"labels": [{"name": "a"}]}, "labels.0.text: Field required"),
        ({"labels": [{"name": "", "text": "a"}]}, "labels.0.name: String should have at least 1 character"),
        ({"labels": [{"name": "a" * 101, "text": "a"}]}, "labels.0.name: String should have at most 100"),
        ({"labels": [{"name": "a", "text": "x"}, {"name": "a", "text": "y"}]}, "two labels have the name 'a'"),
        ({"labels": [{"name": "a", "text": "x"}, {"name": "b", "text": "x"}]}, "two labels have the text 'x'"),
        ({"labels": [{"name": str(i), "text": str(i)} for i in range(1025)]}, "labels: Tuple should have at most 1024"),
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"temperature": float("nan")}, "temperature: Input should be a finite number"),
        ({"temperature": float("inf")}, "temperature: Input should be a finite number"),
        ({"verdict": "fine"}, "verdict: Input should be"),
        ({"metrics": {"k" * 500: "high"}}, f"metrics.{'k' * 80}: Input should be a valid number"),
        ({"base_digest": 5}, "base_digest: Input should be a valid string"),
    ],
)
def test_broken_manifest_is_refused_naming_the_field(
    folder: Path, tiny_model: Path, changed: dict[str, Any], message: str
):
    (folder / "switchyard.json").write_text(json.dumps(CLASSIFY | changed))
    with pytest.raises(
        InvalidAdapter, match=r"adapter 'intents' cannot be loaded: switchyard\.json is not as"
    ) as error:
        read(folder, tiny_model)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"classify"', b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_no_json_object_is_refused(folder: Path, tiny_model: Path, content: bytes):
    (folder / "switchyard.json").write_bytes(content)
    with pytest.raises(InvalidAdapter, match=r"switchyard\.json is not a JSON object"):
        read(folder, tiny_model)


def test_oversized_manifest_and_a_link_out_of_the_folder_are_refused(folder: Path, tiny_model: Path, tmp_path: Path):
    (folder / "switchyard.json").write_text(json.dumps(CLASSIFY | {"instruction": "x" * (1 << 20)}))
    with pytest.raises(InvalidAdapter, match=r"switchyard\.json has more than 1048576 bytes"):
        read(folder, tiny_model)
    (folder / "switchyard.json").rename(tmp_path / "elsewhere.json")
    (folder / "switchyard.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InvalidAdapter, match=r"switchyard\.json is a link out of its folder"):
        read(folder, tiny_model)
