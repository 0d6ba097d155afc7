"""PEFT folders: what is read of them, and everything that is refused, by name."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapter import write_tiny_adapter

from engine.errors import InvalidAdapter
from engine.generation.adapters.files import AdapterInfo, AdapterWeights, read_adapter
from engine.generation.decoder.spec import DecoderSpec, read_spec

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
KEY = "base_model.model.model.layers.{}.{}_proj.lora_{}.weight"


@pytest.fixture(scope="session")
def spec(tiny_model: Path) -> DecoderSpec:
    return read_spec(tiny_model)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    return write_tiny_adapter(tmp_path / "tone", tiny_model, seed=1)


def read(folder: Path, spec: DecoderSpec, **changed: Any) -> tuple[AdapterInfo, AdapterWeights]:
    options: dict[str, Any] = {"model_digest": "m" * 64, "max_rank": 64, "dtype": torch.float32}
    return read_adapter(folder, "tone", spec, **(options | changed))


def edit_config(folder: Path, **changed: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def edit_weights(folder: Path, **changed: torch.Tensor | None) -> None:
    tensors = {key: value for key, value in (load_file(folder / WEIGHTS) | changed).items() if value is not None}
    save_file(tensors, folder / WEIGHTS)


def test_peft_folder_gives_every_target_with_its_scaling(folder: Path, spec: DecoderSpec):
    info, weights = read(folder, spec)
    assert (info.name, info.rank, info.targets) == ("tone", 4, ("q", "k", "v", "o", "gate", "up", "down"))
    assert len(weights.pairs) == 7 * 2 and info.num_bytes == (folder / WEIGHTS).stat().st_size
    stored = load_file(folder / WEIGHTS)
    a, b = weights.pairs[1, "gate"]
    torch.testing.assert_close(a, stored[KEY.format(1, "mlp.gate", "A")])
    torch.testing.assert_close(b, stored[KEY.format(1, "mlp.gate", "B")] * 2)  # alpha is twice the rank


def test_rslora_divides_by_the_root_of_the_rank(tmp_path: Path, tiny_model: Path, spec: DecoderSpec):
    folder = write_tiny_adapter(tmp_path / "rs", tiny_model, seed=1, rank=9, use_rslora=True, targets=["q"])
    _, weights = read(folder, spec)
    stored = load_file(folder / WEIGHTS)[KEY.format(0, "self_attn.q", "B")]
    torch.testing.assert_close(weights.pairs[0, "q"][1], stored * (18 / math.sqrt(9)))


def test_digest_changes_with_weights_and_configuration_and_with_nothing_else(folder: Path, spec: DecoderSpec):
    digest = read(folder, spec)[0].digest
    (folder / "README.md").write_text("other words")
    assert read(folder, spec)[0].digest == digest
    edit_config(folder, lora_alpha=3)
    changed = read(folder, spec)[0].digest
    key = KEY.format(0, "self_attn.q", "B")
    edit_weights(folder, **{key: load_file(folder / WEIGHTS)[key] + 1})
    assert len({digest, changed, read(folder, spec)[0].digest}) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported; supported: 'LORA'"),
        ({"r": 65}, r"r=65 must be from 1 to 64 \(generator.max_adapter_rank\)"),
        ({"r": True}, "r=True must be"),
        ({"r": 0}, "r=0 must be"),
        ({"lora_alpha": None}, "lora_alpha=None must be a finite number"),
        ({"lora_alpha": float("inf")}, "lora_alpha=inf"),
        ({"use_dora": True}, "use_dora=True is not supported; train the adapter without it"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern="),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication="),
        ({"trainable_token_indices": [5]}, "trainable_token_indices="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base model's weights"),
        ({"use_rslora": "yes"}, "use_rslora='yes' must be true or false"),
        ({"invented_later": {"x": 1}}, "invented_later="),
    ],
)
def test_configuration_that_is_not_honoured_is_refused_by_name(
    folder: Path, spec: DecoderSpec, changed: dict[str, object], message: str
):
    edit_config(folder, **changed)
    with pytest.raises(InvalidAdapter, match=f"adapter 'tone' cannot be loaded: .*{message}"):
        read(folder, spec)


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"peft_type": "LORA"'])
def test_configuration_that_is_no_json_object_is_refused(folder: Path, spec: DecoderSpec, content: str):
    (folder / CONFIG).write_text(content)
    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json is not"):
        read(folder, spec)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({KEY.format(0, "self_attn.q", "A"): torch.zeros(4, 32)}, r"shape \(4, 32\).* ask for \(4, 64\): another base"),
        ({KEY.format(0, "self_attn.q", "A"): torch.zeros(8, 64)}, r"shape \(8, 64\)"),
        (
            {KEY.format(2, "self_attn.q", "A"): torch.zeros(4, 64)},
            r"layers\.2.* has no place in this model of 2 layers",
        ),
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}, "lm_head.* supported targets: q_proj, k_proj"),
        ({KEY.format(0, "self_attn.q", "A"): None}, "layer 0 has only lora_B of q_proj"),
        (
            {KEY.format(0, "mlp.up", "B"): torch.full((128, 4), float("nan"))},
            "layer 0, up_proj: a weight is not finite",
        ),
        ({KEY.format(1, "mlp.up", "A"): torch.full((4, 64), float("inf"))}, "layer 1, up_proj: a weight is not finite"),
        ({KEY.format(0, "self_attn.q", "A"): torch.zeros(4, 64, dtype=torch.int8)}, r"stored as torch\.int8"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, spec: DecoderSpec, changed: dict[str, torch.Tensor | None], message: str
):
    edit_weights(folder, **changed)
    with pytest.raises(InvalidAdapter, match=message):
        read(folder, spec)


def test_weight_too_large_for_the_generator_s_format_is_refused(folder: Path, spec: DecoderSpec):
    edit_weights(folder, **{KEY.format(0, "mlp.up", "B"): torch.full((128, 4), 60_000.0)})
    assert read(folder, spec)[0].rank == 4
    with pytest.raises(InvalidAdapter, match=r"not finite in torch\.float16"):
        read(folder, spec, dtype=torch.float16)


def test_pickled_weights_are_refused_and_not_opened(folder: Path, spec: DecoderSpec):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.bin, which may run code"):
        read(folder, spec)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"{}      "])
def test_damaged_or_empty_weights_are_refused(folder: Path, spec: DecoderSpec, content: bytes):
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(InvalidAdapter, match=r"is not safetensors|holds no tensor"):
        read(folder, spec)


def test_file_larger_than_any_adapter_of_the_model_is_refused(folder: Path, spec: DecoderSpec):
    with (folder / WEIGHTS).open("ab") as file:
        file.truncate(1 << 30)  # sparse: takes no room
    with pytest.raises(InvalidAdapter, match="which no adapter of this model and rank needs"):
        read(folder, spec)


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
def test_links_out_of_the_folder_are_not_followed(folder: Path, spec: DecoderSpec, tmp_path: Path, file: str):
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidAdapter, match="is a link out of its folder"):
        read(folder, spec)


def test_pipe_in_place_of_a_file_does_not_hang_the_reader(folder: Path, spec: DecoderSpec):
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)
    with pytest.raises(InvalidAdapter, match="is no regular file"):
        read(folder, spec)


def test_missing_folder_or_file_is_named(folder: Path, spec: DecoderSpec, tmp_path: Path):
    with pytest.raises(InvalidAdapter, match="its folder is not there"):
        read(tmp_path / "nowhere", spec)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.safetensors cannot be read"):
        read(folder, spec)


def test_adapter_of_another_base_is_refused_by_digest_and_by_shape(folder: Path, spec: DecoderSpec):
    (folder / "switchyard.json").write_text(json.dumps({"base_digest": "m" * 64}))
    read(folder, spec)
    with pytest.raises(InvalidAdapter, match=r"trained on the weights mmmmmmmmmmmm\.\.\., the generator serves xxxx"):
        read(folder, spec, model_digest="x" * 64)
    (folder / "switchyard.json").write_text("[]")
    with pytest.raises(InvalidAdapter, match=r"switchyard\.json is not a JSON object"):
        read(folder, spec)
    (folder / "switchyard.json").unlink()
    with pytest.raises(InvalidAdapter, match="another base"):
        read(folder, replace(spec, hidden_size=96))
