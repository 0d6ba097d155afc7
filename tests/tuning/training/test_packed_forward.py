"""Packed batches against transformers and PEFT, one example at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_adapter import quiet
from tiny_model import write_tiny_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from tuning.training.made_examples import random_examples

from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.model import AdapterModel
from engine.tuning.training.packing import num_shared_tokens, pack
from engine.tuning.training.settings import TrainingSettings

SETTINGS = TrainingSettings(rank=4)
# mistral's window of 24 tokens is shorter than many of the examples.
EXAMPLES = random_examples(9, longest=60)
# Longer than the window, and shorter.
SHARED = {
    length: [EncodedExample((*range(100, 100 + length), *e.tokens), length + e.num_prompt) for e in EXAMPLES]
    for length in (1, 30)
}
SETS = {"nothing shared": EXAMPLES, "one token shared": SHARED[1], "30 tokens shared": SHARED[30]}


def model_with_strong_adapter(folder: Path) -> AdapterModel:
    model = AdapterModel(folder, SETTINGS, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    model.load_weights({name: torch.randn(w.shape, generator=generator) / 8 for name, w in model.parameters.items()})
    return model


def reference_losses(model: AdapterModel, examples: list[EncodedExample]) -> list[torch.Tensor]:
    """By PEFT and transformers' own attention, logits everywhere, one example at a time."""
    losses = []
    with model.generating() as peft, quiet():
        for example in examples:
            ids = torch.tensor([example.tokens])
            labels = ids[0, example.num_prompt :]
            logits = peft(ids).logits[0, example.num_prompt - 1 : -1]
            losses.append(cross_entropy(logits, labels, reduction="sum"))
    return losses


