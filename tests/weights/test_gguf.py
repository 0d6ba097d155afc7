"""GGUF to safetensors: the same model as transformers reads from the file, and codes that give the same bits."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_gguf import TEMPLATE, write_tiny_gguf
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from engine.config import EngineConfig
from engine.errors import ModelSourceError
from engine.models import list_models
from engine.weights.gguf import convert_gguf, converted_bytes, dequantise_q4_1, dequantise_q8_0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny GGUF file and the folder it was converted into."""
    folder = tmp_path_factory.mktemp("tiny")
    source = write_tiny_gguf(folder / "tiny.Q4_1.gguf")
    convert_gguf(source, folder / "model")
    return source, folder / "model"


@pytest.fixture(scope="module")
def default_generator() -> Path:
    """The folder of the default generator, where it is in the cache already."""
    wanted = EngineConfig().generator.model
    for cached in list_models():
        if cached.model.source == wanted:
            return cached.model.path
    pytest.skip(f"{wanted} is not in the cache: switchyard models pull")


def _dequantise(codes: dict[str, np.ndarray], name: str) -> np.ndarray:
    if f"{name}.mins" in codes:
        return dequantise_q4_1(codes[f"{name}.codes"], codes[f"{name}.scales"], codes[f"{name}.mins"])
    return dequantise_q8_0(codes[f"{name}.codes"], codes[f"{name}.scales"])


def test_converted_model_equals_what_transformers_reads_from_the_same_file(tiny):
    source, folder = tiny
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    tokens = torch.arange(3, 40).unsqueeze(0)
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_config_says_what_the_file_says(tiny):
    config = AutoConfig.from_pretrained(tiny[1])
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 16)
    assert config.rope_parameters["rope_theta"] == 5000.0
    assert config.tie_word_embeddings is True
    assert (config.bos_token_id, config.eos_token_id, config.max_position_embeddings) == (1, 2, 128)


def test_kept_codes_give_the_bits_of_the_float32_weights(tiny):
    weights, codes = load_file(tiny[1] / "model.safetensors"), load_file(tiny[1] / "quantised.safetensors")
    quantised = {name.removesuffix(".codes") for name in codes if name.endswith(".codes")}
    assert {"model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"} <= quantised
    assert "model.layers.0.mlp.up_proj.weight" not in quantised  # F16 in the file: nothing to keep
    for name in quantised:
        np.testing.assert_array_equal(_dequantise(codes, name), weights[name], strict=True)


def test_codes_have_the_documented_types_and_shapes(tiny):
    codes = load_file(tiny[1] / "quantised.safetensors")
    down, value = "model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.v_proj.weight"
    layout = {name: (values.dtype.name, values.shape) for name, values in codes.items()}
    assert layout[f"{down}.codes"] == ("uint8", (64, 48))
    assert layout[f"{down}.scales"] == layout[f"{down}.mins"] == ("float16", (64, 3))
    assert layout[f"{value}.codes"] == ("int8", (32, 64))
    assert layout[f"{value}.scales"] == ("float16", (32, 2))
    assert f"{value}.mins" not in layout


def test_dequantising_agrees_with_the_gguf_package_bit_by_bit():
    values = np.random.default_rng(7).normal(size=(3, 96)).astype(np.float32)
    for kind, dequantise, num_halves in (("Q4_1", dequantise_q4_1, 2), ("Q8_0", dequantise_q8_0, 1)):
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
        blocks = packed.reshape(3, 3, -1)
        halves = [np.ascontiguousarray(blocks[:, :, 2 * i : 2 * i + 2]).view("<f2")[:, :, 0] for i in range(num_halves)]
        codes = np.ascontiguousarray(blocks[:, :, 2 * num_halves :]).reshape(3, -1)
        ours = dequantise(codes if kind == "Q4_1" else codes.view(np.int8), *halves)
        np.testing.assert_array_equal(ours, gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind]))


def test_tokenizer_splits_digits_one_by_one_and_keeps_template_and_special_tokens(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny[1])
    # The vocabulary has merges for 12, 34 and 1234: only the pre-tokenizer keeps these digits apart.
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    assert tokenizer.decode(tokenizer("he 1234").input_ids) == "he 1234"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("a<|im_end|>").input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode([1, *tokenizer("he").input_ids, 2], skip_special_tokens=True) == "he"
    assert tokenizer.chat_template == TEMPLATE
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert chat == "<|im_start|>he<|im_end|>"


def test_digits_stay_together_where_the_file_names_another_pre_tokenizer(tmp_path):
    convert_gguf(write_tiny_gguf(tmp_path / "a.gguf", pre="gpt-2"), tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").tokenize("1234") == ["1234"]


def test_converted_size_is_foreseen_within_ten_megabytes(tiny):
    written = sum(path.stat().st_size for path in tiny[1].iterdir())
    assert written <= converted_bytes(tiny[0]) < written + 10_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gptneox"}, "architecture 'gptneox'; GGUF files are read for: llama"),
        ({"pre": "unheard-of"}, "tokenizer.ggml.pre='unheard-of'; read are llama, and gpt2 with smollm"),
        ({"extra": "blk.0.attn_q.bias"}, "unexpected tensors .'blk.0.attn_q.bias'."),
        ({"without": "blk.1.ffn_up.weight"}, "missing tensors .'blk.1.ffn_up.weight'."),
    ],
)
def test_conversion_refuses_what_it_would_get_wrong(tmp_path, options, message):
    source = write_tiny_gguf(tmp_path / "odd.gguf", **options)
    with pytest.raises(ModelSourceError, match=message):
        convert_gguf(source, tmp_path / "model")


@pytest.mark.parametrize("size", [0, 3, 700, 40_000])
def test_conversion_names_the_file_when_it_is_cut_short(tiny, tmp_path, size):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny[0].read_bytes()[:size])
    with pytest.raises(ModelSourceError, match=r"cut\.gguf cannot be read as GGUF"):
        convert_gguf(cut, tmp_path / "model")


def test_default_generator_has_codes_that_give_the_bits_of_its_weights(default_generator):
    weights = load_file(default_generator / "model.safetensors")
    codes = load_file(default_generator / "quantised.safetensors")
    quantised = [name.removesuffix(".codes") for name in codes if name.endswith(".codes")]
    assert len(quantised) == 211
    for name in quantised:
        assert np.array_equal(_dequantise(codes, name), weights[name]), name


def test_default_generator_answers_a_question_and_splits_digits(default_generator):
    tokenizer = AutoTokenizer.from_pretrained(default_generator)
    assert tokenizer.tokenize("In 2024") == ["In", "Ġ", "2", "0", "2", "4"]
    model = AutoModelForCausalLM.from_pretrained(default_generator, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer, skip_special_tokens=True)
    assert answer[-1] == tokenizer.eos_token_id
