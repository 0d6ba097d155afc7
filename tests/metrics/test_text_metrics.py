"""Exact match, token F1 and ROUGE-L by worked examples."""

from __future__ import annotations

import pytest

from engine.metrics.text import exact_match, plain_answer, rouge_l, token_f1


def test_answers_are_compared_without_case_articles_and_punctuation():
    assert plain_answer(" The  Eiffel-Tower, (a) tower. ") == "eiffeltower tower"
    assert exact_match("The 330 m.", ["12", "330 M"]) == 1.0
    assert exact_match("330 metres", ["330 m"]) == 0.0


@pytest.mark.parametrize(
    ("answer", "targets", "f1"),
    [
        ("in the year 1889", ["1889"], 0.5),
        ("red red", ["red"], 2 / 3),
        ("none of it", ["other words"], 0.0),
        ("b c", ["a long other text", "b c d"], 0.8),
        ("", ["x"], 0.0),
        ("the", ["a"], 1.0),
    ],
)
def test_token_f1_is_the_best_over_the_targets(answer: str, targets: list[str], f1: float):
    assert token_f1(answer, targets) == pytest.approx(f1)


def test_rouge_l_counts_words_in_order():
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", ["police killed the gunman"]) == pytest.approx(0.5)
    assert rouge_l("", ["x"]) == 0.0
