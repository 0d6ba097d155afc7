"""Checkpoints that cannot be served are refused with the reason, and loading needs little more than the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model

from engine.errors import ModelSourceError
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec


def load(path: Path) -> Decoder:
    return Decoder(path, read_spec(path), dtype=torch.float32, device="cpu")


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def edit_weights(path: Path, changes: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(path / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})


def test_architecture_outside_the_list_is_refused_by_name(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ModelSourceError, match=r"architecture 'gpt2' is not supported; supported: llama, mistral"):
        load(tmp_path)


def test_folder_without_config_is_refused(tmp_path: Path):
    with pytest.raises(ModelSourceError, match=r"config\.json cannot be read"):
        load(tmp_path)


def test_weights_other_than_safetensors_are_not_read(tmp_path: Path):
    write_tiny_model(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelSourceError, match="weights cannot be read"):
        load(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path):
    write_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelSourceError, match="weights cannot be read"):
        load(tmp_path)


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NAME: None}, r"the weights lack model\.layers\.1\.mlp\.up_proj\.weight"),
        ({NAME: torch.zeros(3, 4)}, r"up_proj\.weight has shape \[3, 4\]; config\.json asks for \[128, 64\]"),
        ({NAME: torch.zeros(128, 64, dtype=torch.int8)}, r"is stored as I8; supported: F32, BF16, F16"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, r"q_proj\.bias.*gives no place to"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_refused_by_name(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
):
    write_tiny_model(tmp_path)
    edit_weights(tmp_path, changes)
    with pytest.raises(ModelSourceError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: silu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_type 'yarn'"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 must be a multiple of num_key_value_heads=3"),
    ],
)
def test_configs_that_the_decoder_does_not_compute_are_refused_by_name(
    tmp_path: Path, changes: dict[str, object], message: str
):
    write_tiny_model(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ModelSourceError, match=message):
        load(tmp_path)


def test_shards_are_read_through_their_index_and_never_outside_the_folder(tmp_path: Path):
    write_tiny_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"part{number}.safetensors")
        index |= dict.fromkeys(part, f"part{number}.safetensors")
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": index}))
    assert load(tmp_path).spec.num_layers == 2
    file.write_text(json.dumps({"weight_map": index | {names[0]: "../part0.safetensors"}}))
    with pytest.raises(ModelSourceError, match="outside its folder"):
        load(tmp_path)


PEAK = """
import re, sys, torch
from pathlib import Path
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
path = Path(sys.argv[1])
spec = read_spec(path)
def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = kilobytes("VmRSS")
Decoder(path, spec, dtype=torch.bfloat16, device="cpu")
print((kilobytes("VmHWM") - before) * 1024)
"""


def test_loading_peaks_near_the_size_of_the_model(tmp_path: Path):
    write_tiny_model(tmp_path)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12}
    edit_config(tmp_path, **sizes, num_attention_heads=16, num_key_value_heads=4, head_dim=64)
    hidden, inner, kv = 1024, 4096, 256
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    vocabulary = read_spec(tmp_path).vocab_size
    tensors = {
        f"model.layers.{layer}.{name}.weight": torch.zeros(shape, dtype=torch.bfloat16)
        for layer in range(12)
        for name, shape in shapes.items()
    }
    tensors["model.norm.weight"] = torch.zeros(hidden, dtype=torch.bfloat16)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.zeros(vocabulary, hidden, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    size = sum(tensor.numel() * 2 for tensor in tensors.values())
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # Pages of the mapped file count as well until the system takes them back: the model, its file, one tensor more.
    assert size <= int(done.stdout) < 2.4 * size
