import json
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_model

from engine.generation.decoder.spec import read_spec
from engine.generation.model_files import eos_token_ids, load_tokenizer, num_kv_blocks, resolve_dtype


def test_named_dtype_is_taken_as_it_is():
    assert resolve_dtype("float16", "cpu") == torch.float16
    assert resolve_dtype("auto", "cpu") in (torch.bfloat16, torch.float32)


def test_end_tokens_are_those_of_the_generation_config_and_the_tokenizer(tiny_model: Path):
    tokenizer = load_tokenizer(tiny_model)
    names = tokenizer.convert_ids_to_tokens(sorted(eos_token_ids(tiny_model, tokenizer)))
    assert names == ["<|endoftext|>", "<|im_end|>"]


def test_end_tokens_come_from_the_config_where_there_is_no_generation_config(tmp_path: Path):
    write_tiny_model(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    tokenizer = load_tokenizer(tmp_path)
    assert eos_token_ids(tmp_path, tokenizer) == {7, tokenizer.eos_token_id}


def test_kv_blocks_hold_what_is_asked_for_or_a_share_of_memory_and_at_least_one_prompt(tiny_model: Path):
    spec = read_spec(tiny_model)
    assert num_kv_blocks(spec, torch.float32, "cpu", kv_tokens=100, at_least=50) == 7
    assert num_kv_blocks(spec, torch.float32, "cpu", kv_tokens=100, at_least=1000) == 63
    half, whole = (
        num_kv_blocks(spec, dtype, "cpu", kv_tokens=None, at_least=1) for dtype in (torch.bfloat16, torch.float32)
    )
    assert half == pytest.approx(2 * whole, rel=0.01)