@pytest.mark.parametrize("architecture", ["llama", "llama3", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("name", SETS)
def test_packed_losses_and_gradients_equal_one_example_at_a_time(tmp_path: Path, architecture: str, name: str):
    model = model_with_strong_adapter(write_tiny_model(tmp_path, architecture=architecture))
    examples = SETS[name]
    expected = reference_losses(model, examples)
    torch.stack(expected).sum().backward()
    wanted = {name: weight.grad.clone() for name, weight in model.parameters.items()}
    model.peft.zero_grad()
    model.token_losses(pack(examples)).sum().backward()
    torch.testing.assert_close(model.example_losses(examples), [loss.item() for loss in expected], rtol=1e-5, atol=1e-4)
    for name, weight in model.parameters.items():
        torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-3, atol=1e-4, msg=lambda text, n=name: n + text)


def test_sliding_window_changes_what_long_examples_cost(tmp_path: Path):
    model = model_with_strong_adapter(write_tiny_model(tmp_path, architecture="mistral"))
    windowed = model.example_losses(EXAMPLES)
    model.peft.config.sliding_window = None
    everything = model.example_losses(EXAMPLES)
    changed = [abs(a - b) > 1e-3 for a, b in zip(windowed, everything, strict=True)]
    assert changed == [len(example.tokens) - 1 > 24 for example in EXAMPLES]


def test_examples_of_one_length_need_no_padding_and_cost_the_same(tiny_model: Path):
    model = model_with_strong_adapter(tiny_model)
    examples = [EncodedExample(tuple(range(start, start + 12)), 8) for start in (3, 40, 99)]
    assert pack(examples).packing.pad is None
    expected = [loss.item() for loss in reference_losses(model, examples)]
    torch.testing.assert_close(model.example_losses(examples), expected, rtol=1e-5, atol=1e-4)


def test_shared_beginning_is_computed_once_up_to_the_first_token_that_predicts():
    batch = pack(SHARED[30])
    assert batch.packing.num_shared == 30
    assert batch.input_ids.shape[1] == 30 + sum(len(example.tokens) - 1 for example in EXAMPLES)
    same = EncodedExample((7, 8, 9, 4, 5), 3)
    assert num_shared_tokens([same, same]) == 2
    assert num_shared_tokens([same]) == 0
    assert num_shared_tokens([same, EncodedExample((7, 8), 1)]) == 0
    assert num_shared_tokens([same, EncodedExample((7, 9, 9, 4), 3), same]) == 1


def test_fused_layers_compute_what_peft_computes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    model = model_with_strong_adapter(tiny_model)
    monkeypatch.setattr("engine.tuning.training.model.fuse_lora", lambda model: None)
    plain = model_with_strong_adapter(tiny_model)
    assert "forward" not in vars(plain.peft.base_model.model.model.layers[0].mlp.up_proj)
    assert "forward" in vars(model.peft.base_model.model.model.layers[0].mlp.up_proj)
    for each in (model, plain):
        each.token_losses(pack(EXAMPLES)).sum().backward()
    for name, weight in model.parameters.items():
        torch.testing.assert_close(weight.grad, plain.parameters[name].grad, rtol=1e-4, atol=1e-4)


def test_disabled_adapter_gives_the_base_model(tiny_model: Path):
    model = model_with_strong_adapter(tiny_model)
    start = AdapterModel(tiny_model, SETTINGS, dtype=torch.float32).example_losses(EXAMPLES)
    with model.peft.disable_adapter():
        assert model.example_losses(EXAMPLES) == pytest.approx(start)
    assert model.example_losses(EXAMPLES) != pytest.approx(start)


def test_losses_do_not_depend_on_how_examples_share_forwards(tiny_model: Path):
    model = model_with_strong_adapter(tiny_model)
    together = model.example_losses(EXAMPLES)
    alone = model.example_losses(EXAMPLES, forward_tokens=1)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


def test_logits_in_several_chunks_give_the_same_losses_and_gradients(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    model = model_with_strong_adapter(tiny_model)
    results = []
    for rows in (256, 3):
        monkeypatch.setattr("engine.tuning.training.loss.CHUNK_ROWS", rows)
        losses = model.token_losses(pack(EXAMPLES))
        losses.mean().backward()
        results.append([losses.detach(), *(weight.grad.clone() for weight in model.parameters.values())])
        model.peft.zero_grad()
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_no_logits_exist_at_prompt_positions(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    model = model_with_strong_adapter(tiny_model)
    rows = []
    linear = torch.nn.functional.linear
    vocabulary = model.peft.config.vocab_size

    def counting(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if len(weight) == vocabulary:
            rows.append(len(x))
        return linear(x, weight, bias)

    monkeypatch.setattr("engine.tuning.training.loss.linear", counting)
    model.example_losses(EXAMPLES)
    assert sum(rows) == sum(example.num_completion for example in EXAMPLES)


def test_generate_works_within_generating_and_training_goes_on_after(tiny_model: Path):
    model = model_with_strong_adapter(tiny_model)
    before = model.example_losses(EXAMPLES)
    with model.generating() as peft, quiet():
        ids = torch.tensor([[5, 6, 7]])
        answer = peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > 3
    assert model.example_losses(EXAMPLES) == before


def test_packed_attention_refuses_a_row_of_unknown_bounds(tiny_model: Path):
    model = model_with_strong_adapter(tiny_model)
    with pytest.raises(ValueError, match=r"packing=.*AdapterModel.generating"):
        model.peft(torch.tensor([[5, 6, 7]]))


def test_adapter_starts_as_the_base_model_in_float32_on_all_linear_layers(tiny_model: Path):
    model = AdapterModel(tiny_model, SETTINGS, dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters.values()} == {torch.float32}
    assert len(model.parameters) == 2 * 7 * 2  # layers, projections, A and B
    assert all(weight.abs().sum() == 0 for name, weight in model.parameters.items() if "lora_B" in name)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    ids = torch.tensor([EXAMPLES[0].tokens])
    logits = base(ids).logits[0, EXAMPLES[0].num_prompt - 1 : -1].float()
    expected = cross_entropy(logits, ids[0, EXAMPLES[0].num_prompt :], reduction="sum").item()
    assert model.example_losses(EXAMPLES[:1])[0] == pytest.approx(expected, rel=0.05)


def test_bfloat16_base_gives_finite_float32_gradients(tiny_model: Path):
    model = AdapterModel(tiny_model, SETTINGS, dtype=torch.bfloat16)
    model.token_losses(pack(EXAMPLES)).mean().backward()
    gradients = [weight.grad for weight in model.parameters.values()]
    assert all(gradient.dtype == torch.float32 and bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_example_needs_a_prompt_and_a_completion():
    for tokens, num_prompt in (((1, 2), 0), ((1, 2), 2), ((), 0)):
        with pytest.raises(ValueError, match=rf"num_prompt={num_prompt} of {len(tokens)} tokens"):
            EncodedExample(tokens, num_prompt)
