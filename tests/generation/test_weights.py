import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model

from engine.errors import ModelSourceError
from engine.generation.weights import eos_token_ids, kv_token_budget, load_model, load_tokenizer, resolve_dtype


def test_architecture_outside_the_list_is_refused_by_name(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ModelSourceError, match=r"architecture 'gpt2' is not supported; supported: llama, mistral"):
        load_model(tmp_path, "float32", "cpu")


def test_weights_other_than_safetensors_are_not_read(tmp_path: Path):
    write_tiny_model(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelSourceError, match="weights cannot be read"):
        load_model(tmp_path, "float32", "cpu")


def test_damaged_weights_are_refused(tmp_path: Path):
    write_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelSourceError, match="weights cannot be read"):
        load_model(tmp_path, "float32", "cpu")


def test_missing_tensors_are_refused_rather_than_filled_with_random_numbers(tmp_path: Path):
    write_tiny_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelSourceError, match=r"the weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(tmp_path, "float32", "cpu")


def test_folder_without_config_is_refused(tmp_path: Path):
    with pytest.raises(ModelSourceError, match=r"config\.json cannot be read"):
        load_model(tmp_path, "float32", "cpu")


def test_named_dtype_is_taken_as_it_is():
    assert resolve_dtype("float16", "cpu") == torch.float16
    assert resolve_dtype("auto", "cpu") in (torch.bfloat16, torch.float32)


def test_end_tokens_are_those_of_the_generation_config_and_the_tokenizer(tiny_model: Path):
    tokenizer = load_tokenizer(tiny_model)
    model = load_model(tiny_model, "bfloat16", "cpu")
    assert model.dtype == torch.bfloat16
    names = tokenizer.convert_ids_to_tokens(sorted(eos_token_ids(model, tokenizer)))
    assert names == ["<|endoftext|>", "<|im_end|>"]
    assert kv_token_budget(model, "cpu") == pytest.approx(2 * kv_token_budget(model.float(), "cpu"), rel=0.01)
