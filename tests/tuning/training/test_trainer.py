from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_adapter import PeftReference
from tuning.training.made_examples import random_examples
from tuning.training.run_training import SETTINGS, TRAINING, VALIDATION, run

from engine.errors import TrainingDiverged, TrainingError
from engine.generation.adapters.files import read_adapter
from engine.generation.decoder.spec import read_spec
from engine.tuning.training.events import Evaluated, Event, Stepped
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.model import AdapterModel, weights_digest
from engine.tuning.training.result import TrainingResult, exported, write_adapter

FAST = replace(SETTINGS, epochs=8, learning_rate=5e-3)


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, list[Event]]:
    events: list[Event] = []
    result = run(tiny_model, tmp_path_factory.mktemp("trained"), settings=FAST, metric=None, on_event=events.append)
    return result, events


def test_training_lowers_the_loss_on_examples_it_has_not_seen(trained: tuple[TrainingResult, list[Event]]):
    history = trained[0].run.history
    assert trained[0].run.best.valid_loss < 0.75 * history[0].valid_loss
    assert history[-1].train_loss < history[0].train_loss


def test_adapter_in_the_folder_is_read_by_the_server_and_by_peft(
    trained: tuple[TrainingResult, list[Event]], tiny_model: Path
):
    result = trained[0]
    info, _ = read_adapter(
        result.adapter, "tuned", read_spec(tiny_model), model_digest="", max_rank=8, dtype=torch.float32
    )
    assert (info.rank, info.base_model) == (4, "tiny")
    assert info.targets == ("q", "k", "v", "o", "gate", "up", "down")
    reference = PeftReference(tiny_model, {"tuned": result.adapter})
    loss = 0.0
    for example in VALIDATION:
        rows = reference.logits("tuned", example.tokens)[example.num_prompt - 1 : -1].log_softmax(-1)
        targets = torch.tensor(example.tokens[example.num_prompt :])
        loss -= rows.gather(1, targets[:, None]).sum().item()
    per_token = loss / sum(example.num_completion for example in VALIDATION)
    # Rounding to float16 changes each weight by 2^-11 of itself at most.
    assert per_token == pytest.approx(result.run.best.valid_loss, rel=2**-11)


