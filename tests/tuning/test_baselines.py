"""The models that an adapter is compared with: they learn, they repeat themselves, and bear any text."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from engine.errors import ConfigError
from engine.tuning.baselines import fit_baselines
from engine.tuning.data.rows import LabelRow

TRAIN = [
    LabelRow(line, text, label)
    for line, (text, label) in enumerate(
        [
            ("my card was stolen", "card"),
            ("the new card has not arrived", "card"),
            ("a card is blocked", "card"),
            ("cards that do not work", "card"),
            ("the transfer failed", "transfer"),
            ("a transfer is pending", "transfer"),
            ("who cancelled my transfer", "transfer"),
            ("transfers take days", "transfer"),
        ],
        start=1,
    )
]
ASKED = [
    LabelRow(1, "where is my card", "card"),
    LabelRow(2, "my transfers", "transfer"),
    LabelRow(3, "card", "transfer"),
]


def encode(texts):
    """Whether a text speaks of cards, of transfers, and how long it is: an embedding that is not normalised."""
    return np.array([["card" in text, "transfer" in text, len(text) / 1000] for text in texts], dtype=np.float32)


def test_baselines_learn_the_training_rows_and_answer_those_of_each_evaluation_in_order():
    found = fit_baselines(TRAIN, {"validation": ASKED[:2], "evaluation": ASKED}, encode=encode)
    assert [each.name for each in found] == ["TF-IDF + LR", "embeddings + LR"]
    for each in found:
        assert each.answers == {
            "validation": ("card", "transfer"),
            "evaluation": ("card", "transfer", "card"),
        }
        assert each.metrics["validation"] == {"accuracy": 1.0, "macro_f1": 1.0}
        # card: precision 1/2, recall 1; transfer: precision 1, recall 1/2.
        assert each.metrics["evaluation"] == pytest.approx({"accuracy": 2 / 3, "macro_f1": 2 / 3})
        assert each.seconds > 0


def test_baselines_of_the_same_rows_are_the_same():
    one, two = (fit_baselines(TRAIN, {"evaluation": ASKED}, encode=encode) for _ in range(2))
    assert [(each.answers, each.metrics) for each in one] == [(each.answers, each.metrics) for each in two]


def test_baselines_without_an_encoder_are_those_of_words():
    assert [each.name for each in fit_baselines(TRAIN, {"validation": []})] == ["TF-IDF + LR"]


def test_evaluation_without_rows_has_neither_answers_nor_metrics():
    (found,) = fit_baselines(TRAIN, {"validation": []})
    assert (found.answers, found.metrics) == ({"validation": ()}, {"validation": {}})


@pytest.mark.parametrize("texts", [("?", "!"), ("中", "国"), ("a", "b"), ("🙂", "🙃"), ("\u200b", "x")])
def test_texts_without_words_are_learned_from_as_well(texts):
    rows = [LabelRow(line, text, text) for line, text in enumerate(texts, start=1)]
    (found,) = fit_baselines(rows, {"validation": rows})
    assert found.answers["validation"] == texts


def test_missing_scikit_learn_is_said_with_the_extra_that_has_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"scikit-learn.*pip install 'switchyard\[tune\]'"):
        fit_baselines(TRAIN, {})
