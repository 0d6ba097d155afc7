"""What can be said of an adapter's folder without its model agrees with what its model says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from replicas import KEY, write_adapter
from safetensors.torch import save_file
from tiny_adapter import write_tiny_adapter

from engine.errors import InvalidAdapter
from engine.generation.adapters.files import read_adapter
from engine.generation.adapters.inspection import inspect_adapter
from engine.generation.decoder.spec import read_spec


def inspect(folder: Path, **options: object):
    return inspect_adapter(folder, "tone", **({"model_digest": "m" * 64, "max_rank": 64} | options))  # type: ignore[arg-type]


def test_inspected_adapter_is_described_as_the_one_that_is_loaded(tiny_model: Path, tmp_path: Path):
    folder = write_tiny_adapter(tmp_path / "tone", tiny_model, seed=1, targets=("q", "down"))
    (folder / "switchyard.json").write_text(json.dumps({"task": "chat", "base_digest": "m" * 64}))
    loaded, _ = read_adapter(
        folder, "tone", read_spec(tiny_model), model_digest="m" * 64, max_rank=64, dtype=torch.float32
    )
    info, contents = inspect(folder)
    assert info == replace(loaded, path=folder)
    assert sorted(contents) == ["adapter_config.json", "adapter_model.safetensors", "switchyard.json"]


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({}, "holds no tensor"),
        ({"lm_head.weight": torch.ones(2, 2)}, r"lm_head\.weight has no place in a model; supported targets: q_proj"),
        ({KEY.format(0, "A"): torch.ones(2, 8)}, "layer 0 has only lora_A of q_proj"),
        ({KEY.format(0, "A"): torch.ones(3, 8)}, r"has shape \(3, 8\), which is not of rank r=2"),
        ({KEY.format(0, "B"): torch.ones(2, 8)}, r"has shape \(2, 8\), which is not of rank r=2"),
        ({KEY.format(0, "A"): torch.ones(2)}, r"has shape \(2,\)"),
        ({KEY.format(0, "A"): torch.ones(2, 8, dtype=torch.int8)}, "is stored as I8; supported: F32, BF16, F16"),
    ],
)
def test_tensors_that_fit_no_model_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], why: str):
    folder = write_adapter(tmp_path / "tone", 1.0)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapter, match=why):
        inspect(folder)


def test_file_that_is_cut_short_is_refused(tmp_path: Path):
    file = write_adapter(tmp_path / "tone", 1.0) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InvalidAdapter, match="is not safetensors"):
        inspect(file.parent)


def test_folder_without_weights_rank_or_the_right_base_is_refused(tmp_path: Path):
    folder = write_adapter(tmp_path / "tone", 1.0)
    with pytest.raises(InvalidAdapter, match="its rank r=2 must be from 1 to 1"):
        inspect(folder, max_rank=1)
    (folder / "switchyard.json").write_text(json.dumps({"base_digest": "b" * 64}))
    with pytest.raises(InvalidAdapter, match=r"trained on the weights bbbbbbbbbbbb"):
        inspect(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidAdapter, match="which may run code"):
        inspect(folder)
    with pytest.raises(InvalidAdapter, match="its folder is not there"):
        inspect(tmp_path / "nowhere")


def test_owner_needs_no_torch():
    code = "import sys, engine.generation.adapters.owner; print({'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"
