"""Confusion, scores, reliability and samples against values worked out by hand or by scikit-learn."""

from __future__ import annotations

import random

import pytest
from made_outcome import answered, evaluation_of, labelled
from sklearn.metrics import precision_recall_fscore_support

from engine.tuning.outcome import Answer, Prediction
from engine.tuning.report.confusion import confusion_of
from engine.tuning.report.matrix import MAX_LABELS, shown_labels
from engine.tuning.report.reliability import reliability_of
from engine.tuning.report.samples import NUM_SHOWN, samples_of


def said(*pairs: tuple[str, str]):
    rows = [
        Prediction(line, f"text {line}", (true,), Answer(text, float(true == text), 0.5, 0.5, 0.5))
        for line, (true, text) in enumerate(pairs, start=1)
    ]
    return evaluation_of(rows, "accuracy", "evaluation")


def test_most_frequent_confusion_comes_first_and_names_both_labels():
    confusion = confusion_of(said(("a", "b"), ("a", "b"), ("b", "a"), ("a", "a"), ("c", "c"), ("c", "b")))
    assert confusion.confused == [(("a", "b"), 2), (("b", "a"), 1), (("c", "b"), 1)]
    assert confusion.rows_of == {"a": 3, "b": 1, "c": 2}
    worst = confusion.scores()[0]
    assert (worst.label, worst.f1, worst.mistaken_for) == ("b", 0.0, "a")


def test_scores_of_labels_are_those_of_scikit_learn():
    draw = random.Random(1)
    pairs = [(draw.choice("abcd"), draw.choice("abcde")) for _ in range(200)]
    scores = {each.label: each for each in confusion_of(said(*pairs)).scores()}
    expected = precision_recall_fscore_support(*zip(*pairs, strict=True), labels=list("abcde"), zero_division=0.0)
    for place, label in enumerate("abcde"):
        found = scores[label]
        assert (found.precision, found.recall, found.f1, found.num_rows) == pytest.approx(
            [each[place] for each in expected]
        )
    assert list(scores) == sorted(scores, key=lambda label: (scores[label].f1, label))


def test_matrix_of_very_many_labels_shows_those_with_the_most_mistakes():
    names = [f"label {number:03d}" for number in range(MAX_LABELS + 20)]
    wrong = [(names[-1], names[-2])] * 3
    shown = shown_labels(confusion_of(said(*[(name, name) for name in names], *wrong)))
    assert len(shown) == MAX_LABELS
    assert names[-1] in shown and names[-2] in shown
    assert list(shown) == sorted(shown)


def test_reliability_bins_hold_about_as_many_rows_each():
    rows = [
        Prediction(
            place, str(place), ("a",), Answer("a" if place % 2 else "b", float(place % 2), 0.5, place / 100, 0.5)
        )
        for place in range(100)
    ]
    found = reliability_of(evaluation_of(rows, "accuracy", "validation"), is_calibrated=False)
    assert found.confidences == pytest.approx([0.045 + 0.1 * number for number in range(10)])
    assert found.shares == pytest.approx([0.5] * 10)
    assert found.error == pytest.approx(0.25)


def test_calibrated_confidence_has_bins_of_its_own_and_few_rows_few_bins():
    evaluation = labelled([True, False, True, True, True, True])
    before, after = (reliability_of(evaluation, is_calibrated=each) for each in (False, True))
    assert len(before.confidences) == 1
    assert before.confidences[0] - after.confidences[0] == pytest.approx(0.05)
    assert before.shares == after.shares == pytest.approx((5 / 6,))


def test_answers_without_confidence_have_no_reliability():
    assert reliability_of(answered([(0.0, 1.0)]), is_calibrated=False) is None


def test_samples_show_what_changed_most_and_what_is_wrong_once_each():
    found = samples_of(answered([(0.0, 1.0), (0.9, 0.0), (0.5, 0.6), (0.2, 0.2), *[(0.0, 0.9)] * 10]))
    assert (found.num_gained, found.num_lost, found.num_wrong) == (12, 1, 2)
    assert len(found.gained) == NUM_SHOWN
    assert found.gained[0].line == 1
    assert [each.line for each in found.lost] == [2]
    assert [each.line for each in found.wrong] == [4]
