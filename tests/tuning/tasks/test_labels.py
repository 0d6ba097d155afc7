"""Label scores: complete ones, and the best label found without them."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.tuning.tasks.classify import macro_f1
from engine.tuning.tasks.labels import _Branches, best_labels, label_scores, label_texts
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.model import AdapterModel
from engine.tuning.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> AdapterModel:
    return AdapterModel(tiny_model, TrainingSettings(rank=4), dtype=torch.float32)


def drawn(seed: int, num_prompts: int, num_labels: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    draw = random.Random(seed)
    prompts = [(3, 4, *(draw.randrange(3, 300) for _ in range(draw.randrange(1, 30)))) for _ in range(num_prompts)]
    labels = {
        (draw.randrange(10, 20), *(draw.randrange(3, 60) for _ in range(draw.randrange(4))), 2) for _ in range(90)
    }
    return prompts, sorted(labels)[:num_labels]


def exact(model: AdapterModel, prompts: list[tuple[int, ...]], labels: list[tuple[int, ...]]) -> np.ndarray:
    """One forward for each pair."""
    examples = [EncodedExample((*prompt, *label), len(prompt)) for prompt in prompts for label in labels]
    return -np.array([model.example_losses([example])[0] for example in examples]).reshape(len(prompts), -1)


def test_scores_are_the_log_probabilities_of_transformers(model: AdapterModel, tiny_model: Path):
    prompts, labels = drawn(1, 3, 6)
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    found = label_scores(model, prompts, labels, [0, 1, 2], floor=math.inf)
    for row, prompt in enumerate(prompts):
        for column, label in enumerate(labels):
            with torch.no_grad():
                logprobs = reference(torch.tensor([[*prompt, *label]])).logits[0].log_softmax(-1)
            expected = sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(label))
            assert found[row, column] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("floor", [math.inf, 30.0, 1.0])
def test_scores_are_exact_for_targets_and_for_what_is_near_the_best(model: AdapterModel, floor: float):
    prompts, labels = drawn(2, 30, 20)
    targets = [row % 20 for row in range(30)]
    expected, found = exact(model, prompts, labels), label_scores(model, prompts, labels, targets, floor=floor)
    best = expected.max(axis=1, keepdims=True)
    near = expected >= best - floor
    near[range(30), targets] = True
    assert found[near] == pytest.approx(expected[near], abs=1e-3)
    assert (found < best - floor + 1e-3)[~near].all()


@pytest.mark.parametrize("seed", range(2))
def test_best_label_is_the_argmax_of_all_scores(model: AdapterModel, seed: int):
    prompts, labels = drawn(seed, 30, 20)
    best = best_labels(model, prompts, labels, floor=math.inf)
    assert best == exact(model, prompts, labels).argmax(axis=1).tolist()
    assert len(set(best)) > 1


def test_prompts_of_one_token_and_equal_ones_are_scored_too(model: AdapterModel):
    prompts, labels = [(7,), (7,), (7, 8, 9)], drawn(3, 1, 8)[1]
    found = label_scores(model, prompts, labels, [0, 1, 2], floor=math.inf)
    assert found == pytest.approx(exact(model, prompts, labels), abs=1e-3)


def test_branches_are_followed_in_parts_where_they_are_many(model: AdapterModel, monkeypatch: pytest.MonkeyPatch):
    prompts, labels = drawn(6, 12, 20)
    whole = label_scores(model, prompts, labels, [0] * 12, floor=60.0)
    monkeypatch.setattr("engine.tuning.tasks.labels.MAX_STATE_TOKENS", 90)
    assert label_scores(model, prompts, labels, [0] * 12, floor=60.0) == pytest.approx(whole, abs=1e-3)


def test_model_that_is_sure_follows_few_branches(model: AdapterModel, monkeypatch: pytest.MonkeyPatch):
    prompts, labels = drawn(4, 10, 30)
    followed = []
    after = _Branches.after
    monkeypatch.setattr(
        _Branches, "after", lambda self, parents, tokens: followed.append(len(tokens)) or after(self, parents, tokens)
    )
    head = model.peft.get_base_model().lm_head.weight
    kept = head.detach().clone()
    try:
        head.data.mul_(30)  # logits far apart
        best_labels(model, prompts, labels)
        few = sum(followed)
        followed.clear()
        best_labels(model, prompts, labels, floor=math.inf)
    finally:
        head.data.copy_(kept)
    assert few < 0.5 * sum(followed)


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (("card_arrival", "Top_Up"), ("card arrival", "Top Up")),
        (("a_b", "a b"), ("a_b", "a b")),
        (("_", "x"), ("_", "x")),
        (("__a", "b_"), ("a", "b")),
    ],
)
def test_underscores_are_spaces_where_labels_stay_distinct(names: tuple[str, ...], texts: tuple[str, ...]):
    assert label_texts(names) == texts


def test_macro_f1_is_the_same_in_every_process():
    """It is part of the adapter's manifest, and so of its digest."""
    draw = random.Random(0)
    for _ in range(50):
        targets, answers = ([str(draw.randrange(77)) for _ in range(500)] for _ in range(2))
        shares = [
            Fraction(2 * sum(t == a == label for t, a in pairs) / (targets.count(label) + answers.count(label)))
            for pairs in [list(zip(targets, answers, strict=True))]
            for label in {*targets, *answers}
        ]
        assert macro_f1(targets, answers) == float(sum(shares)) / len(shares)


def test_macro_f1_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    targets, answers = (draw.choice(list("abcdef"), 50).tolist() for _ in range(2))
    answers[0] = "never right"
    assert macro_f1(targets, answers) == pytest.approx(metrics.f1_score(targets, answers, average="macro"))