def test_adapter_is_written_in_float16_and_its_digest_is_that_of_the_file(trained: tuple[TrainingResult, list[Event]]):
    weights = load_file(trained[0].adapter / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert trained[0].adapter_digest == weights_digest(weights)


@pytest.mark.parametrize("value", [65_536.0, -1e30])
def test_weights_beyond_the_range_of_float16_stay_as_they_are_for_the_server_and_for_peft(
    trained: tuple[TrainingResult, list[Event]], tiny_model: Path, tmp_path: Path, value: float
):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    weights = {
        key: weight.float() for key, weight in load_file(trained[0].adapter / "adapter_model.safetensors").items()
    }
    weights[name][1, 2] = value
    config = (trained[0].adapter / "adapter_config.json").read_bytes()
    folder = write_adapter(tmp_path, exported(weights), config)
    stored = {key: weight.dtype for key, weight in load_file(folder / "adapter_model.safetensors").items()}
    assert [key for key, dtype in stored.items() if dtype != torch.float16] == [name]
    _, read = read_adapter(folder, "large", read_spec(tiny_model), model_digest="", max_rank=8, dtype=torch.float32)
    assert torch.equal(read.pairs[0, "q"][0], weights[name])
    assert PeftReference(tiny_model, {"large": folder}).weights()[name.replace("A.", "A.large.")][1, 2] == value


def test_progress_tells_every_step_and_every_evaluation(trained: tuple[TrainingResult, list[Event]]):
    result, events = trained
    steps = [event for event in events if isinstance(event, Stepped)]
    evaluations = [event for event in events if isinstance(event, Evaluated)]
    assert [event.step for event in steps] == list(range(1, steps[0].num_steps + 1))
    assert all(event.tokens_per_s > 0 and event.eta_s >= 0 for event in steps)
    assert steps[-1].eta_s == 0
    assert steps[-1].epoch == FAST.epochs
    assert len(evaluations) == FAST.epochs * FAST.evaluations_per_epoch
    assert tuple(event.point for event in evaluations) == result.run.history
    assert [event.point for event in evaluations if event.is_best][-1] == result.run.best


def test_result_has_costs(trained: tuple[TrainingResult, list[Event]]):
    result = trained[0]
    assert result.run.stopped == "finished"
    assert result.run.minutes > 0 and result.run.tokens_per_s > 0
    assert result.run.peak_memory_bytes > 50_000_000
    assert result.run.peak_gpu_bytes == 0


def test_gradient_accumulation_does_not_change_the_result(tiny_model: Path, tmp_path: Path):
    results = [
        run(tiny_model, tmp_path / str(most), settings=replace(SETTINGS, forward_tokens=most), metric=None)
        for most in (1, 10_000)
    ]
    for one, other in zip(results[0].run.history, results[1].run.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.valid_loss == pytest.approx(other.valid_loss, rel=1e-4)


def test_best_adapter_by_metric_is_kept_and_not_the_last(tiny_model: Path, tmp_path: Path):
    seen = []

    def early_peak(model: AdapterModel) -> float:
        seen.append(model.weights())
        return 1.0 if len(seen) == 2 else 0.5

    result = run(tiny_model, tmp_path, metric=early_peak)
    assert result.run.best == result.run.history[1]
    _, weights = read_adapter(
        result.adapter, "best", read_spec(tiny_model), model_digest="", max_rank=8, dtype=torch.float32
    )
    kept = weights.pairs[0, "q"][0]
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    # The file is float16, the nearest to each weight.
    assert torch.equal(kept, seen[1][name].half().float())
    assert not torch.equal(kept, seen[-1][name].half().float())


def test_run_ends_when_patience_is_over(tiny_model: Path, tmp_path: Path):
    # Labels without a pattern: what is learned of them makes the validation loss worse.
    noise = [EncodedExample((*e.tokens[: e.num_prompt], 60 + i), e.num_prompt) for i, e in enumerate(TRAINING)]
    settings = replace(FAST, epochs=20, learning_rate=2e-2, patience=2)
    result = run(tiny_model, tmp_path, training=noise, settings=settings, metric=None)
    assert result.run.stopped == "patience"
    assert result.run.num_steps < 20 * 7
    assert result.run.history.index(result.run.best) <= len(result.run.history) - 3


def test_diverging_run_is_stopped_and_its_best_adapter_kept(tiny_model: Path, tmp_path: Path):
    values = iter((1.0, 0.0))

    def poison(model: AdapterModel) -> float:
        value = next(values)
        if value == 0.0:
            model.load_weights({name: weight + torch.nan for name, weight in model.weights().items()})
        return value

    with pytest.raises(TrainingDiverged, match=r"at step \d+ of \d+: the loss is nan; the adapter of step \d+ is kept"):
        run(tiny_model, tmp_path, metric=poison)
    read_adapter(tmp_path / "adapter", "kept", read_spec(tiny_model), model_digest="", max_rank=8, dtype=torch.float32)
    assert not (tmp_path / "checkpoints").exists()


def test_run_that_diverges_before_its_first_evaluation_keeps_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("engine.tuning.training.trainer.divergence", lambda losses, norm, warm_up: "the loss is inf")
    with pytest.raises(TrainingDiverged, match=r"at step 1 of .*there was no evaluation.*learning rate \(0\.001\)"):
        run(tiny_model, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_training_refuses_what_does_not_fit_the_model(tiny_model: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match="0 examples to train on and 12 to validate with"):
        run(tiny_model, tmp_path, training=[])
    with pytest.raises(TrainingError, match="example 2 has 2049 tokens, the model's context holds 2048"):
        run(tiny_model, tmp_path, training=[*random_examples(1), EncodedExample((3,) * 2049, 5)])
    with pytest.raises(TrainingError, match="example 1 has tokens from 3 to 99999, the model's are below"):
        run(tiny_model, tmp_path, training=[EncodedExample((3, 99_999), 1)])


def test_metric_that_is_no_number_stops_the_run(tiny_model: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match="the task metric is nan"):
        run(tiny_model, tmp_path, metric=lambda model: float("nan"))
